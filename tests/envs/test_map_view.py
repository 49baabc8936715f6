"""The picture of the map shows what it should where it should."""

from __future__ import annotations

import math

import numpy as np

from mirage_env.envs import map_view
from mirage_env.envs.occupancy import EXTENT_M, FREE, SOLID, VOXEL_M

SIDE = round(2 * EXTENT_M / VOXEL_M)


def a_room() -> np.ndarray:
    """Free from -2 to 2 m in x and 0 to 4 m in z, solid along the far side."""
    columns = np.zeros((SIDE, SIDE), np.uint8)
    middle = SIDE // 2
    columns[middle - 40 : middle, middle - 20 : middle + 20] = FREE
    columns[middle - 42 : middle - 40, middle - 20 : middle + 20] = SOLID
    return columns


def test_places_and_colours() -> None:
    body, goal = (-1.0, 1.0, 0.0), (1.0, 3.0)
    picture = map_view.draw_map(a_room(), body, fov_rad=1.2, trail=[(0.0, 0.5), (-1.0, 1.0)], goal=goal)
    assert picture.shape == (map_view.LEAST_SIDE_PX, map_view.LEAST_SIDE_PX, 3) and picture.dtype == np.uint8
    left, near, width = map_view._window(a_room(), [(-1.0, 1.0), goal])
    scale = picture.shape[0] / width

    def colour(x: float, z: float) -> tuple[int, ...]:
        return tuple(picture[picture.shape[0] - 1 - int((z - near) * scale), int((x - left) * scale)].tolist())

    assert colour(-1.0, 1.0) == map_view._CAMERA
    assert colour(1.14, 3.0) == map_view._GOAL
    assert colour(1.55, 2.55) == map_view._FREE
    assert colour(0.55, 4.1) == map_view._SOLID
    assert colour(-2.45, -0.4) == map_view._UNKNOWN
    ahead, behind = np.array(colour(-1.0, 1.7), int), np.array(colour(-1.55, 0.55), int)
    assert ahead[0] - ahead[2] > 30 > abs(behind[0] - behind[2])  # the field of view is orange


def test_the_window_holds_everything_and_beside_keeps_shapes() -> None:
    left, near, width = map_view._window(a_room(), [(5.0, 7.0), (0.0, 0.0)])
    assert left < -2.0 and left + width > 5.0 and near < 0.0 and near + width > 7.0
    picture = np.zeros((64, 96, 3), np.uint8)
    drawn = map_view.draw_map(np.zeros((SIDE, SIDE), np.uint8), (0.0, 0.0, math.pi), fov_rad=1.0, side_px=128)
    assert map_view.beside([picture, picture], drawn).shape == (128, 2 * 192 + 128, 3)
