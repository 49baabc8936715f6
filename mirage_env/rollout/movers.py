"""Who moves the camera: paths that need no policy, and the way to those that do.

A mover lives for one episode. It may be any callable `make(env, rng, **mover_kwargs)` that returns an object with
`act(observation, info) -> action`; `env` is a `WalkEnv` that was reset, and `rng` its only source of chance.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from mirage_env.cameras_io import CameraPath, read_cameras
from mirage_env.envs.actions import Pose, pose_from_matrix
from mirage_env.envs.env import WalkEnv
from mirage_env.errors import InvalidValueError

MOVERS = {
    "walk": "mirage_env.rollout.movers:Walk",
    "loop": "mirage_env.rollout.movers:Loop",
    "explorer": "mirage_env.agents.movers:explorer",
    "policy": "mirage_env.agents.movers:policy",
}
"""Name -> where it is, looked up when it is first used; `Follow` goes by the name of cameras."""
FARTHEST_STEP = {"step_m": 10.0, "turn_deg": 90.0}


@runtime_checkable
class Mover(Protocol):
    """Moves the camera of one episode."""

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        """The next action."""
        ...


def env_kwargs(mover: str) -> dict[str, Any]:
    """What the environment must be for this mover, over what the user asks for."""
    if mover == "cameras":  # any motion up to the environment's own bounds, and nothing in the way
        return {"action_mode": "free", "collision": "none", **FARTHEST_STEP}
    return {"action_mode": "planar"} if mover in ("walk", "loop") else {}


def check_mover(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raises InvalidValueError, in one sentence, for a mover that is not there or does not take these arguments, and
    for a `path` of its own movers that does not exist. Needs no environment."""
    if name == "cameras":
        files = camera_files(kwargs.get("path"))
        if more := sorted(set(kwargs) - {"path"}):
            raise InvalidValueError(f"the mover cameras takes mover_kwargs.path alone, got {', '.join(more)} too")
        if len(files) == 1:  # one of many may fail, and the others go on
            follow_path(files[0])
        return
    maker = _maker(name)
    try:
        inspect.signature(maker).bind(None, None, **kwargs)
    except TypeError as error:
        raise _refused(name, kwargs, error) from None
    path = kwargs.get("path")
    if name in MOVERS and path is not None and not Path(path).expanduser().exists():
        raise InvalidValueError(f'mover_kwargs.path of the mover "{name}": nothing is at {path}; name what exists')


def make_mover(name: str, env: WalkEnv, rng: np.random.Generator, **kwargs: Any) -> Mover:
    """The mover of that name; raises InvalidValueError where it is not there or does not take the arguments."""
    maker = _maker(name)
    try:
        return maker(env, rng, **kwargs)
    except TypeError as error:
        raise _refused(name, kwargs, error) from None


def _maker(name: str) -> Callable[..., Mover]:
    module, _, attribute = MOVERS.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidValueError(f'the mover "{name}" cannot be loaded ({error}); name it as module:name') from None


def _refused(name: str, kwargs: Mapping[str, Any], error: TypeError) -> InvalidValueError:
    return InvalidValueError(f'the mover "{name}" does not take mover_kwargs {dict(kwargs)} ({error})')


class Walk:
    """A smooth random walk: a steady pace, a slowly changing turn, and away from what it bumps into.

    Args:
        pace: (least, most) of the forward action, drawn once an episode.
        bend: standard deviation of the change of the turning action from step to step.
    """

    def __init__(self, env: WalkEnv, rng: np.random.Generator, pace: Any = (0.3, 0.8), bend: float = 0.25):
        self._rng, self._bend = rng, bend
        self._pace, self._turn = float(rng.uniform(*pace)), 0.0
        self._side, self._evading = 1.0, 0

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        if info["collided"]:
            if not self._evading:
                self._side = float(self._rng.choice([-1.0, 1.0]))
            self._evading = 4
        self._turn = 0.85 * self._turn + self._bend * float(self._rng.normal())
        if self._evading:  # turn on the spot until the way is free
            self._evading -= 1
            return np.array([0.15 * self._pace, 0.0, self._side], np.float32)
        return np.array([self._pace, 0.0, np.clip(self._turn, -1.0, 1.0)], np.float32)


