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
from mirage_env.geometry.projection import camera_rays
from mirage_env.layers import ResidualBlock
from mirage_env.memory.depth_grid import plane_slopes
from mirage_env.memory.latent import LatentMemory, MemoryConfig, MemoryState, TokenDtype
from mirage_env.memory.protocol import ChunkRecord, Encode, MemoryReading
from mirage_env.precision import fast_autocast
from mirage_env.types import SKY_M, Cameras, Readout

AROUND = 9
"""Tokens that a point carries."""
TANGENTS = 6
"""Numbers beside them: how its patch lies in the world, see `tangents`."""
STEEPEST = 0.5
"""By what share of itself inverse depth may change across a patch; what is steeper is taken for an edge's blur."""
FLATTEST = 0.05
"""A patch that appears flatter than this share of its size is taken to face the camera."""
LARGEST = 16.0
"""A patch counts as so many cells large at most, and as so many times smaller at least: in what it was never taught a
network may answer anything, and what it answers reaches the cells around."""
SAME = 5e-3
"""So far off (cells, and in ln of its size) it is at its very place: what a float16 may be off."""
_WAVES = 3
_PLACE = 2 + 2 + 4 + 1 + 4 * _WAVES
"""Numbers that tell where a point lies in its cell, and how its patch does."""


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
    shape: Float[Tensor, "V 2 2 h w"]
    """How its patch appears: the columns say, in cells, where a step of one cell to the right leads, and one down, of
    the picture that it was written from."""
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
        self.stem = nn.Conv2d(c + 9, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.head = nn.Conv2d(config.width, c, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        self.head.bias = nn.Parameter(torch.zeros(c))

    def forward(self, view: View) -> Float[Tensor, "V c h w"]:
        """Zero where nothing is shown."""
        around, shown, offset, shape, depth_m, _ = view
        nearness = shown / depth_m.clamp_min(0.25)
        back, det = inverse(shape)
        moved = -(back * offset[:, None]).sum(2).clamp(-2.0, 2.0)  # no product that autocast would round
        shape = shape.flatten(1, 2)
        angles = math.pi * torch.cat([k * moved for k in range(1, 1 + _WAVES)], 1)
        log_size = 0.5 * det.log()[:, None]
        place = torch.cat([moved, offset, shape, log_size, angles.sin(), angles.cos()], 1).movedim(1, -1)
        maps = self.linear(around.movedim(1, -1).contiguous()).unflatten(-1, (self.maps, self.channels))
        read = (self.mix(place)[..., None, :] @ maps)[..., 0, :].movedim(-1, 1) + around[:, : self.channels]
        read = read * shown[:, None]
        told = torch.cat([shown[:, None].float(), offset, shape, log_size * shown[:, None], nearness[:, None]], 1)
        x = torch.cat([read, told], 1).contiguous(memory_format=torch.channels_last)
        own, read = around[:, : self.channels], read + self.head(self.blocks(self.stem(x)))
        unmoved = shape - shape.new_tensor([1.0, 0.0, 0.0, 1.0])[:, None, None]
        away = (torch.cat([moved, unmoved], 1).norm(dim=1) - SAME) / self.trust
        return own.lerp(read.to(own.dtype), away.clamp(0.0, 1.0)[:, None].to(own.dtype)) * shown[:, None]


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
        return self.points.empty(AROUND * channels + TANGENTS, device)

    def write(self, state: MemoryState, record: ChunkRecord) -> MemoryState:
        """The memory after T keyframes; see `LatentMemory.write`."""
        self._check_state(state)
        self.points.check(record, self.config.channels, state.device)
        carried = torch.cat([with_neighbours(record.latents), tangents(record).to(record.latents)], 1)
        return self.points.add(state, replace(record, latents=carried))

    def read(self, state: MemoryState, cameras: Cameras) -> MemoryReading:
        """What the memory shows to the cameras: points as they lie, and what is read of them for every cell."""
        return self.read_many([state], [cameras])[0]

    def read_many(self, states: Sequence[MemoryState], cameras: Sequence[Cameras]) -> list[MemoryReading]:
        """`read` of several; the network is asked world by world, since it may sum otherwise in company."""
        for state in states:
            self._check_state(state)
        readings = []
        for state, views, reading in zip(states, cameras, self.points.read_many(states, cameras), strict=True):
            assert reading.grid is not None
            own = replace(reading.grid, tokens=reading.grid.tokens[:, : self.config.channels])
            readings.append(MemoryReading(own, settled=partial(self._settled, state, views, reading.grid)))
        return readings

    def _check_state(self, state: MemoryState) -> None:
        carried = AROUND * self.config.channels + TANGENTS
        if state.channels != carried:
            raise InvalidValueError(
                f"points of this memory carry {carried} numbers, got a state whose points carry {state.channels}: "
                "another memory, or another version of it, made it; begin anew"
            )

    def _settled(self, state: MemoryState, cameras: Cameras, grid: Readout, views: slice | Tensor) -> Readout:
        cameras, grid = cameras[views], grid[views]
        view = self.view(state, cameras, grid)
        with fast_autocast(view.around.device):
            tokens = self.resampler(view).float()
        return Readout(tokens, view.shown, view.depth_m, torch.zeros_like(view.offset), view.row)

    def view(self, state: MemoryState, cameras: Cameras, grid: Readout) -> View:
        """What the network is told, where `grid` is what the points show to the cameras."""
        shape = _apparent(state, cameras, grid)
        cell, shown, offset = nearest(grid, shape, self.config.reach)

        def there(values: Tensor) -> Tensor:
            """Of the point that shows each cell."""
            flat = values.flatten(-2)
            index = cell.flatten(1)
            for _ in range(flat.dim() - index.dim()):
                index = index[:, None]
            return flat.gather(-1, index.expand(*flat.shape[:-1], -1)).view_as(values)

        around = there(grid.tokens[:, :-TANGENTS]) * shown[:, None]
        row = torch.where(shown, there(grid.index), -1)
        return View(around, shown, offset, there(shape), there(grid.depth_m) * shown, row)


def with_neighbours(latents: Float[Tensor, "T c h w"]) -> Float[Tensor, "T a h w"]:
    """Every cell's token, then those of the eight cells around it; beyond the border the nearest cell's."""
    t, c, h, w = latents.shape
    parts = F.unfold(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3).view(t, c, AROUND, h, w)
    middle = AROUND // 2
    order = torch.tensor([middle, *(i for i in range(AROUND) if i != middle)], device=latents.device)
    return parts.movedim(2, 1)[:, order].flatten(1, 2)


def tangents(record: ChunkRecord) -> Float[Tensor, "T 6 h w"]:
    """How the patch of every cell lies in the world: where a step of one cell to the right leads, and one down, in
    patches (z-depth over focal length) along the world's axes.

    Inverse depth is affine in the picture on any plane, so that a point z r of ray r moves by z (dr - s r), where s is
    the share by which inverse depth grows over the step. Edges of depth and the sky face the camera.
    """
    h, w = record.latents.shape[2:]
    cameras = record.cameras.resized((h, w))
    rays, focal = camera_rays(cameras).movedim(3, 1), _focal(cameras)
    slopes = plane_slopes(record.depth_m, record.static, (h, w)).clamp(-STEEPEST, STEEPEST)
    steps = torch.zeros(len(rays), 2, 3, h, w, device=rays.device)
    for axis in (0, 1):
        steps[:, axis, axis] = 1.0 / cameras.intrinsics_px[:, axis, axis, None, None]
    steps = (steps - slopes[:, :, None] * rays[:, None]) * focal[:, None, None, None, None]
    return torch.einsum("tij,tkjhw->tkihw", cameras.world_from_camera[:, :3, :3], steps).flatten(1, 2)


def nearest(
    grid: Readout, shape: Float[Tensor, "V 2 2 h w"], reach: float
) -> tuple[Int64[Tensor, "V h w"], Bool[Tensor, "V h w"], Float[Tensor, "V 2 h w"]]:
    """For every cell: of which cell's point it is read, whether of any, and where that point lies from its middle.

    Its own cell's, or, where that is empty, that of the eight around it whose patch reaches it best.
    """
    v, h, w = grid.visible.shape
    steps = torch.tensor([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)], device=shape.device)
    values = torch.cat([grid.visible[:, None].float(), grid.offset, inverse(shape)[0].flatten(1, 2)], 1)
    around = F.unfold(F.pad(values, (1, 1, 1, 1)), 3).view(v, 7, AROUND, h, w)
    there, places = around[:, 0], around[:, 1:3] + steps.T[:, :, None, None]
    far = torch.einsum("vijnhw,vjnhw->vinhw", around[:, 3:].unflatten(1, (2, 2)), places).abs().amax(1)
    far = torch.where((there > 0) & (far <= reach), far, math.inf)
    own = AROUND // 2
    far[:, own] = torch.where(grid.visible, -1.0, math.inf)
    least, chosen = far.min(1)
    shown = least < math.inf
    chosen = torch.where(shown, chosen, own)
    rows = torch.arange(h, device=shape.device)[:, None] + steps[chosen, 1]
    columns = torch.arange(w, device=shape.device) + steps[chosen, 0]
    offset = places.gather(2, chosen[:, None, None].expand(-1, 2, -1, -1, -1))[:, :, 0] * shown[:, None]
    return rows * w + columns, shown, offset


def inverse(shape: Float[Tensor, "V 2 2 h w"]) -> tuple[Float[Tensor, "V 2 2 h w"], Float[Tensor, "V h w"]]:
    """Of two by two numbers a cell, and their determinant."""
    (a, b), (c, d) = (row.unbind(1) for row in shape.unbind(1))
    det = a * d - b * c
    return torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1) / det[:, None, None], det


