"""LPIPS (Zhang et al., 2018) over AlexNet, where its weights are found on this machine. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

BACKBONE = "alexnet-owt-7be5be79.pth"
"""As torchvision names it in torch's hub folder; the last part is how its sha256 begins."""
HEADS = "functional/image/lpips_models/alex.pth"
"""The linear heads, which come inside torchmetrics."""
ABSENT = (
    f"LPIPS is left out: its backbone {BACKBONE} is not in the checkpoints folder of torch.hub.get_dir(), or "
    "torchmetrics is not installed"
)
_LAYERS = (
    ("features.0", 4, 2),
    ("features.3", 1, 2),
    ("features.6", 1, 1),
    ("features.8", 1, 1),
    ("features.10", 1, 1),
)
"""Name, stride and padding of AlexNet's convolutions; max-pooling stands before the second and the third."""


def found() -> bool:
    """Whether `lpips` can be computed here."""
    return _backbone().is_file() and _heads() is not None


def lpips(prediction: UInt8[Tensor, "n H W 3"], truth: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, " n"]:
    """The learned perceptual distance of each pair of pictures; raises FileNotFoundError where absent."""
    heads = _heads()
    if heads is None:
        raise FileNotFoundError(ABSENT)
    backbone, weights = _load(_backbone(), True), _load(heads, False)
    shift, scale = (torch.tensor(x)[:, None, None] for x in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    pair = torch.cat([prediction, truth]).movedim(-1, 1).float() / 127.5 - 1.0
    x, distance = (pair - shift) / scale, torch.zeros(len(prediction))
    for layer, (name, stride, padding) in enumerate(_LAYERS):
        if layer in (1, 2):
            x = F.max_pool2d(x, 3, 2)
        x = F.relu(F.conv2d(x, backbone[f"{name}.weight"], backbone[f"{name}.bias"], stride, padding))
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8)
        apart = (unit[: len(prediction)] - unit[len(prediction) :]).square()
        distance = distance + (apart * weights[f"lin{layer}.model.1.weight"]).sum(1).mean((1, 2))
    return distance


def _backbone() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE


def _heads() -> Path | None:
    spec = find_spec("torchmetrics")
    file = Path(str(spec.origin)).parent / HEADS if spec and spec.origin else None
    return file if file and file.is_file() else None


@lru_cache(maxsize=2)
def _load(path: Path, hashed: bool) -> dict[str, Tensor]:
    """Tensors and nothing else, by the restricted unpickler; the backbone must have the hash in its name."""
    if hashed and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.rpartition("-")[2]):
        raise FileNotFoundError(f"{path} is damaged: its sha256 does not begin as its name says; get it again")
    return torch.load(path, map_location="cpu", weights_only=True)
