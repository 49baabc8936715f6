"""A memory on disk: one safetensors file, whole or not there, that knows its memory and its codec."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mirage_env.errors import InvalidValueError, OutputError, WeightsError
from mirage_env.memory.protocol import Memory, State
from mirage_env.weights import save_tensors

_FORMAT = 1


def save_memory(path: str | Path, memory: Memory, state: State, codec: str) -> None:
    """Writes the state atomically; `codec` names whose latents it holds (the sha256 of the codec's file, say)."""
    target = Path(path).expanduser()
    about = {"format": _FORMAT, "memory": memory.config.kind, "codec": codec}
    partial = target.with_name(f".{target.name}.partial")
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in state.tensors().items()}
    try:
        save_tensors(partial, tensors, {"mirage_memory": json.dumps(about)})
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write the memory to {target} ({error}); choose another place") from error


def load_memory(path: str | Path, memory: Memory, codec: str) -> Any:
    """The state that `save_memory` wrote, of `memory.state_class`, on the CPU.

    Raises WeightsError where the file is missing, damaged, of another kind of memory or of another codec: tokens mean
    nothing to a codec that did not make them.
    """
    source = Path(path).expanduser()
    try:
        with safe_open(source, "pt") as file:
            about = json.loads((file.metadata() or {}).get("mirage_memory", "{}"))
            leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise WeightsError(f"no saved memory at {source}") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"the saved memory {source} is damaged ({reason}); save it again") from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT or not {"memory", "codec"} <= about.keys():
        raise WeightsError(f"{source} holds no memory that this version wrote; pass a file of save_memory")
    if about["memory"] != memory.config.kind:
        raise WeightsError(
            f'{source} holds a "{about["memory"]}" memory, but this world\'s is "{memory.config.kind}"; use its preset'
        )
    if about["codec"] != codec:
        raise WeightsError(
            f"{source} was written with the codec {about['codec']}, but the codec in use is {codec}; load it with the "
            "weights that it was saved with"
        )
    try:
        return memory.state_class.from_tensors(leaves)
    except InvalidValueError as error:
        raise WeightsError(f"the saved memory {source} is damaged: {error}") from None
