"""A certificate of each episode: does its depth fit its poses, does what was seen come back, what was invented.

Everything is computed from what is stored (quantised depth, poses, RGB), on at most 24 x 24 pixels a frame, while the
episode streams past: memory and cost do not grow with its length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

GRID = 24
"""At most this many pixels a side are carried from one frame into another."""
NEAR_M, NEAR_DEG = 0.25, 15.0
"""A place is visited again within this distance and angle, after the camera was twice as far away."""
MAX_KEYFRAMES = 64
_FEWEST_PIXELS = 32
_AGREES = 0.1
"""Colours are compared where the depths agree within a tenth, so that they belong to one surface."""


@dataclass(frozen=True)
class Views:
    """A few frames, as far as they are carried into others: N pixels of each."""

    points: Float[np.ndarray, "V N 3"]
    """In the world; anything where not valid."""
    colours: Float[np.ndarray, "V N 3"]
    valid: Bool[np.ndarray, "V N"]
    world_from_camera: Float[np.ndarray, "V 4 4"]

    def __getitem__(self, which: Any) -> Views:
        return Views(self.points[which], self.colours[which], self.valid[which], self.world_from_camera[which])

    @classmethod
    def cat(cls, parts: Sequence[Views]) -> Views:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


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
        self._last: Views | None = None
        self._frames = 0
        self._sums = {"reprojection": np.zeros(3), "revisit": np.zeros(3)}
        self._remembered = 0.0
        self._keyframes: Views | None = None
        self._left = np.zeros(0, bool)
        self._stride = 4

    def frames(
        self,
        rgb: UInt8[np.ndarray, "T H W 3"],
        depth_m: Float[np.ndarray, "T H W"],
        world_from_camera: Float[np.ndarray, "T 4 4"],
        intrinsics_px: Float[np.ndarray, "T 3 3"],
        remembered: Bool[np.ndarray, "T h w"],
    ) -> None:
        """The next frames, any number of them; depth is 0 where it is not valid."""
        views = _views(rgb, depth_m, world_from_camera, intrinsics_px)
        first = self._last is None
        self._remembered += float(remembered[int(first) :].mean(axis=(1, 2)).sum())
        known = views if self._last is None else Views.cat([self._last, views])
        age = np.arange(self._frames, self._frames + len(rgb))
        keyed = np.flatnonzero(age % self._stride == 0)
        keyframes = views[keyed] if self._keyframes is None else Views.cat([self._keyframes, views[keyed]])
        born = np.append(np.full(len(self._left), -1), keyed)
        earlier, again = self._revisits(keyframes, born, world_from_camera)
        later = np.arange(int(first), len(rgb))
        carried, seen = Views.cat([known[: len(later)], keyframes[earlier]]), np.append(later, again)
        residuals = reprojections(carried, rgb, depth_m, world_from_camera, intrinsics_px, seen)
        for name, some in (("reprojection", residuals[: len(later)]), ("revisit", residuals[len(later) :])):
            counted = some[np.isfinite(some[:, 0])]
            self._sums[name] += (*counted.sum(axis=0), len(counted))
        self._last, self._keyframes, self._frames = views[-1:], keyframes, self._frames + len(rgb)
        while len(self._left) > MAX_KEYFRAMES:
            self._keyframes, self._left, self._stride = self._keyframes[::2], self._left[::2], 2 * self._stride

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

    def _revisits(
        self, keyframes: Views, born: Int64[np.ndarray, "K"], world_from_camera: Float[np.ndarray, "T 4 4"]
    ) -> tuple[Int64[np.ndarray, "R"], Int64[np.ndarray, "R"]]:
        """(oldest keyframe, frame) of each frame that is back at a place which the camera had left."""
        there = keyframes.world_from_camera
        distance = np.linalg.norm(there[:, :3, 3] - world_from_camera[:, None, :3, 3], axis=-1)
        angle = np.degrees(np.arccos(np.clip(world_from_camera[:, :3, 2] @ there[:, :3, 2].T, -1.0, 1.0)))
        older = born < np.arange(len(world_from_camera))[:, None]
        away = older & ((distance > 2 * NEAR_M) | (angle > 2 * NEAR_DEG))
        away[0, : len(self._left)] |= self._left
        left = np.logical_or.accumulate(away, axis=0)
        self._left = left[-1]
        back = left & (distance <= NEAR_M) & (angle <= NEAR_DEG)
        frames = np.flatnonzero(back.any(axis=1))
        return back[frames].argmax(axis=1), frames


def reprojections(
    views: Views,
    rgb: UInt8[np.ndarray, "T H W 3"],
    depth_m: Float[np.ndarray, "T H W"],
    world_from_camera: Float[np.ndarray, "T 4 4"],
    intrinsics_px: Float[np.ndarray, "T 3 3"],
    seen: Int64[np.ndarray, "V"],
) -> Float[np.ndarray, "V 2"]:
    """(median of |z - d| / z, mean difference of colour) of each view's points in frame seen[v]; NaN for too few."""
    if not len(seen):
        return np.zeros((0, 2))
    height, width = depth_m.shape[1:]
    poses = world_from_camera[seen]
    at_camera = (views.points - poses[:, None, :3, 3]) @ poses[:, :3, :3]
    z = at_camera[..., 2]
    ahead = views.valid & (z > 1e-3)
    z = np.where(ahead, z, 1.0)
    column, row = np.floor(np.moveaxis(at_camera @ intrinsics_px[seen, :2].swapaxes(1, 2) / z[..., None], -1, 0))
    inside = ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = np.where(inside, column, 0).astype(np.int64), np.where(inside, row, 0).astype(np.int64)
    pixel = (seen[:, None] * height + row) * width + column
    depth = depth_m.reshape(-1)[pixel]
    valid = inside & (depth > 0)
    residual = np.where(valid, np.abs(z - depth) / z, np.inf)
    same = residual < _AGREES
    difference = np.abs(views.colours - rgb.reshape(-1, 3)[pixel]).mean(axis=-1) / 255.0
    alike, count = same.sum(axis=1), valid.sum(axis=1)
    colour = np.where(alike > 0, (difference * same).sum(axis=1) / np.maximum(alike, 1), 1.0)
    residual.sort(axis=1)
    middle = residual[np.arange(len(seen))[:, None], np.stack([np.maximum(count - 1, 0) // 2, count // 2], -1)]
    enough = count >= _FEWEST_PIXELS
    return np.where(
        enough[:, None], np.stack([np.where(enough[:, None], middle, 0.0).mean(axis=1), colour], -1), np.nan
    )


@lru_cache(maxsize=8)
def _pixels(height: int, width: int, step: int) -> Float[np.ndarray, "N 3"]:
    """Every `step`-th pixel centre, (x, y, 1)."""
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step].reshape(2, -1) + 0.5
    return np.stack([x, y, np.ones_like(x)], -1)


def _views(
    rgb: UInt8[np.ndarray, "T H W 3"],
    depth_m: Float[np.ndarray, "T H W"],
    world_from_camera: Float[np.ndarray, "T 4 4"],
    intrinsics_px: Float[np.ndarray, "T 3 3"],
) -> Views:
    count, height, width = depth_m.shape
    step = math.ceil(max(height, width) / GRID)
    some = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    depth = depth_m[some].reshape(count, -1)
    world_from_pixel = world_from_camera[:, :3, :3] @ np.linalg.inv(intrinsics_px)
    points = _pixels(height, width, step) @ world_from_pixel.swapaxes(1, 2) * depth[..., None]
    points += world_from_camera[:, None, :3, 3]
    return Views(points, rgb[some].reshape(count, -1, 3).astype(np.float64), depth > 0, world_from_camera)
