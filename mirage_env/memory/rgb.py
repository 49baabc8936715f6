"""A point cloud of colours: what the latent memory replaces, and is compared with.

    write   every pixel of a keyframe becomes a point, by the rules of the latent memory at pixel resolution
    read    z-buffered picture of every view at pixel resolution -> cracks and holes filled -> codec -> latent grid

The same source frames, rules and kernels, so that only what is stored differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import check_cameras
from mirage_env.memory.depth_grid import depth_to_grid
from mirage_env.memory.latent import LatentMemory, MemoryConfig, MemoryState
from mirage_env.memory.protocol import ChunkRecord, Encode, MemoryReading, State
from mirage_env.types import Cameras, Readout


@dataclass(frozen=True)
class RgbMemoryConfig(MemoryConfig):
    """How pixels are written; see `MemoryConfig`. `max_points` counts pixels here."""

    kind: Literal["rgb"] = "rgb"  # type: ignore[assignment]
    token_dtype: Literal["uint8"] = "uint8"
    coverage: float = 0.5
    """The share of a cell's pixels that points must show for the cell to count as remembered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.coverage <= 1.0:
            raise InvalidValueError(f"coverage is a share of a cell above 0 and at most 1, got {self.coverage}")


@dataclass(frozen=True)
class RgbState(State):
    cloud: MemoryState
    """Its tokens are colours, uint8."""
    channels: int
    """Of the latents that a read returns."""
    stride: int
    """Pixels a latent cell, as the first write tells; 0 before it."""

    def __len__(self) -> int:
        return len(self.cloud)


class RgbMemory:
    """Needs the world's codec: every read ends in an encode."""

    config_class: ClassVar = RgbMemoryConfig
    state_class: ClassVar = RgbState

    def __init__(self, config: RgbMemoryConfig | None, encode: Encode):
        self.config, self.encode = config or RgbMemoryConfig(), encode
        self._points = LatentMemory(self.config)

    def empty(self, channels: int, device: torch.device | str = "cpu") -> RgbState:
        """A memory of nothing, for latents of `channels` channels."""
        return RgbState(self._points.empty(3, device), channels, 0)

    def write(self, state: RgbState, record: ChunkRecord) -> RgbState:
        """The memory after T keyframes; raises InvalidValueError where the record has no pictures."""
        if record.rgb is None:
            raise InvalidValueError("an RGB memory stores pictures, and this record has none; pass rgb= to ChunkRecord")
        colours = replace(record, latents=record.rgb.movedim(3, 1).float())
        stride = record.cameras.size[0] // record.latents.shape[2]
        return RgbState(self._points.write(state.cloud, colours), state.channels, stride)

    def read(self, state: RgbState, cameras: Cameras) -> MemoryReading:
        """What the codec makes of the rendered views."""
        check_cameras(cameras)
        if len(state) == 0 or len(cameras) == 0:
            return MemoryReading(Readout.blank(cameras, state.channels))
        height, width = cameras.size
        size = (height * state.stride, width * state.stride)
        seen = self._points.read(state.cloud, cameras.resized(size)).grid
        assert seen is not None
        pictures = fill_holes(seen.tokens / 127.5 - 1.0, seen.visible)
        share = F.avg_pool2d(seen.visible.float()[:, None], state.stride)[:, 0]
        visible = share >= self.config.coverage
        depth = depth_to_grid(seen.depth_m, seen.visible, cameras.size, "median")
        index = F.max_pool2d(seen.index.double()[:, None], state.stride)[:, 0].long()
        return MemoryReading(
            Readout(
                tokens=torch.where(visible[:, None], self.encode(pictures), 0.0),
                visible=visible,
                depth_m=torch.where(visible, depth, 0.0),
                offset=torch.zeros(len(cameras), 2, height, width, device=depth.device),  # drawn where they belong
                index=torch.where(visible, index, -1),
            )
        )


def fill_holes(pictures: Float[Tensor, "V c H W"], known: Bool[Tensor, "V H W"]) -> Float[Tensor, "V c H W"]:
    """What is not known becomes the mean of what is known around it, from as near as there is any (pull-push).

    A crack between points takes the colour of its neighbours, a large hole fades into their mean; black holes would
    bleed into every latent cell beside them.
    """
    weight = known[:, None].float()
    return torch.where(known[:, None], pictures, _filled(pictures * weight, weight))


def _filled(colour: Tensor, weight: Tensor) -> Tensor:
    """`colour` is weighted by `weight`, which is 0 or 1."""
    if bool(weight.all()) or max(weight.shape[2:]) == 1:
        return colour
    coarse_weight = F.avg_pool2d(weight, 2, ceil_mode=True)
    coarse = F.avg_pool2d(colour, 2, ceil_mode=True) / coarse_weight.clamp_min(1e-6)
    coarse = _filled(coarse, (coarse_weight > 0).float())
    finer = F.interpolate(coarse, size=weight.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(weight > 0, colour, finer)
