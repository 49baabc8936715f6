"""Weights as the package ships and loads them: one safetensors file a part, in half precision, with a card inside.

The card is JSON in the file's metadata: the kind of part, its configuration, how it was trained, and for every part
that depends on the codec, the codec's hash; a part made for another codec is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mirage_env.errors import WeightsError


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str] | None = None) -> None:
    """A safetensors file that others may read like any other file here; safetensors itself leaves it to its owner."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, about)
    path.chmod(mode)


def save_weights(path: Path, module: nn.Module, card: Mapping[str, Any]) -> None:
    """Writes the module's state in float16 and its card, atomically."""
    plain = {key: asdict(value) if is_dataclass(value) else value for key, value in card.items()}  # type: ignore[arg-type]
    tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in module.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_tensors(temporary, tensors, {"card": json.dumps(plain)})
    os.replace(temporary, path)


def read_card(path: Path) -> dict[str, Any]:
    """The card alone; raises `WeightsError` where the file is missing, damaged or not of this package."""
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get("card", "{}"))
    except FileNotFoundError:
        raise WeightsError(f"no weights at {path}; train them, or install the package with its weights") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise WeightsError(
            f"the weights file {path} is damaged ({' '.join(str(error).split())}); get it again"
        ) from None
    if not isinstance(card, dict) or "kind" not in card:
        raise WeightsError(f"{path} holds no weights of this package (no card inside); name one that it wrote")
    return card


def load_weights(path: Path, module: nn.Module, kind: str, codec_hash: str | None = None) -> dict[str, Any]:
    """Fills `module` strictly from the file and returns the file's card.

    Raises `WeightsError` for another kind of part, other shapes, or a part that was trained for another codec.
    """
    card = read_card(path)
    if card["kind"] != kind:
        raise WeightsError(f"{path} holds a {card['kind']}, expected a {kind}; name the {kind}'s file")
    if codec_hash is not None and card.get("codec_hash") != codec_hash:
        raise WeightsError(
            f"{path} was trained for the codec {str(card.get('codec_hash'))[:12]}, but the codec in use is "
            f"{codec_hash[:12]}; take both from one training run"
        )
    with safe_open(path, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    expected = module.state_dict()
    wrong = sorted(k for k in stored.keys() | expected.keys() if k not in stored or k not in expected)
    wrong += sorted(k for k in stored.keys() & expected.keys() if stored[k].shape != expected[k].shape)
    if wrong:
        raise WeightsError(
            f"{path} does not fit the configured {kind}: {len(wrong)} tensors differ, the first is {wrong[0]}; "
            "use the preset that these weights were trained with"
        )
    for key, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path} is damaged: {key} holds numbers that are not finite; get it again")
    with torch.no_grad():
        module.load_state_dict({k: v.to(expected[k].dtype) for k, v in stored.items()})
    return card