class Loop:
    """Leaves along a walk and comes back over the same places, facing the same way: does the world remember?"""

    def __init__(self, env: WalkEnv, rng: np.random.Generator, **walk: Any):
        self._walk = Walk(env, rng, **walk)
        self._half, self._taken = (env.max_episode_steps or 0) // 2, 0
        self._places: list[Pose] = []
        self._step_m, self._turn_rad = env.step_m, env.turn_rad

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        here = _pose(info["world_from_camera"])
        self._taken += 1
        if self._taken <= self._half:
            self._places.append(here)
            return self._walk.act(observation, info)
        target = self._places.pop() if self._places else here
        right, _, forward, yaw, *_ = _toward(here, target)
        return np.array([forward / self._step_m, right / self._step_m, yaw / self._turn_rad], np.float32).clip(-1, 1)


class Follow:
    """Follows cameras from the first one on, which is where the episode begins; there are so many steps less one."""

    def __init__(self, env: WalkEnv, cameras: CameraPath):
        self._poses = [_pose(matrix) for matrix in cameras.from_first()]
        self._next = 1
        self._step_m, self._turn_rad = env.step_m, env.turn_rad

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        motion = _toward(_pose(info["world_from_camera"]), self._poses[self._next])
        self._next += 1
        action = np.array(motion) / np.repeat([self._step_m, self._turn_rad], 3)
        if np.abs(action).max() > 1.0:
            raise InvalidValueError(
                f"camera {self._next - 1} is {np.abs(motion[:3]).max():.2f} m and "
                f"{math.degrees(np.abs(motion[3:]).max()):.0f} degrees from the one before; at most "
                f"{FARTHEST_STEP['step_m']:g} m and {FARTHEST_STEP['turn_deg']:g} degrees a step are possible"
            )
        return action.astype(np.float32)


def camera_files(path: str | None) -> tuple[str, ...]:
    """The camera files that `path` names: itself, or those in the folder, in a stable order."""
    if path is None:
        raise InvalidValueError("the mover cameras needs mover_kwargs.path: a camera file or a folder of them")
    place = Path(path).expanduser()
    files = sorted(place.glob("*.txt")) + sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise InvalidValueError(f"no camera files at {path}; they end in .txt (RealEstate10K) or .json")
    return tuple(str(file) for file in files)


def follow_path(path: str) -> CameraPath:
    """The cameras of a file; raises InvalidValueError where the lens changes on the way or nothing moves."""
    cameras = read_cameras(path)
    if len(cameras) < 2:
        raise InvalidValueError(f"{path} has one camera; a way has at least two")
    if cameras.intrinsics is not None and np.ptp(cameras.intrinsics, axis=0).max() > 0.01:
        raise InvalidValueError(f"{path}: the lens changes on the way, which an episode cannot; cut it there")
    return cameras


def _pose(matrix: Float[np.ndarray, "4 4"]) -> Pose:
    return pose_from_matrix(torch.from_numpy(np.array(matrix, np.float64)))


def _toward(here: Pose, there: Pose) -> tuple[float, float, float, float, float, float]:
    """The motion (right, down, forward, yaw, pitch, roll) that leads from one pose to another."""
    dx, dz = there.x - here.x, there.z - here.z
    sin, cos = math.sin(here.yaw), math.cos(here.yaw)
    turns = [math.remainder(b - a, 2 * math.pi) for a, b in zip(here[3:], there[3:], strict=True)]
    return (cos * dx - sin * dz, there.y - here.y, sin * dx + cos * dz, turns[0], turns[1], turns[2])
