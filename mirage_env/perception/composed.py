"""Depth by one outside model, masks by another: what the full-size preset sees with.

Each is named in the preset, can be switched off with null, and can come from another package: a loader registered under
the entry point group `mirage_env.depth` or `mirage_env.masks` is known by its name like the ones here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mirage_env.errors import UnknownNameError
from mirage_env.perception.tiny import Perceived
from mirage_env.types import Cameras

_BUILT_IN = {
    "depth": {"depth-anything-3": "mirage_env.perception.depth_anything3:load"},
    "masks": {"sam3": "mirage_env.perception.sam3:load", "sam3-package": "mirage_env.perception.sam3:load_package"},
}


@dataclass(frozen=True)
class OutsideModel:
    """Which model sees, and where its weights lie."""

    model: str
    """depth-anything-3, sam3 or sam3-package, or the name of an entry point."""
    weights: str
    """A local folder, or a checkpoint of the hub that was fetched."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's own config, see its file."""


@dataclass(frozen=True)
class ComposedConfig:
    """Two outside models; null switches one off."""

    depth: OutsideModel | None = None
    """Without depth nothing is ever remembered: a plain video model."""
    masks: OutsideModel | None = None
    """Without masks moving things are remembered where they were, and sky where the depth model puts it."""
    max_depth_m: float = 80.0

    def weights(self) -> list[str]:
        """Of both models, and of the models that their options name."""
        chosen = [choice for choice in (self.depth, self.masks) if choice is not None]
        options = [value for choice in chosen for value in choice.options.values() if isinstance(value, str)]
        return [choice.weights for choice in chosen] + options

    def load(self, device: torch.device, dtype: torch.dtype) -> ComposedPerception:
        """Both models, loaded; raises `UnknownNameError` or `WeightsError`."""
        parts = {
            kind: _loader(kind, choice.model)(choice.weights, choice.options, device, dtype)
            for kind, choice in (("depth", self.depth), ("masks", self.masks))
            if choice is not None
        }
        return ComposedPerception(parts.get("depth"), parts.get("masks"), self.max_depth_m)


@runtime_checkable
class DepthModel(Protocol):
    """Posed pictures -> metric z-depth. MapAnything, UniDepth and others follow it in a file of some forty lines."""

    def __call__(
        self, images: Float[Tensor, "T 3 H W"], cameras: Cameras
    ) -> tuple[Float[Tensor, "T H W"], Bool[Tensor, "T H W"] | None]:
        """`images` in [-1, 1], at their true cameras, which may stand still, turn on the spot or be one alone. Returns
        depth in metres, not finite where unknown, and the sky where the model knows it."""


@runtime_checkable
class MaskModel(Protocol):
    """Pictures -> what moves by itself, and the sky."""

    def __call__(self, images: Float[Tensor, "T 3 H W"]) -> tuple[Bool[Tensor, "T H W"], Bool[Tensor, "T H W"] | None]:
        """`images` in [-1, 1]. Returns moving things, and the sky where the model looks for it."""


Loader = Callable[[str, dict[str, Any], torch.device, torch.dtype], Any]
"""(weights, options, device, dtype) -> a `DepthModel` or a `MaskModel`"""


class ComposedPerception(nn.Module):
    """Implements `Perception`. Give it your own callables, or None for what you do without."""

    frames_alone = False

    def __init__(self, depth: DepthModel | None = None, masks: MaskModel | None = None, max_depth_m: float = 80.0):
        super().__init__()
        self.depth, self.masks, self.max_depth_m = depth, masks, max_depth_m

    def forward(
        self,
        images: Float[Tensor, "T 3 H W"],
        cameras: Cameras,
        memory_depth_m: Float[Tensor, "T h w"],
        floor_y: float,
    ) -> Perceived:
        shape = (len(images), *images.shape[2:])
        sky = torch.zeros(shape, dtype=torch.bool, device=images.device)
        dynamic, depth = torch.zeros_like(sky), torch.full(shape, torch.inf, device=images.device)
        if self.depth is not None:
            depth, depth_sky = self.depth(images, cameras)
            depth = torch.where(torch.isfinite(depth), depth.float().clamp(1e-2, self.max_depth_m), torch.inf)
            sky = sky if depth_sky is None else depth_sky
        if self.masks is not None:
            dynamic, mask_sky = self.masks(images)
            sky = sky if mask_sky is None else sky | mask_sky
        return Perceived(depth, sky, dynamic)


def _loader(kind: str, name: str) -> Loader:
    """The function that loads the model called `name`; raises `UnknownNameError` with the names that there are."""
    if name in _BUILT_IN[kind]:
        module, function = _BUILT_IN[kind][name].split(":")
        return getattr(import_module(module), function)
    found = {entry.name: entry for entry in entry_points(group=f"mirage_env.{kind}")}
    if name not in found:
        raise UnknownNameError(f"{kind} model", name, [*_BUILT_IN[kind], *found])
    return found[name].load()
