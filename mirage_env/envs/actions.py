"""Actions: small camera motions in the camera's frame, levelled by gravity.

Every mode scales numbers in [-1, 1] by `step_m` (metres) and `turn_deg` (degrees). Directions are those of OpenCV axes
turned by the camera's yaw alone, so that a camera that looks down still walks level: right is x, down is y, forward is
z; positive yaw turns right, positive pitch looks up, positive roll turns clockwise. One action moves along the heading
that the camera had before it, while it turns.

    planar      Box(3)   forward, right, yaw
    free        Box(6)   right, down, forward, yaw, pitch, roll
    discrete    9        stop, forward, back, left, right, turn left, turn right, look up, look down
    navigation  4        stop, forward, turn left, turn right: those of the field's navigation tasks
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from mirage_env.errors import InvalidValueError, UnknownNameError

ACTION_MODES = ("planar", "free", "discrete", "navigation")
PITCH_LIMIT = {mode: math.radians(89 if mode == "free" else 60) for mode in ACTION_MODES}
"""How far a camera can look up or down (radians). Straight up has no heading, so even `free` stops before it."""


class Pose(NamedTuple):
    """A camera in the world: position in metres (+y down), angles in radians, R = R_y(yaw) R_x(pitch) R_z(roll)."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    yaw: float = 0.0
    """Positive to the right, in [-pi, pi)."""
    pitch: float = 0.0
    """Positive looks up."""
    roll: float = 0.0
    """Positive is clockwise."""


class Motion(NamedTuple):
    """What one action asks for, in the levelled camera frame; metres and radians."""

    right: float = 0.0
    down: float = 0.0
    forward: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


_UNITS = {
    "stop": Motion(),
    "forward": Motion(forward=1.0),
    "back": Motion(forward=-1.0),
    "left": Motion(right=-1.0),
    "right": Motion(right=1.0),
    "turn_left": Motion(yaw=-1.0),
    "turn_right": Motion(yaw=1.0),
    "look_up": Motion(pitch=1.0),
    "look_down": Motion(pitch=-1.0),
}
DISCRETE_ACTIONS = tuple(_UNITS)
CHOICES = {"discrete": DISCRETE_ACTIONS, "navigation": ("stop", "forward", "turn_left", "turn_right")}
"""The actions of the modes that number them."""


def action_space(mode: str) -> spaces.Space[Any]:
    """The space of `mode`; raises UnknownNameError."""
    if mode in CHOICES:
        return spaces.Discrete(len(CHOICES[mode]))
    if mode not in ACTION_MODES:
        raise UnknownNameError("action mode", mode, ACTION_MODES)
    return spaces.Box(-1.0, 1.0, (3 if mode == "planar" else 6,), np.float32)


def motion_from_action(action: Any, mode: str, step_m: float, turn_rad: float) -> Motion:
    """The motion that `action` asks for. Numbers outside [-1, 1] count as the nearest bound.

    Raises InvalidValueError for NaN, a wrong shape, or a discrete action that does not exist.
    """
    try:
        values = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidValueError(f"a {mode} action must be made of numbers, got {action!r}") from None
    if mode in CHOICES:
        if values.size != 1 or values.item() not in range(len(CHOICES[mode])):
            names = ", ".join(f"{i} {name}" for i, name in enumerate(CHOICES[mode]))
            raise InvalidValueError(f"a {mode} action must be one of {names}; got {action!r}")
        unit = _UNITS[CHOICES[mode][int(values.item())]]
    else:
        wanted = (3,) if mode == "planar" else (6,)
        if values.shape != wanted:
            raise InvalidValueError(f"a {mode} action must have shape {wanted}, got {values.shape}")
        if not np.isfinite(values).all():
            raise InvalidValueError(f"a {mode} action must be finite, got {values.tolist()}")
        numbers = np.clip(values, -1.0, 1.0).tolist()
        unit = Motion(*numbers) if mode == "free" else Motion(forward=numbers[0], right=numbers[1], yaw=numbers[2])
    right, down, forward, yaw, pitch, roll = unit
    return Motion(right * step_m, down * step_m, forward * step_m, yaw * turn_rad, pitch * turn_rad, roll * turn_rad)


