"""A certificate of each episode: does its depth fit its poses, does what was seen come back, what was invented.

Everything is computed from what is stored (quantised depth, poses, RGB), on at most 24 x 24 pixels a frame, while the
episode streams past: memory and cost do not grow with its length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

GRID = 24
"""At most this many pixels a side are carried from one frame into another."""
NEAR_M, NEAR_DEG = 0.25, 15.0
"""A place is visited again within this distance and angle, after the camera was twice as far away."""
MAX_KEYFRAMES = 64
_FEWEST_PIXELS = 32
_AGREES = 0.1
"""Colours are compared where the depths agree within a tenth, so that they belong to one surface."""


@dataclass(frozen=True)
class View:
    """One frame, as far as it is carried into others."""

    points: Float[np.ndarray, "N 3"]
    """In the world, of the chosen pixels whose depth is valid."""
    colours: Float[np.ndarray, "N 3"]
    world_from_camera: Float[np.ndarray, "4 4"]


class Certifier:
    """Frames of one episode go in, in order; `certificate` says what they are worth.

    reprojection_rel     median over pixels of |z - d| / z, z being a frame's point seen from the next frame and d that
                         frame's depth there; mean over pairs of consecutive frames
    reprojection_rgb     mean absolute difference of colour (0 to 1) of the pixels whose depths agree within 10 %
    revisits             frames that came back to within 0.25 m and 15 degrees of an earlier one, after twice that
    revisit_rel, _rgb    the same two numbers between those frames and the earlier ones: the drift; None without one
    remembered_share     share of the cells that memory showed, over all frames but the first
    invented_share       the rest
    collisions           steps that the world did not let pass as asked
    """

    def __init__(self) -> None:
        self._last: View | None = None
        self._frames = 0
        self._sums = {"reprojection": np.zeros(3), "revisit": np.zeros(3)}
        self._remembered = 0.0
        self._keyframes: list[View] = []
        self._left: list[bool] = []
        self._stride = 4

    def frame(
        self,
        rgb: UInt8[np.ndarray, "H W 3"],
        depth_m: Float[np.ndarray, "H W"],
        world_from_camera: Float[np.ndarray, "4 4"],
        intrinsics_px: Float[np.ndarray, "3 3"],
        remembered: Bool[np.ndarray, "h w"],
    ) -> None:
        """The next frame; depth is 0 where it is not valid."""
        if self._last is not None:
            self._remembered += float(remembered.mean())
            self._compare("reprojection", self._last, rgb, depth_m, world_from_camera, intrinsics_px)
            earlier = self._revisited(world_from_camera)
            if earlier is not None:
                self._compare("revisit", earlier, rgb, depth_m, world_from_camera, intrinsics_px)
        self._last = _view(rgb, depth_m, world_from_camera, intrinsics_px)
        if self._frames % self._stride == 0:
            self._keyframes.append(self._last)
            self._left.append(False)
            if len(self._keyframes) > MAX_KEYFRAMES:
                self._keyframes, self._left, self._stride = self._keyframes[::2], self._left[::2], 2 * self._stride
        self._frames += 1

    def certificate(self, collisions: int) -> dict[str, Any]:
        """As above; numbers are rounded to 6 decimals, None where nothing could be compared."""
        share = self._remembered / (self._frames - 1) if self._frames > 1 else None
        values: dict[str, float | None] = {}
        for name, (rel, rgb, count) in self._sums.items():
            values[f"{name}_rel"], values[f"{name}_rgb"] = (rel / count, rgb / count) if count else (None, None)
        values["remembered_share"] = share
        values["invented_share"] = None if share is None else 1.0 - share
        rounded = {name: None if value is None else round(float(value), 6) for name, value in values.items()}
        return {**rounded, "revisits": int(self._sums["revisit"][2]), "collisions": int(collisions)}

    def _compare(self, name: str, view: View, *frame: np.ndarray) -> None:
        residual = reprojection(view, *frame)
        if residual is not None:
            self._sums[name] += (*residual, 1.0)

    def _revisited(self, world_from_camera: np.ndarray) -> View | None:
        """The oldest keyframe whose place the camera left and is back at."""
        poses = np.stack([view.world_from_camera for view in self._keyframes])
        distance = np.linalg.norm(poses[:, :3, 3] - world_from_camera[:3, 3], axis=1)
        angle = np.degrees(np.arccos(np.clip(poses[:, :3, 2] @ world_from_camera[:3, 2], -1.0, 1.0)))
        away = (distance > 2 * NEAR_M) | (angle > 2 * NEAR_DEG)
        self._left = [left or bool(now) for left, now in zip(self._left, away, strict=True)]
        back = np.flatnonzero((distance <= NEAR_M) & (angle <= NEAR_DEG) & np.array(self._left))
        return self._keyframes[back[0]] if len(back) else None


def reprojection(
    view: View,
    rgb: UInt8[np.ndarray, "H W 3"],
    depth_m: Float[np.ndarray, "H W"],
    world_from_camera: Float[np.ndarray, "4 4"],
    intrinsics_px: Float[np.ndarray, "3 3"],
) -> tuple[float, float] | None:
    """(median of |z - d| / z, mean difference of colour) of the view's points in another frame; None for too few."""
    height, width = depth_m.shape
    at_camera = (view.points - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    ahead = np.flatnonzero(at_camera[:, 2] > 1e-3)
    z = at_camera[ahead, 2]
    u, v = ((at_camera[ahead] @ intrinsics_px[:2].T) / z[:, None]).T
    inside = np.flatnonzero((u >= 0) & (u < width) & (v >= 0) & (v < height))
    column, row = u[inside].astype(np.int64), v[inside].astype(np.int64)
    depth = depth_m[row, column]
    valid = depth > 0
    if valid.sum() < _FEWEST_PIXELS:
        return None
    z = z[inside][valid]
    residual = np.abs(z - depth[valid]) / z
    same = residual < _AGREES
    difference = np.abs(view.colours[ahead][inside][valid] - rgb[row, column][valid])[same] / 255.0
    return float(np.median(residual)), float(difference.mean()) if len(difference) else 1.0


@lru_cache(maxsize=8)
def _pixels(height: int, width: int, step: int) -> Float[np.ndarray, "rows columns 3"]:
    """Every `step`-th pixel centre, (x, y, 1)."""
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step] + 0.5
    return np.stack([x, y, np.ones_like(x)], -1)


def _view(rgb: np.ndarray, depth_m: np.ndarray, world_from_camera: np.ndarray, intrinsics_px: np.ndarray) -> View:
    height, width = depth_m.shape
    step = math.ceil(max(height, width) / GRID)
    depth = depth_m[step // 2 :: step, step // 2 :: step]
    valid = depth > 0
    at_camera = _pixels(height, width, step)[valid] @ np.linalg.inv(intrinsics_px).T * depth[valid][:, None]
    points = at_camera @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    return View(points, rgb[step // 2 :: step, step // 2 :: step][valid].astype(np.float64), world_from_camera)
