"""Depth of what nobody has seen: drawn, not averaged.

Where a picture was made up the most likely depth is that of a wall at a middling distance, in every direction: a cave.
True places are nearer here and go on there. So a small network draws. Told what the eyes think and how unsure they are,
what the memory shows around, and a noise that the world's seed fixes in space, it says how deep every cell is: near and
far as often as true places are. The memory keeps what was drawn, as it keeps all else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.projection import backproject, camera_rays, project
from mirage_env.layers import ResidualBlock
from mirage_env.perception.tiny import LOWEST_M, Perceived, floor_nearness
from mirage_env.types import SKY_M, Cameras, Readout

FAR_M = 20.0
"""What lies farther counts as this far: the sky behind a window is an opening like any other."""
LENGTHS_M = ((6.0, 16.0), (3.0, 8.0), (3.0, 8.0), (1.5, 4.0), (1.5, 4.0), (0.7, 2.0))
"""Wavelengths in each channel of noise: from a house to a piece of furniture."""
WAVES = 8
FEATURES = ("perceived", "doubt", "memory", "shown", "unseen", "floor", "ray_x", "ray_y", "down")
"""Channels beside the noise: ln metres, ln, ln metres, 0 or 1 twice, ln metres, and the viewing ray with its slope."""
FLOOR = 0.25
"""What is drawn lower than this share of the eyes' height is floor. A floor that is drawn nearer is a low obstacle, of
which dreams had twelve times as many as true scenes."""
SURFACE = math.log(2.0)
"""Neighbouring cells whose depths differ by less than this (ln) may be one surface, and so may cells of one column."""
KEPT = 0.25
"""So much (ln) a remembered cell is moved at most to stand upright with the rest of its column: what was upright when
it was drawn is so nearly, from everywhere, and what stands before a wall is another thing."""
BEHIND = 1.2
"""What is farther away than so many times what the given picture shows there is hidden in it."""
OUTSIDE_M = 8.0
"""What is drawn farther away than this lies behind a window. Few rooms go on so far, but much is seen through windows:
of what stands before a camera in true scenes less than a tenth is between 6 and 9 m away, and a fifth beyond."""
SILL_M = 0.9
"""How high the wall beneath a window is, which stops whoever walks."""
WALL_M = 3.0
"""How far away a window is where nothing stands beside it."""
STEEPEST = 0.8
"""Inverse depth changes by at most this share of itself within a cell, so that no plane ends beyond the horizon."""


@dataclass(frozen=True)
class DrawerConfig:
    """A U-Net of two levels over latent cells."""

    width: int = 64
    blocks: int = 2
    """Residual blocks on either side of the coarse level, which has one more."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8 or self.blocks < 1:
            raise InvalidValueError(f"need blocks and a width in multiples of 8, got {self.blocks} and {self.width}")


class DepthDrawer(nn.Module):
    """From `draw_inputs` to ln(depth / what the eyes think) in every cell."""

    def __init__(self, config: DrawerConfig):
        super().__init__()
        self.config, width = config, config.width
        self.stem = nn.Conv2d(len(FEATURES) + len(LENGTHS_M), width, 3, padding=1)
        self.encoder, self.decoder = (
            nn.Sequential(*(ResidualBlock(width) for _ in range(config.blocks))) for _ in range(2)
        )
        self.down, self.up = nn.Conv2d(width, width, 2, 2), nn.Conv2d(width, width, 1)
        self.middle = nn.Sequential(*(ResidualBlock(width) for _ in range(config.blocks + 1)))
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, inputs: Float[Tensor, "T k h w"]) -> Float[Tensor, "T h w"]:
        x = self.encoder(self.stem(inputs))
        height, width = x.shape[-2:]
        middle = self.up(self.middle(self.down(F.pad(x, (0, width % 2, 0, height % 2)))))
        x = x + F.interpolate(middle, scale_factor=2.0, mode="nearest")[..., :height, :width]
        return self.head(self.decoder(x))[:, 0].float()


def to_draw(visible: Bool[Tensor, "T h w"]) -> Bool[Tensor, "T h w"]:
    """Cells that the memory does not show, but for holes of one or two between those that it does: they belong to the
    surface around them."""
    around = F.max_pool2d(visible.float()[:, None], 3, 1, 1)
    return F.max_pool2d(-around, 3, 1, 1)[:, 0] == 0


