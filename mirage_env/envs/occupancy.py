"""What is free and what is solid, in voxels, from pixel depth: the ground for maps, collisions and coverage.

A grid of bytes around the world's origin, `EXTENT_M` to each side and from a little below the floor to 2.95 m above
it; what lies outside is not kept. It is cut into 64 tiles of 3.2 x 3.2 m and 32 kB, which appear when something in them
is seen; a new map shares every tile that it did not change with the map before, so that forks cost what they see anew,
and no world ever exceeds 2 MB. Each byte is the state of a small automaton: evidence from -4 (free) to 4 (solid), moved
by one a frame, and a bit that says that it was once seen twice alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from mirage_env.envs.floor_plan import FloorPlan
from mirage_env.errors import UnknownNameError
from mirage_env.types import Frames

VOXEL_M = 0.1
EXTENT_M = 12.8
RANGE_M = 8.0
"""How far along a ray space is carved and surfaces are marked; depth beyond it is too coarse for 10 cm."""
BODY_RADIUS_M = 0.2
BODY_M = (0.2, 1.8)
"""The body that must fit: an upright cylinder between these heights above the floor."""
COLLISION_MODES = ("slide", "stop", "none", "seen")
UNKNOWN, FREE, SOLID = 0, 1, 2
"""Values of `top_down_map` and `map_around`."""
AROUND_CELLS, AROUND_CELL_M = 32, 0.25
"""`map_around`: cells a side, and metres a cell."""

_SIDE = round(2 * EXTENT_M / VOXEL_M)
_LAYERS = 32
_TILE = 32
_TILES = _SIDE // _TILE
_TILE_BYTES = _TILE * _TILE * _LAYERS
_SHAPE = np.array([[_SIDE], [_SIDE], [_LAYERS]], np.float32)
_FLOOR_LAYER = 29
_BODY_LAYERS = slice(_FLOOR_LAYER - round(BODY_M[1] / VOXEL_M) + 1, _FLOOR_LAYER - round(BODY_M[0] / VOXEL_M))
_SURFACE_GRID, _RAY_GRID = 64, 32
"""At most this many pixels a side are used as surface points, and as rays: neighbours fall into the same voxels."""


def _automaton() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The byte after a free sighting, the byte after a solid one, and what each byte means."""
    byte = np.arange(256, dtype=np.uint8)
    evidence = (byte & 15).astype(np.int16)
    evidence = np.where(evidence > 4, evidence - 9, evidence).clip(
        -4, 4
    )  # low bits: 0, 1 to 4, then 5 to 8 for -4 to -1

    def after(change: int) -> np.ndarray:
        new = (evidence + change).clip(-4, 4)
        seen_twice = (byte & _SEEN_TWICE) | np.where((abs(new) >= 2), _SEEN_TWICE, 0)
        return (np.where(new < 0, new + 9, new) | seen_twice).astype(np.uint8)

    meaning = np.where(evidence > 0, SOLID, np.where(evidence < 0, FREE, UNKNOWN)).astype(np.uint8)
    return after(-1), after(1), meaning


_SEEN_TWICE = np.uint8(16)
_AFTER_FREE, _AFTER_SOLID, _MEANING = _automaton()


@dataclass(frozen=True)
class Occupancy:
    """A bounded voxel map of one world; a value: `seen` returns a new one."""

    tiles: tuple[UInt8[np.ndarray, "32 32 32"] | None, ...]
    """Voxels (x, z, y) of tile (i, j) at i * 8 + j; None where nothing was seen. Never changed in place."""
    floor_y_m: float
    """World height of the floor (+y down); it runs through the middle of its layer of voxels."""
    known_voxels: int = 0
    """How many voxels were ever seen twice alike, free or solid; it never falls."""

    @classmethod
    def empty(cls, floor_y_m: float) -> Occupancy:
        return cls((None,) * _TILES**2, floor_y_m)

    @property
    def known_m3(self) -> float:
        """Volume of `known_voxels`: the coverage."""
        return self.known_voxels * VOXEL_M**3

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles that exist, shared or not."""
        return sum(tile.nbytes for tile in self.tiles if tile is not None)

    @property
    def corner_m(self) -> Float[np.ndarray, "3"]:
        """World (x, z, y) of the grid's first corner."""
        top = self.floor_y_m - (_FLOOR_LAYER + 0.5) * VOXEL_M
        return np.array([-EXTENT_M, -EXTENT_M, top], np.float32)

    @property
    def voxels(self) -> UInt8[np.ndarray, "X Z Y"]:
        """The whole grid, in one fresh array."""
        return self._window(0, 0, _SIDE, _SIDE, slice(None))

    def seen(self, frames: Frames) -> Occupancy:
        """The map after `frames`: space before the surface is carved free, the surface is marked solid.

        Sky carves and marks nothing, moving things are not marked, depth that is not positive and finite is ignored.
        """
        sightings = [self._sightings(frames, index) for index in range(len(frames))]
        touched = np.zeros(_TILES**2, bool)
        for sighting in sightings:
            for numbers in sighting:
                touched[numbers // _TILE_BYTES] = True
        chosen = np.flatnonzero(touched)
        if not chosen.size:
            return self
        rows = np.empty((chosen.size, _TILE_BYTES), np.uint8)
        for row, number in zip(rows, chosen, strict=True):
            tile = self.tiles[number]
            row[:] = 0 if tile is None else tile.reshape(-1)
        flat = rows.reshape(-1)
        shift = (np.cumsum(touched) - 1 - np.arange(_TILES**2)).astype(np.int32) * _TILE_BYTES
        news = 0
        for sighting in sightings:
            free, solid = (numbers + shift[numbers // _TILE_BYTES] for numbers in sighting)
            before_free, before_solid = flat[free], flat[solid]
            flat[free] = after_free = _AFTER_FREE[before_free]
            flat[solid] = after_solid = _AFTER_SOLID[before_solid]  # in one frame a surface outweighs the ray past it
            changed = np.concatenate(
                [
                    free[(after_free & ~before_free & _SEEN_TWICE) > 0],
                    solid[(after_solid & ~before_solid & _SEEN_TWICE) > 0],
                ]
            )
            if changed.size:
                changed = np.unique(changed)
                news += int(np.count_nonzero(flat[changed] & _SEEN_TWICE))
        tiles = list(self.tiles)
        for number, tile in zip(chosen, flat.reshape(-1, _TILE, _TILE, _LAYERS), strict=True):
            tiles[number] = tile.copy()
        return replace(self, tiles=tuple(tiles), known_voxels=self.known_voxels + news)

    def overlap(self, x_m: float, z_m: float) -> int:
        """How many solid voxels a body at (x, z) would share. Unseen voxels are not solid."""
        return self._solids((x_m, z_m), (x_m, z_m)).overlap(x_m, z_m)

    def move(self, start: tuple[float, float], target: tuple[float, float], mode: str) -> tuple[float, float]:
        """Where a body at `start` gets to on its straight way to `target`; (x, z) in metres.

        `stop` halts before the first solid voxel, `slide` goes on along the axis that is still free, `none` goes
        through; `seen` slides, and where nothing was seen is solid, too: nobody walks backwards through a wall that is
        not generated yet. A body that stands in solid voxels already (a depth error, say) may move wherever that gets
        no worse.
        Raises UnknownNameError for another mode.
        """
        if mode not in COLLISION_MODES:
            raise UnknownNameError("collision mode", mode, COLLISION_MODES)
        dx, dz = target[0] - start[0], target[1] - start[1]
        pieces = math.ceil(math.hypot(dx, dz) / (0.5 * VOXEL_M))
        if mode == "none" or pieces == 0:
            return target
        around = self._solids(start, target, unseen=mode == "seen")
        if not around.count.any():
            return target
        ways = [(dx / pieces, dz / pieces)]
        if mode != "stop":
            ways += [(ways[0][0], 0.0), (0.0, ways[0][1])]
        (x, z), hindered = start, False
        shared = around.overlap(x, z)
        for _ in range(pieces):
            for way_x, way_z in ways:
                ahead = around.overlap(x + way_x, z + way_z)
                if ahead <= shared:
                    x, z, shared = x + way_x, z + way_z, ahead
                    hindered |= (way_x, way_z) != ways[0]
                    break
            else:
                return x, z
        return (x, z) if hindered else target

    def top_down_map(self) -> UInt8[np.ndarray, "Z X"]:
        """UNKNOWN, FREE or SOLID for every column at body height; row 0 is farthest along +z, column 0 is -x."""
        return self._columns().T[::-1].copy()

    def map_around(self, x_m: float, z_m: float, yaw_rad: float) -> UInt8[np.ndarray, "32 32"]:
        """UNKNOWN, FREE or SOLID as a body at (x, z) sees it from above: itself in the middle, ahead is up.

        8 x 8 m. A cell is looked at in four places; one solid place makes it solid, else one free place free.
        """
        side = 2 * AROUND_CELLS
        away = (np.arange(side) + 0.5 - AROUND_CELLS) * (AROUND_CELL_M / 2)
        ahead, right = -away[:, None], away
        x = x_m + math.sin(yaw_rad) * ahead + math.cos(yaw_rad) * right
        z = z_m + math.cos(yaw_rad) * ahead - math.sin(yaw_rad) * right
        cells = np.floor((np.stack([x, z]) + EXTENT_M) / VOXEL_M).astype(int)
        inside = ((cells >= 0) & (cells < _SIDE)).all(0)
        there = np.where(inside, self._columns()[tuple(cells.clip(0, _SIDE - 1))], np.uint8(UNKNOWN))
        return there.reshape(AROUND_CELLS, 2, AROUND_CELLS, 2).max((1, 3))

    def plan(self, through_unknown: bool) -> FloorPlan:
        """Where a body can stand: at no solid column and, unless `through_unknown`, only where something was seen."""
        columns = self._columns()
        reach = math.ceil(BODY_RADIUS_M / VOXEL_M)
        solid = np.pad(columns == SOLID, reach)
        blocked = np.zeros_like(columns, bool)
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                if math.hypot(i, j) * VOXEL_M <= BODY_RADIUS_M:
                    blocked |= solid[reach + i : reach + i + _SIDE, reach + j : reach + j + _SIDE]
        fits = ~blocked if through_unknown else ~blocked & (columns == FREE)
        return FloorPlan(fits, (-EXTENT_M, -EXTENT_M), VOXEL_M)

    def _columns(self) -> UInt8[np.ndarray, "X Z"]:
        """UNKNOWN, FREE or SOLID for every column at body height."""
        columns = np.zeros((_TILES, _TILE, _TILES, _TILE), np.uint8)
        for number, tile in enumerate(self.tiles):
            if tile is not None:
                meaning = _MEANING[tile[:, :, _BODY_LAYERS]]
                free = (meaning == FREE).any(2) * np.uint8(FREE)
                columns[number // _TILES, :, number % _TILES] = np.where((meaning == SOLID).any(2), SOLID, free)
        return columns.reshape(_SIDE, _SIDE)

    def _window(self, left: int, near: int, right: int, far: int, layers: slice) -> UInt8[np.ndarray, "x z y"]:
        """The bytes of columns left to right - 1 and near to far - 1; all must lie in the grid."""
        window = np.zeros((right - left, far - near, len(range(*layers.indices(_LAYERS)))), np.uint8)
        for i in range(left // _TILE, -(-right // _TILE)):
            for j in range(near // _TILE, -(-far // _TILE)):
                if (tile := self.tiles[i * _TILES + j]) is not None:
                    x, z = i * _TILE, j * _TILE
                    low_x, low_z = max(left, x), max(near, z)
                    piece = tile[low_x - x : right - x, low_z - z : far - z, layers]
                    window[low_x - left :, low_z - near :][: piece.shape[0], : piece.shape[1]] = piece
        return window

    def _solids(self, start: tuple[float, float], target: tuple[float, float], unseen: bool = False) -> _Solids:
        """The solid voxels of every column that a body may touch on its way; `unseen` adds one where nothing was
        seen."""
        reach = math.ceil(BODY_RADIUS_M / VOXEL_M) + 1
        low, high = np.minimum(start, target), np.maximum(start, target)
        left, near = np.clip(np.floor((low + EXTENT_M) / VOXEL_M) - reach, 0, _SIDE).astype(int).tolist()
        right, far = np.clip(np.floor((high + EXTENT_M) / VOXEL_M) + reach + 1, 0, _SIDE).astype(int).tolist()
        window = self._window(left, near, max(left, right), max(near, far), _BODY_LAYERS)
        meaning = _MEANING[window]
        count = (meaning == SOLID).sum(2)
        if unseen:
            count += (meaning == UNKNOWN).all(2)
        return _Solids(count, left + np.arange(len(count)) + 0.5, near + np.arange(count.shape[1]) + 0.5)

    def _sightings(self, frames: Frames, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Voxel numbers, tile by tile (with repeats), that one frame saw free, and that it saw solid."""
        world_from_camera = frames.cameras.world_from_camera[index].numpy()
        grid_from_camera = world_from_camera[[0, 2, 1], :3] * np.float32(1 / VOXEL_M)
        start = ((world_from_camera[[0, 2, 1], 3] - self.corner_m) * np.float32(1 / VOXEL_M))[:, None]
        lens = frames.cameras.intrinsics_px[index].numpy().tobytes(), frames.cameras.size

        cut, rays, _ = _rays(*lens, _SURFACE_GRID)
        depth, sky, dynamic = (x.numpy()[index][cut].ravel() for x in (frames.depth_m, frames.sky, frames.dynamic))
        marked = np.flatnonzero((depth > 0) & (depth < RANGE_M) & ~sky & ~dynamic)
        solid = _numbers(start + grid_from_camera @ (rays[:, marked] * depth[marked]))

        cut, rays, lengths = _rays(*lens, _RAY_GRID)
        depth, sky = (x.numpy()[index][cut].ravel() for x in (frames.depth_m, frames.sky))
        with np.errstate(invalid="ignore"):
            depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0.0))
        reach = np.where(sky, np.float32(RANGE_M), depth) * lengths * np.float32(1 / VOXEL_M)
        reach = reach.clip(1, RANGE_M / VOXEL_M) - 1  # the last voxel belongs to the surface
        ahead = (grid_from_camera @ rays) * (VOXEL_M / lengths)  # one voxel a sample along the ray
        if ((start > 0) & (start < _SHAPE)).all():  # most rays leave through floor or ceiling: no samples out there
            with np.errstate(divide="ignore"):
                reach = np.minimum(reach, (np.where(ahead > 0, _SHAPE - start, start) / abs(ahead)).min(0) + 0.5)
        samples = reach.astype(np.int32)
        first = np.cumsum(samples) - samples
        nth = np.arange(samples.sum(), dtype=np.float32) - np.repeat((first - 0.5).astype(np.float32), samples)
        points = np.repeat(ahead, samples, axis=1)
        points *= nth
        points += start
        return _numbers(points), solid


@dataclass(frozen=True)
class _Solids:
    """How many solid voxels the columns of a window hold, and where their centres are (voxels from the corner)."""

    count: np.ndarray
    x: np.ndarray
    z: np.ndarray

    def overlap(self, x_m: float, z_m: float) -> int:
        dx, dz = self.x - (x_m + EXTENT_M) / VOXEL_M, self.z - (z_m + EXTENT_M) / VOXEL_M
        inside = (dx * dx)[:, None] + dz * dz < (BODY_RADIUS_M / VOXEL_M) ** 2
        return int(self.count[inside].sum())


@lru_cache(maxsize=8)
def _rays(intrinsics: bytes, size: tuple[int, int], most: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Every k-th pixel, at most `most` a side: where, its ray (3, N) in the camera (z is 1), and the ray's length."""
    height, width = size
    step = math.ceil(max(height, width) / most)
    cut = slice(step // 2, None, step), slice(step // 2, None, step)
    rows, columns = np.arange(height)[cut[0]], np.arange(width)[cut[1]]
    pixels = np.ones((3, rows.size, columns.size))
    pixels[0], pixels[1] = columns + 0.5, rows[:, None] + 0.5
    matrix = np.frombuffer(intrinsics, np.float32).reshape(3, 3).astype(np.float64)
    rays = (np.linalg.inv(matrix) @ pixels.reshape(3, -1)).astype(np.float32)
    return cut, rays, np.sqrt((rays * rays).sum(0))


def _numbers(points: np.ndarray) -> np.ndarray:
    """Voxel numbers, tile by tile, of the points (3, N), in voxels x, z, y, that lie inside the grid."""
    inside = (points.min(1) >= 0).all() and (points.max(1)[:, None] < _SHAPE).all() if points.size else True
    if not inside:
        points = points[:, ((points >= 0) & (points < _SHAPE)).all(0)]
    x, z, y = points.astype(np.int32)
    # ((x // 32 * 8 + z // 32) * 32 + x % 32) * 32 + z % 32) * 32 + y, in shifts
    number = (x >> 5 << 18) | (z >> 5 << 15)
    number |= (x & 31) << 10
    number |= (z & 31) << 5
    number |= y
    return number
