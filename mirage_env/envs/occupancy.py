"""What is free and what is solid, in voxels, from pixel depth: the ground for maps, collisions and coverage.

A dense grid of bytes around the world's origin, `EXTENT_M` to each side and from a little below the floor to 2.95 m
above it; what lies outside is not kept. Dense, because a world is 2 MB whatever happens, a query is a slice, and the
copy that makes it a value costs a tenth of a millisecond. Each byte is the state of a small automaton: evidence from
-4 (free) to 4 (solid), moved by one a frame, and a bit that says that it was once seen twice alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from mirage_env.errors import UnknownNameError
from mirage_env.types import Frames

VOXEL_M = 0.1
EXTENT_M = 12.8
RANGE_M = 8.0
"""How far along a ray space is carved and surfaces are marked; depth beyond it is too coarse for 10 cm."""
BODY_RADIUS_M = 0.2
BODY_M = (0.2, 1.8)
"""The body that must fit: an upright cylinder between these heights above the floor."""
COLLISION_MODES = ("slide", "stop", "none")
UNKNOWN, FREE, SOLID = 0, 1, 2
"""Values of `top_down_map`."""

_SIDE = round(2 * EXTENT_M / VOXEL_M)
_LAYERS = 32
_FLOOR_LAYER = 29
_BODY_LAYERS = slice(_FLOOR_LAYER - round(BODY_M[1] / VOXEL_M) + 1, _FLOOR_LAYER - round(BODY_M[0] / VOXEL_M))
_COLOURS = np.array([(150, 150, 150), (255, 255, 255), (0, 0, 0)], np.uint8)
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

    voxels: UInt8[np.ndarray, "X Z Y"]
    floor_y_m: float
    """World height of the floor (+y down); it runs through the middle of its layer of voxels."""
    known_voxels: int = 0
    """How many voxels were ever seen twice alike, free or solid; it never falls."""

    @classmethod
    def empty(cls, floor_y_m: float) -> Occupancy:
        return cls(np.zeros((_SIDE, _SIDE, _LAYERS), np.uint8), floor_y_m)

    @property
    def known_m3(self) -> float:
        """Volume of `known_voxels`: the coverage."""
        return self.known_voxels * VOXEL_M**3

    @property
    def corner_m(self) -> Float[np.ndarray, "3"]:
        """World (x, z, y) of the grid's first corner."""
        top = self.floor_y_m - (_FLOOR_LAYER + 0.5) * VOXEL_M
        return np.array([-EXTENT_M, -EXTENT_M, top], np.float32)

    def seen(self, frames: Frames) -> Occupancy:
        """The map after `frames`: space before the surface is carved free, the surface is marked solid.

        Sky carves and marks nothing, moving things are not marked, depth that is not positive and finite is ignored.
        """
        voxels = self.voxels.copy()
        flat = voxels.reshape(-1)
        news = 0
        for index in range(len(frames)):
            free, solid = self._sightings(frames, index)
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
        return replace(self, voxels=voxels, known_voxels=self.known_voxels + news)

    def overlap(self, x_m: float, z_m: float) -> int:
        """How many solid voxels a body at (x, z) would share. Unseen voxels are not solid."""
        reach = math.ceil(BODY_RADIUS_M / VOXEL_M) + 1
        column, row = (x_m + EXTENT_M) / VOXEL_M, (z_m + EXTENT_M) / VOXEL_M
        left, near = max(0, int(column) - reach), max(0, int(row) - reach)
        block = self.voxels[left : int(column) + reach + 1, near : int(row) + reach + 1, _BODY_LAYERS]
        if not block.size:
            return 0
        solid = (_MEANING[block] == SOLID).sum(2)
        dx = left + np.arange(block.shape[0]) + 0.5 - column
        dz = near + np.arange(block.shape[1]) + 0.5 - row
        inside = dx[:, None] ** 2 + dz[None] ** 2 < (BODY_RADIUS_M / VOXEL_M) ** 2
        return int(solid[inside].sum())

    def move(self, start: tuple[float, float], target: tuple[float, float], mode: str) -> tuple[float, float]:
        """Where a body at `start` gets to on its straight way to `target`; (x, z) in metres.

        `stop` halts before the first solid voxel, `slide` goes on along the axis that is still free, `none` goes
        through. A body that stands in solid voxels already (a depth error, say) may move wherever that gets no worse.
        Raises UnknownNameError for another mode.
        """
        if mode not in COLLISION_MODES:
            raise UnknownNameError("collision mode", mode, COLLISION_MODES)
        dx, dz = target[0] - start[0], target[1] - start[1]
        pieces = math.ceil(math.hypot(dx, dz) / (0.5 * VOXEL_M))
        if mode == "none" or pieces == 0:
            return target
        ways = [(dx / pieces, dz / pieces)]
        if mode == "slide":
            ways += [(ways[0][0], 0.0), (0.0, ways[0][1])]
        (x, z), hindered = start, False
        shared = self.overlap(x, z)
        for _ in range(pieces):
            for way_x, way_z in ways:
                ahead = self.overlap(x + way_x, z + way_z)
                if ahead <= shared:
                    x, z, shared = x + way_x, z + way_z, ahead
                    hindered |= (way_x, way_z) != ways[0]
                    break
            else:
                return x, z
        return (x, z) if hindered else target

    def top_down_map(self) -> UInt8[np.ndarray, "Z X"]:
        """UNKNOWN, FREE or SOLID for every column at body height; row 0 is farthest along +z, column 0 is -x."""
        meaning = _MEANING[self.voxels[:, :, _BODY_LAYERS]]
        columns = np.where((meaning == SOLID).any(2), SOLID, (meaning == FREE).any(2) * FREE)
        return columns.astype(np.uint8).T[::-1].copy()

    def drawing(self, x_m: float, z_m: float, yaw: float) -> UInt8[np.ndarray, "Z X 3"]:
        """The map in grey (unknown), white (free) and black (solid), a red body at (x, z), its heading in blue."""
        picture = _COLOURS[self.top_down_map()]
        for ahead, colour in ((0.5, (40, 90, 230)), (0.4, (40, 90, 230)), (0.3, (40, 90, 230)), (0.0, (220, 40, 40))):
            column = int((x_m + ahead * math.sin(yaw) + EXTENT_M) / VOXEL_M)
            row = _SIDE - 1 - int((z_m + ahead * math.cos(yaw) + EXTENT_M) / VOXEL_M)
            radius = 0 if ahead else 1
            if radius <= column < _SIDE - radius and radius <= row < _SIDE - radius:
                picture[row - radius : row + radius + 1, column - radius : column + radius + 1] = colour
        return picture

    def _sightings(self, frames: Frames, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Flat voxel numbers (with repeats) that one frame saw free, and that it saw solid."""
        centre = frames.cameras.world_from_camera[index, :3, 3].numpy()
        start = ((centre[[0, 2, 1]] - self.corner_m) / np.float32(VOXEL_M))[:, None]

        rays, depth, sky, dynamic = _pixels(frames, index, _SURFACE_GRID)
        marked = np.flatnonzero((depth > 0) & (depth < RANGE_M) & ~sky & ~dynamic)
        solid = _numbers(start + rays[:, marked] * depth[marked])

        rays, depth, sky, _ = _pixels(frames, index, _RAY_GRID)
        voxels_a_metre = np.sqrt((rays * rays).sum(0))
        length = np.where(sky, RANGE_M, depth) * voxels_a_metre
        samples = (length.clip(1, RANGE_M / VOXEL_M) - 1).astype(np.int32)  # the last voxel belongs to the surface
        nth = np.arange(samples.sum(), dtype=np.float32) - np.repeat(
            (np.cumsum(samples) - samples - 0.5).astype(np.float32), samples
        )
        free = _numbers(start + np.repeat(rays / voxels_a_metre, samples, axis=1) * nth)
        return free, solid


def _pixels(frames: Frames, index: int, most: int) -> tuple[np.ndarray, ...]:
    """Every k-th pixel, at most `most` a side: ray (x, z, y; voxels a metre), depth (0: none), sky, dynamic."""
    height, width = frames.cameras.size
    step = math.ceil(max(height, width) / most)
    cut = (index, slice(step // 2, None, step), slice(step // 2, None, step))
    depth, sky, dynamic = (x.numpy()[cut].ravel() for x in (frames.depth_m, frames.sky, frames.dynamic))
    columns, rows = np.arange(width)[cut[2]], np.arange(height)[cut[1]]
    pixels = np.ones((3, rows.size, columns.size), np.float32)
    pixels[0], pixels[1] = columns + 0.5, rows[:, None] + 0.5
    rotation = frames.cameras.world_from_camera[index, :3, :3].numpy()
    grid_from_pixel = (rotation @ np.linalg.inv(frames.cameras.intrinsics_px[index].numpy()))[[0, 2, 1]] / VOXEL_M
    rays = grid_from_pixel.astype(np.float32) @ pixels.reshape(3, -1)
    return rays, np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0.0)), sky, dynamic


def _numbers(points: np.ndarray) -> np.ndarray:
    """Flat voxel numbers of the points (3, N), in voxels x, z, y, that lie inside the grid."""
    x, z, y = np.floor(points, out=points).astype(np.int32)
    inside = (x >= 0) & (x < _SIDE) & (z >= 0) & (z < _SIDE) & (y >= 0) & (y < _LAYERS)
    numbers = (x * _SIDE + z) * _LAYERS + y
    return numbers if inside.all() else numbers[inside]