def draw_features(
    seen: Perceived,
    cells: Bool[Tensor, "T h w"],
    shown_m: Float[Tensor, "T h w"],
    cameras: Cameras,
    floor_y: float,
) -> tuple[Float[Tensor, "T k h w"], Float[Tensor, "T 2 h w"]]:
    """The channels `FEATURES`, and where on the floor (x, z) what the eyes think lies, for the noise.

    `cells` are those `to_draw`; `shown_m` is the depth that the memory shows, metres, 0 for nothing; `cameras` are at
    pixel resolution, the floor is y = `floor_y`. Needs eyes that tell their doubt.
    """
    assert seen.doubt is not None
    visible, size = shown_m > 0, (shown_m.shape[1], shown_m.shape[2])
    grid = cameras.resized(size)
    rays = camera_rays(grid)

    def coarse(values: Float[Tensor, "T H W"]) -> Float[Tensor, "T h w"]:
        return F.interpolate(values[:, None].float(), size=size, mode="bilinear", antialias=True)[:, 0]

    perceived = coarse(seen.depth_m.clamp(max=FAR_M).log())
    features = [
        perceived,
        coarse(seen.doubt).clamp_min(1e-3).log(),
        torch.where(visible, shown_m.clamp(0.05, FAR_M).log(), 0.0),
        visible.float(),
        cells.float(),
        -floor_nearness(grid, rays, floor_y).clamp_min(1 / FAR_M).log(),
        rays[..., 0],
        rays[..., 1],
        torch.einsum("tj,thwj->thw", cameras.world_from_camera[:, 1, :3], rays),
    ]
    return torch.stack(features, 1), backproject(perceived.exp(), grid)[..., ::2].permute(0, 3, 1, 2)


def noise(places: Float[Tensor, "T 2 h w"], seeds: Sequence[int]) -> Float[Tensor, "T k h w"]:
    """Fields of mean 0 and variance 1 over the floor, one a channel, that the seed of each frame fixes in the world: so
    frames that see one place get one noise for it."""
    waves, phases = (torch.stack(x).to(places.device) for x in zip(*map(_field, seeds), strict=True))
    angles = torch.einsum("tkjc,tchw->tkjhw", waves, places) + phases[..., None, None]
    return math.sqrt(2 / WAVES) * angles.cos().sum(2)