def _apparent(state: MemoryState, cameras: Cameras, grid: Readout) -> Float[Tensor, "V 2 2 h w"]:
    """How the patch of each cell's point appears, see `View.shape`; the identity where nothing is shown."""
    focal, k = _focal(cameras)[:, None, None], cameras.intrinsics_px
    surface = grid.visible & (grid.index >= 0) & (grid.depth_m < SKY_M)
    footprint = state.footprint_m.new_ones(grid.index.shape)
    if len(state):
        footprint = state.footprint_m[grid.index.clamp_min(0).long()]
    size = torch.where(surface, footprint * focal, SKY_M) / grid.depth_m.clamp_min(1e-3)
    size = torch.where(grid.visible, size, 1.0)[:, None, None].clamp(1.0 / LARGEST, LARGEST)
    scales = torch.stack([k[:, 0, 0], k[:, 1, 1]], 1)[..., None, None]
    places = camera_rays(cameras).movedim(3, 1)[:, :2] + grid.offset / scales
    steps = grid.tokens[:, -TANGENTS:].float().unflatten(1, (2, 3))
    steps = torch.einsum("vij,vkihw->vjkhw", cameras.world_from_camera[:, :3, :3], steps)
    shape = (steps[:, :2] - steps[:, 2:] * places[:, :, None]) * (scales[:, :, None] / focal[:, None, None]) * size
    facing = size * torch.eye(2, device=size.device)[:, :, None, None]
    det = inverse(shape)[1][:, None, None]
    return torch.where(grid.visible[:, None, None] & (det > FLATTEST * size.square()), shape, facing)


def _focal(cameras: Cameras) -> Float[Tensor, " V"]:
    return (cameras.intrinsics_px[:, 0, 0] * cameras.intrinsics_px[:, 1, 1]).sqrt()
