"""The map as a picture for people: free, solid and unknown ground, the path, the camera and the goal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from mirage_env.envs.floor_plan import Spot
from mirage_env.envs.occupancy import EXTENT_M, FREE, SOLID, VOXEL_M

_UNKNOWN, _FREE, _SOLID = (226, 228, 233), (253, 253, 251), (47, 54, 66)
_LINES, _PATH, _CAMERA, _GOAL, _HALO = (60, 70, 90, 22), (42, 157, 143), (231, 111, 81), (214, 40, 90), (255, 255, 255)
_LEAST_M = 6.0
"""Width of the smallest window."""
_FINER = 3
"""Drawn so many times larger and reduced: smooth edges."""
LEAST_SIDE_PX = 384


def draw_map(
    columns: UInt8[np.ndarray, "Z X"],
    body: tuple[float, float, float],
    *,
    fov_rad: float,
    trail: Sequence[Spot] = (),
    goal: Spot | None = None,
    side_px: int = LEAST_SIDE_PX,
) -> UInt8[np.ndarray, "S S 3"]:
    """The part of `Occupancy.top_down_map` that is known, seen from above, +z (the first heading) up.

    White is free, dark is solid, grey is unknown; a line every metre; the path (`trail`, (x, z) in metres) in green,
    the camera at `body` (x, z, yaw) in orange with its field of view, the goal in red. The window is square and grows
    in steps of a metre, so that a video of it is calm.
    """
    left, near, width_m = _window(columns, [(body[0], body[1]), *trail, *([goal] if goal else [])])
    side = side_px * _FINER
    scale = side / width_m

    def at(x: float, z: float) -> tuple[float, float]:
        return (x - left) * scale, side - (z - near) * scale

    index = np.full(256, 0, np.uint8)
    index[FREE], index[SOLID] = 1, 2
    ground = Image.fromarray(np.array([_UNKNOWN, _FREE, _SOLID], np.uint8)[index[columns]])
    height = columns.shape[0]
    box = (
        (left + EXTENT_M) / VOXEL_M,
        height - (near + width_m + EXTENT_M) / VOXEL_M,
        (left + width_m + EXTENT_M) / VOXEL_M,
        height - (near + EXTENT_M) / VOXEL_M,
    )
    picture = ground.transform(
        (side, side), Image.Transform.EXTENT, box, Image.Resampling.NEAREST, fillcolor=_UNKNOWN
    ).convert("RGBA")

    glass = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(glass)
    for metre in range(math.ceil(min(left, near)), math.ceil(max(left, near) + width_m) + 1):
        pen.line([at(metre, near), at(metre, near + width_m)], _LINES, _FINER)
        pen.line([at(left, metre), at(left + width_m, metre)], _LINES, _FINER)
    x, z, yaw = body
    centre, reach = at(x, z), 1.5 * scale
    turn = math.degrees(yaw) - 90.0
    round_ = [centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach]
    pen.pieslice(round_, turn - math.degrees(fov_rad) / 2, turn + math.degrees(fov_rad) / 2, (*_CAMERA, 70))
    picture = Image.alpha_composite(picture, glass)

    pen = ImageDraw.Draw(picture)
    if len(trail) > 1:
        line = [at(*spot) for spot in trail]
        pen.line(line, _HALO, round(0.13 * scale), joint="curve")
        pen.line(line, _PATH, round(0.07 * scale), joint="curve")
    if trail:
        _disc(pen, at(*trail[0]), 0.09 * scale, _PATH, 0.03 * scale)
    if goal:
        _disc(pen, at(*goal), 0.2 * scale, _GOAL, 0.05 * scale)
        _disc(pen, at(*goal), 0.07 * scale, _HALO, 0.0)
    _disc(pen, centre, 0.16 * scale, _CAMERA, 0.04 * scale)
    small = picture.convert("RGB").resize((side_px, side_px), Image.Resampling.BOX)
    return np.array(small)


def beside(
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]], drawn: UInt8[np.ndarray, "S S 3"]
) -> UInt8[np.ndarray, "S W2 3"]:
    """The pictures, enlarged to the height of the map, with the map to their right."""
    side = drawn.shape[0]
    row = []
    for picture in pictures:
        height, width = picture.shape[:2]
        wide = 2 * round(side * width / height / 2)  # even, as video wants it
        row.append(np.array(Image.fromarray(picture).resize((wide, side), Image.Resampling.LANCZOS)))
    return np.concatenate([*row, drawn], axis=1)


def _disc(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, colour: tuple[int, ...], rim: float
) -> None:
    for reach, paint in ((radius + rim, _HALO), (radius, colour)):
        pen.ellipse([at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach], paint)


def _window(columns: np.ndarray, spots: Sequence[Spot]) -> tuple[float, float, float]:
    """Left and near edge and width (m) of a square around everything known and all `spots`."""
    known = np.argwhere(columns > 0)
    rows = np.array(spots, float).reshape(-1, 2)
    low, high = rows.min(0), rows.max(0)
    if len(known):
        far_row, left_column = known.min(0)
        near_row, right_column = known.max(0) + 1
        low = np.minimum(low, (left_column * VOXEL_M - EXTENT_M, (len(columns) - near_row) * VOXEL_M - EXTENT_M))
        high = np.maximum(high, (right_column * VOXEL_M - EXTENT_M, (len(columns) - far_row) * VOXEL_M - EXTENT_M))
    width = max(_LEAST_M, math.ceil(float((high - low).max()) + 1.0))
    middle = np.round(2 * (low + high) / 2) / 2
    return float(middle[0] - width / 2), float(middle[1] - width / 2), width