def moved(pose: Pose, motion: Motion, pitch_limit: float = PITCH_LIMIT["free"]) -> Pose:
    """The pose after `motion`. A pitch already beyond the limit may stay but not grow."""
    sin, cos = math.sin(pose.yaw), math.cos(pose.yaw)
    lowest, highest = min(-pitch_limit, pose.pitch), max(pitch_limit, pose.pitch)
    return Pose(
        pose.x + cos * motion.right + sin * motion.forward,
        pose.y + motion.down,
        pose.z - sin * motion.right + cos * motion.forward,
        _wrapped(pose.yaw + motion.yaw),
        min(max(pose.pitch + motion.pitch, lowest), highest),
        _wrapped(pose.roll + motion.roll),
    )


def between(start: Pose, end: Pose, count: int) -> tuple[Pose, ...]:
    """`count` poses evenly from `start` (not included) to `end` (included, exactly); turns go the short way."""
    steps = [b - a for a, b in zip(start, end, strict=True)]
    steps[3], steps[5] = _wrapped(steps[3]), _wrapped(steps[5])
    way = (Pose(*(a + step * k / count for a, step in zip(start, steps, strict=True))) for k in range(1, count))
    return (*way, end)


def around(pose: Pose, views: int) -> tuple[Pose, ...]:
    """A turn to the right, once around on the spot, in `views` even steps: first and last are `pose`, exactly."""
    turned = (pose._replace(yaw=_wrapped(pose.yaw + 2 * math.pi * k / views)) for k in range(1, views))
    return (pose, *turned, pose)


def world_from_camera(poses: Sequence[Pose]) -> Float[Tensor, "V 4 4"]:
    """The float32 transforms of `poses`, computed in float64: `rotation_from_yaw_pitch_roll`, a camera at a time."""
    return torch.tensor([_matrix(*pose) for pose in poses], dtype=torch.float64).float()


def _matrix(x: float, y: float, z: float, yaw: float, pitch: float, roll: float) -> tuple[tuple[float, ...], ...]:
    """In numbers of Python: for one camera the calls of torch would take six times as long."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    return (
        (cy * cr + sy * sp * sr, sy * sp * cr - cy * sr, sy * cp, x),
        (cp * sr, cp * cr, -sp, y),
        (cy * sp * sr - sy * cr, sy * sr + cy * sp * cr, cy * cp, z),
        (0.0, 0.0, 0.0, 1.0),
    )


def pose_from_matrix(transform: Float[Tensor, "4 4"]) -> Pose:
    """The inverse of `world_from_camera` for one rigid transform, while |pitch| < 90 degrees."""
    m = transform.double().tolist()
    return Pose(
        x=m[0][3],
        y=m[1][3],
        z=m[2][3],
        yaw=math.atan2(m[0][2], m[2][2]),
        pitch=math.asin(min(max(-m[1][2], -1.0), 1.0)),
        roll=math.atan2(m[1][0], m[1][1]),
    )


def pose_from_up(up: Sequence[float] | np.ndarray) -> Pose:
    """The first camera of a world: at the origin, heading along +z, tilted so that `up` (camera coordinates) is up.

    (0, -1, 0) is a level camera. Raises InvalidValueError for a vector that is not finite, zero, or along the view.
    """
    vector = np.asarray(up, dtype=np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all() or not np.linalg.norm(vector) > 0:
        raise InvalidValueError(
            f"up must be three finite numbers in camera axes, not all zero; got {up!r}, level is (0, -1, 0)"
        )
    down = -vector / np.linalg.norm(vector)
    ahead = np.array([0.0, 0.0, 1.0]) - down[2] * down
    if np.linalg.norm(ahead) < math.sin(math.radians(1)):
        raise InvalidValueError(
            f"up must not lie along the viewing direction, got {up!r}: the camera would have no heading"
        )
    ahead /= np.linalg.norm(ahead)
    transform = np.eye(4)
    transform[:3, :3] = np.stack([np.cross(down, ahead), down, ahead])
    return pose_from_matrix(torch.from_numpy(transform))


def _wrapped(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi
