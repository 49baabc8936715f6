"""Latent points that know their neighbours: what is read is worked out for the middle of every cell.

A token describes a patch of the picture it was encoded from; a view shows it up to half a cell away from there, and
nothing in between. Latents of a picture that is shifted by a part of a cell are all but linear in the latents around
them: of 3 x 3 known tokens and a known shift the best linear map keeps 27.1 to 27.8 dB of a picture, where the codec
itself keeps 28.0 and the nearest token 17.8 to 25.4. So every point carries the tokens around it, as they were when it
was written, and a small network reads the one that lies in the middle of the cell.

    write   the latent memory's, with the 3 x 3 tokens around a cell as that cell's token
    read    one projection at latent resolution (Eq. 5) -> for every cell the point in it or, where there is none, the
            nearest of a neighbour's -> the token in the middle of the cell, linear in what the point carries by
            coefficients that depend on where it lies -> what convolutions over the view correct
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError
from mirage_env.layers import ResidualBlock
from mirage_env.memory.latent import LatentMemory, MemoryConfig, MemoryState, TokenDtype
from mirage_env.memory.protocol import ChunkRecord, Encode, MemoryReading
from mirage_env.precision import fast_autocast
from mirage_env.types import SKY_M, Cameras, Readout

AROUND = 9
"""Tokens that a point carries."""
_WAVES = 3
_PLACE = 2 + 2 + 1 + 4 * _WAVES
"""Numbers that tell where a point lies in its cell."""


@dataclass(frozen=True)
class ResampledMemoryConfig(MemoryConfig):
    """How points are written, see `MemoryConfig`, and the shape of what reads them."""

    kind: Literal["resampled"] = "resampled"  # type: ignore[assignment]
    token_dtype: TokenDtype = "float16"
    channels: int = 24
    """Of the codec's latents."""
    maps: int = 32
    """Linear maps of the tokens around a point that are mixed by where it lies."""
    hidden: int = 64
    width: int = 64
    """Of the convolutions that correct what is read."""
    blocks: int = 2
    trust: float = 0.1
    """How far from where it was written, in cells and in ln of its size, a token is wholly the network's answer; at the
    very place it is the token itself, so that who comes back sees what was there."""
    reach: float = 1.0
    """How far from the middle of a cell, in its own patches, a point may lie that shows it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.channels, self.maps, self.hidden, self.blocks) < 1 or self.width < 8 or self.width % 8:
            raise InvalidValueError(
                f"channels, maps, hidden and blocks must be positive and width a multiple of 8, got {self}"
            )
        if not self.trust > 0:
            raise InvalidValueError(f"trust must be positive, got {self.trust}")
        if not 0.5 <= self.reach <= 1.5:
            raise InvalidValueError(f"reach must be from half a patch to one and a half, got {self.reach}")


class View(NamedTuple):
    """What points show to V views, cell by cell; zero where nothing is shown."""

    around: Float[Tensor, "V a h w"]
    """The token of the point that shows the cell, and those around it."""
    shown: Bool[Tensor, "V h w"]
    offset: Float[Tensor, "V 2 h w"]
    """Where the point lies, (x, y) from the middle of the cell, in cells."""
    scale: Float[Tensor, "V h w"]
    """How large its patch appears, in cells."""
    depth_m: Float[Tensor, "V h w"]
    row: Int[Tensor, "V h w"]
    """The point's row in the memory; -1 where nothing is shown, and for the sky."""


class Resampler(nn.Module):
    """The token in the middle of each cell, from those around the point that shows it; untrained the point's own."""

    def __init__(self, config: ResampledMemoryConfig):
        super().__init__()
        c = config.channels
        self.channels, self.maps, self.trust = c, config.maps, config.trust
        mixed = nn.Linear(config.hidden, config.maps)
        self.mix = nn.Sequential(
            nn.Linear(_PLACE, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden), nn.SiLU(), mixed
        )
        self.linear = nn.Linear(AROUND * c, config.maps * c)
        nn.init.normal_(self.linear.weight, 0.0, 0.02)
        nn.init.zeros_(mixed.weight)
        nn.init.zeros_(mixed.bias)
        self.stem = nn.Conv2d(c + 5, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.head = nn.Conv2d(config.width, c, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        self.head.bias = nn.Parameter(torch.zeros(c))

    def forward(self, view: View) -> Float[Tensor, "V c h w"]:
        """Zero where nothing is shown."""
        around, shown, offset, scale, depth_m, _ = view
        nearness = shown / depth_m.clamp_min(0.25)
        size = scale.clamp_min(1e-2)
        moved = (-offset / size[:, None]).movedim(1, -1)
        angles = math.pi * torch.cat([k * moved for k in range(1, 1 + _WAVES)], -1)
        log_size = size.log()
        place = torch.cat([moved, offset.movedim(1, -1), log_size[..., None], angles.sin(), angles.cos()], -1)
        maps = self.linear(around.movedim(1, -1).contiguous()).unflatten(-1, (self.maps, self.channels))
        read = (self.mix(place)[..., None, :] @ maps)[..., 0, :].movedim(-1, 1) + around[:, : self.channels]
        read = read * shown[:, None]
        told = torch.stack([shown.float(), *offset.unbind(1), log_size * shown, nearness], 1)
        x = torch.cat([read, told], 1).contiguous(memory_format=torch.channels_last)
        own, read = around[:, : self.channels], read + self.head(self.blocks(self.stem(x)))
        away = torch.cat([moved, log_size[..., None]], -1).norm(dim=-1) / self.trust
        return own.lerp(read.to(own.dtype), away.clamp(max=1.0)[:, None].to(own.dtype)) * shown[:, None]


class ResampledMemory(nn.Module):
    """Implements `Memory`. Its state is the latent memory's, with tokens `AROUND` times as long."""

    config_class: ClassVar = ResampledMemoryConfig
    state_class: ClassVar = MemoryState

    def __init__(self, config: ResampledMemoryConfig | None = None, encode: Encode | None = None):
        super().__init__()
        self.config = config or ResampledMemoryConfig()
        self.points = LatentMemory(self.config)
        self.resampler = Resampler(self.config)

    def empty(self, channels: int, device: torch.device | str = "cpu") -> MemoryState:
        """A memory of nothing, for latents of `channels` channels."""
        if channels != self.config.channels:
            raise InvalidValueError(
                f"this memory reads latents of {self.config.channels} channels, got {channels}; set memory.channels"
            )
        return self.points.empty(AROUND * channels, device)

    def write(self, state: MemoryState, record: ChunkRecord) -> MemoryState:
        """The memory after T keyframes; see `LatentMemory.write`."""
        return self.points.write(state, replace(record, latents=with_neighbours(record.latents)))

    def read(self, state: MemoryState, cameras: Cameras) -> MemoryReading:
        """What the memory shows to the cameras: points as they lie, and what is read of them for every cell."""
        return self.read_many([state], [cameras])[0]

    def read_many(self, states: Sequence[MemoryState], cameras: Sequence[Cameras]) -> list[MemoryReading]:
        """`read` of several; the network is asked world by world, since it may sum otherwise in company."""
        readings = []
        for state, views, reading in zip(states, cameras, self.points.read_many(states, cameras), strict=True):
            assert reading.grid is not None
            own = replace(reading.grid, tokens=reading.grid.tokens[:, : self.config.channels])
            readings.append(MemoryReading(own, settled=partial(self._settled, state, views, reading.grid)))
        return readings

    def _settled(self, state: MemoryState, cameras: Cameras, grid: Readout, views: slice | Tensor) -> Readout:
        cameras, grid = cameras[views], grid[views]
        view = self.view(state, cameras, grid)
        with fast_autocast(view.around.device):
            tokens = self.resampler(view).float()
        return Readout(tokens, view.shown, view.depth_m, torch.zeros_like(view.offset), view.row)

    def view(self, state: MemoryState, cameras: Cameras, grid: Readout) -> View:
        """What the network is told, where `grid` is what the points show to the cameras."""
        scale = _apparent(state, cameras, grid)
        cell, shown, offset = nearest(grid, scale, self.config.reach)

        def there(values: Tensor) -> Tensor:
            """Of the point that shows each cell."""
            flat = values.flatten(-2)
            index = cell.flatten(1)
            index = index[:, None].expand(*flat.shape[:2], -1) if flat.dim() == 3 else index
            return flat.gather(-1, index).view_as(values)

        around = there(grid.tokens) * shown[:, None]
        row = torch.where(shown, there(grid.index), -1)
        return View(around, shown, offset, there(scale) * shown, there(grid.depth_m) * shown, row)


def with_neighbours(latents: Float[Tensor, "T c h w"]) -> Float[Tensor, "T a h w"]:
    """Every cell's token, then those of the eight cells around it; beyond the border the nearest cell's."""
    t, c, h, w = latents.shape
    parts = F.unfold(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3).view(t, c, AROUND, h, w)
    middle = AROUND // 2
    order = torch.tensor([middle, *(i for i in range(AROUND) if i != middle)], device=latents.device)
    return parts.movedim(2, 1)[:, order].flatten(1, 2)


def nearest(
    grid: Readout, scale: Float[Tensor, "V h w"], reach: float
) -> tuple[Int64[Tensor, "V h w"], Bool[Tensor, "V h w"], Float[Tensor, "V 2 h w"]]:
    """For every cell: of which cell's point it is read, whether of any, and where that point lies from its middle.

    Its own cell's, or, where that is empty, that of the eight around it whose patch reaches it best.
    """
    v, h, w = grid.visible.shape
    steps = torch.tensor([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)], device=scale.device)
    values = torch.cat([grid.visible[:, None].float(), grid.offset, scale[:, None]], 1)
    there, x, y, size = F.unfold(F.pad(values, (1, 1, 1, 1)), 3).view(v, 4, AROUND, h, w).unbind(1)
    x, y = x + steps[:, 0, None, None], y + steps[:, 1, None, None]
    far = torch.maximum(x.abs(), y.abs()) / size.clamp_min(1e-2)
    far = torch.where((there > 0) & (far <= reach), far, math.inf)
    own = AROUND // 2
    far[:, own] = torch.where(grid.visible, -1.0, math.inf)
    least, chosen = far.min(1)
    shown = least < math.inf
    chosen = torch.where(shown, chosen, own)
    rows = torch.arange(h, device=scale.device)[:, None] + steps[chosen, 1]
    columns = torch.arange(w, device=scale.device) + steps[chosen, 0]
    offset = torch.cat([x.gather(1, chosen[:, None]), y.gather(1, chosen[:, None])], 1) * shown[:, None]
    return rows * w + columns, shown, offset


def _apparent(state: MemoryState, cameras: Cameras, grid: Readout) -> Float[Tensor, "V h w"]:
    """How large the patch of each cell's point appears, in cells; the sky's, which has no size, 1."""
    focal = (cameras.intrinsics_px[:, 0, 0] * cameras.intrinsics_px[:, 1, 1]).sqrt()[:, None, None]
    surface = grid.visible & (grid.index >= 0) & (grid.depth_m < SKY_M)
    footprint = state.footprint_m.new_ones(grid.index.shape)
    if len(state):
        footprint = state.footprint_m[grid.index.clamp_min(0).long()]
    return torch.where(surface, footprint * focal / grid.depth_m.clamp_min(1e-3), grid.visible.float())
