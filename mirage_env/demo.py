"""The walk that `mirage-env demo` takes: short paths that stay plausible in front of any picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mirage_env.errors import InvalidValueError, UnknownNameError

MAX_STEP_M, MAX_TURN_DEG = 0.2, 8.0
"""Motion between two frames stays below these: the tiny preset was trained on steps up to 0.25 m and 10 degrees."""

# Places the path passes: right (m), forward (m), yaw (degrees to the right), pitch (degrees up).
_PLACES = {
    "walk": [
        (0.0, 0.0, 0, 0), (0.0, 0.0, 24, 0), (0.0, 0.0, 0, 0), (0.35, 0.1, -14, 0), (0.35, 0.7, -8, 0),
        (0.0, 1.1, 0, 4), (-0.35, 0.8, 14, 0), (-0.35, 0.2, 20, -4), (0.0, 0.0, 0, 0),
    ],
    "look-around": [
        (0.0, 0.0, 0, 0), (0.0, 0.0, 60, 0), (0.05, 0.0, 0, 5), (0.0, 0.0, -60, 0), (-0.05, 0.0, 0, -5),
        (0.0, 0.0, 0, 0),
    ],
    "loop": [
        (0.0, 0.0, 0, 0), (0.45, 0.2, -10, 0), (0.6, 0.7, -15, 0), (0.3, 1.2, -8, 0),
        (-0.3, 1.2, 8, 0), (-0.6, 0.7, 15, 0), (-0.45, 0.2, 10, 0), (0.0, 0.0, 0, 0),
    ],
}  # fmt: skip


def trajectory_names() -> list[str]:
    return list(_PLACES)


def trajectory(name: str, num_frames: int) -> Float[np.ndarray, "T 4 4"]:
    """`world_from_camera` of the frames after the first one, which is at the origin; the last one is back there.

    The path eases in and out of every place. Where few frames would make it hasty, it shrinks until no step exceeds
    MAX_STEP_M and MAX_TURN_DEG.
    """
    if name not in _PLACES:
        raise UnknownNameError("trajectory", name, _PLACES)
    if num_frames < 1:
        raise InvalidValueError(f"a walk needs at least 1 frame, got {num_frames}")
    places = np.array(_PLACES[name], dtype=np.float64)
    path = _through(places, np.linspace(0.0, 1.0, num_frames + 1))
    steps = np.abs(np.diff(path, axis=0))
    haste = max(np.hypot(steps[:, 0], steps[:, 1]).max() / MAX_STEP_M, steps[:, 2:].sum(1).max() / MAX_TURN_DEG, 1.0)
    return _poses(path[1:] / haste)


def _through(places: Float[np.ndarray, "K 4"], time: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T 4"]:
    """A Catmull-Rom curve that rests at both ends and gives every leg time in proportion to its length."""
    effort = np.abs(np.diff(places, axis=0)) @ np.array(
        [1 / MAX_STEP_M, 1 / MAX_STEP_M, 1 / MAX_TURN_DEG, 1 / MAX_TURN_DEG]
    )
    knots = np.concatenate([[0.0], np.cumsum(effort)]) / effort.sum()
    slopes = np.zeros_like(places)
    slopes[1:-1] = (places[2:] - places[:-2]) / (knots[2:] - knots[:-2])[:, None]
    leg = np.clip(np.searchsorted(knots, time, side="right") - 1, 0, len(places) - 2)
    span = (knots[leg + 1] - knots[leg])[:, None]
    s = (time - knots[leg])[:, None] / span
    return (
        (2 * s**3 - 3 * s**2 + 1) * places[leg]
        + (s**3 - 2 * s**2 + s) * span * slopes[leg]
        + (3 * s**2 - 2 * s**3) * places[leg + 1]
        + (s**3 - s**2) * span * slopes[leg + 1]
    )


def _poses(path: Float[np.ndarray, "T 4"]) -> Float[np.ndarray, "T 4 4"]:
    """R = R_y(yaw) R_x(pitch), as in `geometry.poses`, on numpy."""
    right, forward = path[:, 0], path[:, 1]
    (cy, cp), (sy, sp) = np.cos(np.radians(path[:, 2:])).T, np.sin(np.radians(path[:, 2:])).T
    zero, one = np.zeros(len(path)), np.ones(len(path))
    rows = [
        [cy, sy * sp, sy * cp, right],
        [zero, cp, -sp, zero],
        [-sy, cy * sp, cy * cp, forward],
        [zero, zero, zero, one],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)
