"""Public checkpoints in diffusers' layout: finding them, fetching them when asked, checking them before they load.

A checkpoint is a folder with one folder a part, each with its config and its safetensors, in one file or in shards that
an index names. Everything that can be wrong with one is told in a sentence, before gigabytes are read.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mirage_env.errors import MirageError, WeightsError
from mirage_env.resources import WEIGHTS

GIB = 2**30


class FetchError(MirageError, OSError):
    """A checkpoint that could not be fetched."""


def check_extra(extra: str, *packages: str) -> None:
    """Raises `WeightsError` where a package of an optional set is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise WeightsError(f"this preset needs {' and '.join(missing)}; pip install 'mirage-env[{extra}]'")


def is_diffusers(folder: Path) -> bool:
    """Does this folder hold a checkpoint in diffusers' layout, not one that this package wrote?"""
    return (folder / "model_index.json").is_file()


def find(name: str) -> Path:
    """The folder of weights called `name`: one that comes with the package, a local one, or a fetched hub id.

    The folder of a training holds its weights in a folder of that name.

    Never touches the network; raises `WeightsError` where there is nothing.
    """
    local = Path(name).expanduser()
    own = [] if local.is_absolute() else [WEIGHTS / name]
    for folder in (*own, local / "weights", local):
        if folder.is_dir():
            return folder
    if not is_hub_id(name):
        raise WeightsError(f"no weights at {local}; name a folder, or a checkpoint of the hub as owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except OSError:
        raise WeightsError(
            f"the checkpoint {name} is not on this machine; get it with mirage-env fetch {name}, or name a local folder"
        ) from None


def fetch(name: str) -> Path:
    """Downloads a checkpoint of the hub, going on where an earlier call was cut off, and returns its folder.

    Only configs, tokenizers and safetensors. Raises `FetchError` for an unknown, gated or unreachable checkpoint.
    """
    if not is_hub_id(name):
        raise FetchError(f'a checkpoint of the hub is named owner/name, got "{name}"')

    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import httpx  # whichever it was built on

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md", "LICENSE*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise FetchError(
            f"{name} is gated: accept its licence on huggingface.co, log in with hf auth login, and try again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FetchError(
            f"the hub has no checkpoint {name}, or it is private; check the name, or hf auth login"
        ) from None
    except (
        httpx.HTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        ConnectionError,
        TimeoutError,
    ):
        raise FetchError(
            f"{name} could not be fetched: no way to huggingface.co; go online, set HF_ENDPOINT to a mirror, "
            "or name a folder that holds the checkpoint"
        ) from None
    except OSError as error:
        raise FetchError(f"{name} could not be fetched ({error.strerror or error}); free space and try again") from None


def part_config(folder: Path, expected: Mapping[str, Any] | None = None, name: str = "config.json") -> dict[str, Any]:
    """The config of a part; raises `WeightsError` where it is missing, damaged or differs from `expected`."""
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"the checkpoint lacks {path}; fetch it again, or name the folder that holds it") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}); fetch it again") from None
    for key, value in (expected or {}).items():
        if _plain(config.get(key)) != _plain(value):
            raise WeightsError(
                f"{path} is not the model of this preset: its {key} is {config.get(key)!r}, the preset's {value!r}; "
                "name the checkpoint that the preset was written for"
            )
    return config


def part_bytes(folder: Path, stem: str = "diffusion_pytorch_model") -> int:
    """Bytes of a part's tensors; raises `WeightsError` for a missing shard or a damaged file.

    Reads the headers alone: a file must be as long as its header says.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(part_config(folder, name=index.name).get("weight_map", {}).values()))
    else:
        names = [f"{stem}.safetensors"]
    total = 0
    for name in names:
        path = folder / name
        if not path.is_file():
            shard = f"the shard {name} of {len(names)}" if len(names) > 1 else name
            raise WeightsError(f"the checkpoint lacks {shard} in {folder}; fetch it again")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            try:
                header = json.loads(file.read(length) if length < size else b"")
                ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
                whole = size == 8 + length + max(ends, default=0)
            except (AttributeError, KeyError, TypeError, ValueError):
                whole = False
        if not whole:
            raise WeightsError(f"{path} is damaged or was cut off at {size} bytes; fetch it again")
        total += size
    return total


def free_bytes(device: torch.device | str) -> int:
    """Free memory of a device; for the CPU, what a new process could have."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def check_memory(what: str, needed: int, device: torch.device | str, remedy: str) -> None:
    """Raises `WeightsError` where a device has less than `needed` bytes free."""
    free = free_bytes(device)
    if needed > free:
        raise WeightsError(
            f"{what} needs {needed / GIB:.1f} GiB of memory on {device}, and {free / GIB:.1f} GiB are free; {remedy}"
        )


def is_hub_id(name: str) -> bool:
    """Does this name look like owner/name?"""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