@lru_cache(maxsize=1024)
def _field(seed: int) -> tuple[Float[Tensor, "k j 2"], Float[Tensor, "k j"]]:
    """Waves over the floor (radians a metre, along x and z), and where each begins."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    heading, phase = rng.uniform(0, 2 * math.pi, (2, len(LENGTHS_M), WAVES))
    shortest, longest = np.log(LENGTHS_M).T[:, :, None]
    number = 2 * math.pi / np.exp(rng.uniform(shortest, longest, heading.shape))
    waves = np.stack([number * np.cos(heading), number * np.sin(heading)], -1)
    return torch.from_numpy(waves.astype(np.float32)), torch.from_numpy(phase.astype(np.float32))


def made_up(
    log_depth: Float[Tensor, "T h w"], grid: Cameras, given_m: Float[Tensor, "1 h w"], given_grid: Cameras
) -> Bool[Tensor, "T h w"]:
    """Cells whose surface the given picture does not show: it lies out of its view, or behind what is seen there.

    `given_m` is the picture's depth, not finite where no surface that stays is seen, which hides nothing.
    """
    places = backproject(log_depth.exp(), grid)
    at, away = project(places.reshape(-1, 3), given_grid)
    height, width = given_m.shape[1:]
    x, y = at[0].floor().long().unbind(-1)
    inside = (away[0] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    hidden = away[0] > BEHIND * given_m[0, y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return (~inside | hidden).view_as(log_depth)


def middles(
    shown: Readout, told: dict[str, Float[Tensor, "T h w"]], grid: Cameras, eyes_m: Float[Tensor, "T 1 1"]
) -> Float[Tensor, "T h w"]:
    """ln depth in the middle of every cell of the surfaces that the memory shows; not finite where it shows none.

    A point lies anywhere in its cell, and half a cell is much depth on the floor and on a wall that is seen at a slant.
    So it is moved along the floor, or along the slope between it and the points beside it. Holes have the median of
    what is around them, in which the sky is farther away than all else.
    """
    surface = shown.visible & (shown.depth_m < SKY_M / 2)
    inverse = torch.where(surface, shown.depth_m.reciprocal(), torch.nan)
    for axis, offset in ((2, shown.offset[:, 0]), (1, shown.offset[:, 1])):
        inverse = inverse - _slope(inverse, axis, offset) * offset
    down = told["down"] + torch.einsum("tj,tjhw->thw", _tilt(grid), shown.offset)
    on_floor = (shown.depth_m * down > (1.0 - FLOOR) * eyes_m) & (told["floor"] < math.log(FAR_M))
    log_depth = torch.where(surface & on_floor, told["floor"], -inverse.log())
    log_depth = torch.where(shown.visible & ~surface, torch.inf, log_depth)
    height, width = log_depth.shape[1:]
    padded = F.pad(log_depth, (1, 1, 1, 1), value=math.nan)
    around = torch.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])
    return torch.where(shown.visible, log_depth, around.nanmedian(0).values)


def _tilt(grid: Cameras) -> Float[Tensor, "T 2"]:
    """By how much a ray falls from one cell to the next on its right, and to the next below it."""
    k = grid.intrinsics_px
    return grid.world_from_camera[:, 1, :2] / torch.stack([k[:, 0, 0], k[:, 1, 1]], 1)


def drawn(
    seen: Perceived,
    features: Float[Tensor, "T k h w"],
    off: Float[Tensor, "T h w"],
    shown: Readout,
    grid: Cameras,
    given: tuple[Float[Tensor, "1 h w"], Cameras],
    eyes_m: Float[Tensor, " T"],
    max_depth_m: float,
) -> Perceived:
    """What was seen, but surfaces that stand still wherever the given picture shows nothing: `off` (ln, the drawer's
    answer to `features`) farther than the eyes think in the cells to draw, what the memory shows in the others, as
    `_standing` has both; at most `max_depth_m` metres.

    `given` is the picture's depth with its camera, see `made_up`; it and `grid` are at the resolution of cells. Cameras
    are `eyes_m` above the floor. Each cell holds one piece of a plane, see `planes`: what the eyes made of a picture
    that was made up would break it, the memory keeps no cell that holds two surfaces, and a wall that is a little
    elsewhere at every look becomes a heap of rubble on the map.
    """
    told, size = dict(zip(FEATURES, features.unbind(1), strict=True)), seen.depth_m.shape[1:]
    eyes = eyes_m[:, None, None]
    cells, memory = told["unseen"] > 0, middles(shown, told, grid, eyes)
    points = torch.where(told["shown"] > 0, told["memory"], memory)  # a foot of a wall is not the floor behind it
    kept = ~cells & memory.isfinite() & made_up(points.nan_to_num(), grid, *given) & (eyes > LOWEST_M)
    known = torch.where(told["shown"] > 0, told["memory"], told["perceived"])
    log_depth = torch.where(cells, told["perceived"] + off, torch.where(kept, memory, known))
    made = cells | kept
    log_depth = torch.where(made, _standing(told, cells, made, log_depth, eyes), log_depth)
    level = made & (log_depth == told["floor"]) & (told["floor"] < math.log(FAR_M))
    new, old = (_enlarged(where.float(), size) > 0 for where in (cells, kept))
    inside = new | (old & ~seen.dynamic)  # something may move before what is remembered
    depth = planes(log_depth, size, level, _tilt(grid) / eyes_m.clamp_min(LOWEST_M)[:, None])
    depth = torch.where(inside, depth, seen.depth_m).clamp(max=max_depth_m)
    return replace(seen, depth_m=depth, sky=seen.sky & ~inside, dynamic=seen.dynamic & ~new)


def _standing(
    told: dict[str, Float[Tensor, "T h w"]],
    cells: Bool[Tensor, "T h w"],
    made: Bool[Tensor, "T h w"],
    log_depth: Float[Tensor, "T h w"],
    eyes_m: Float[Tensor, "T 1 1"],
) -> Float[Tensor, "T h w"]:
    """What was made up, made into what places consist of: a level floor, things that stand upright on it, and windows.

    In every column the cells `made` above the floor share the median of their distances, unless theirs is far from it,
    as behind a window or before a wall; a slope between two of them would stop whoever walks. What is `OUTSIDE_M`
    away in `cells`, drawn just now, is as far as can be, and beneath it there is a sill, as far away as what stands
    beside it.
    """
    floor = torch.where(told["floor"] < math.log(FAR_M), told["floor"], torch.inf)
    nearly = floor + math.log(1.0 - FLOOR)
    level = 0.5 * (1.0 + told["ray_x"] ** 2 + told["ray_y"] ** 2 - told["down"] ** 2).log()
    above = made & (log_depth < nearly)
    away = torch.where(above, log_depth + level, torch.nan).nanmedian(1, keepdim=True).values - level
    near = torch.where(cells, SURFACE, KEPT)
    thing = torch.where(above & ((away - log_depth).abs() < near), away, log_depth)
    stands = thing < nearly
    beyond = cells & stands & (thing + level > math.log(OUTSIDE_M))
    window = beyond.any(1, keepdim=True)

    solid = stands & ~window & (thing + level <= math.log(OUTSIDE_M))
    walls = torch.where(solid, thing + level, torch.nan).nanmedian(1).values
    beside = 2 * (walls.shape[1] // 4) + 1
    nearest = -F.max_pool1d(torch.where(walls.isnan(), -torch.inf, -walls), beside, 1, beside // 2)
    wall = torch.where(nearest.isinf(), math.log(WALL_M), nearest)[:, None] - level
    sill = cells & window & (eyes_m - wall.exp() * told["down"] < SILL_M)
    depth = torch.where(stands, torch.where(beyond, math.log(FAR_M), thing), floor)
    return torch.where(sill, torch.minimum(depth, wall), depth)


def planes(
    log_depth: Float[Tensor, "T h w"],
    size: Sequence[int],
    floor: Bool[Tensor, "T h w"] | None = None,
    tilt: Float[Tensor, "T 2"] | None = None,
) -> Float[Tensor, "T H W"]:
    """z-depth in metres of `size` pixels, in every cell that of a plane which is as deep as said in its middle.

    Inverse depth is affine in the picture on any plane. Its slope in a cell is the lesser of those to the cells on
    either side, and none where they disagree in sign (minmod, as where shocks are computed): a wall that was drawn in
    pieces is straight, and edges lie between cells. In cells of the `floor` it is `tilt`, to the right and down.
    """
    inverse = (-log_depth).exp()
    total = _enlarged(inverse, size)
    for axis in (1, 2):
        slope = _slope(inverse, axis)
        if floor is not None and tilt is not None:
            steepest = STEEPEST * inverse
            slope = torch.where(floor, tilt[:, 2 - axis, None, None].clamp(-steepest, steepest), slope)
        cell_px = size[axis - 1] // inverse.shape[axis]
        within = (torch.arange(size[axis - 1], device=inverse.device) % cell_px + 0.5) / cell_px - 0.5
        total = total + _enlarged(slope, size) * (within[:, None] if axis == 1 else within)
    return total.clamp_min(1e-4).reciprocal()


def _slope(
    inverse: Float[Tensor, "T h w"], axis: int, offset: Float[Tensor, "T h w"] | None = None
) -> Float[Tensor, "T h w"]:
    """Of inverse depth a cell, by minmod. A neighbour on another surface has no say, nor has one of which nothing is
    known; where one is left its word counts. Points lie `offset` cells from the middles of theirs."""
    count = inverse.shape[axis]
    first, second = inverse.narrow(axis, 0, count - 1), inverse.narrow(axis, 1, count - 1)
    apart = 1.0 if offset is None else (1.0 + offset.diff(dim=axis)).clamp_min(0.25)
    one = (first.log() - second.log()).abs() < SURFACE
    steps = torch.where(one, (second - first) / apart, torch.nan)
    none = torch.full_like(inverse.narrow(axis, 0, 1), torch.nan)
    before, after = torch.cat([none, steps], axis), torch.cat([steps, none], axis)
    before, after = torch.where(before.isnan(), after, before), torch.where(after.isnan(), before, after)
    lesser = torch.where(before.abs() < after.abs(), before, after)
    return torch.where(before * after > 0, lesser, 0.0).clamp(-STEEPEST * inverse, STEEPEST * inverse)


def _enlarged(cells: Float[Tensor, "T h w"], size: Sequence[int]) -> Float[Tensor, "T H W"]:
    return F.interpolate(cells[:, None], size=tuple(size), mode="nearest")[:, 0]
