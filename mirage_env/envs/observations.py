"""Observations: a name, its space, and how it is built from what the environment shows now."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Float32

from mirage_env.envs.actions import Pose, world_from_camera
from mirage_env.envs.occupancy import AROUND_CELLS, SOLID, Occupancy
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.types import Frames

DEFAULT_OBS = ("rgb", "depth_u8")
"""Two pictures: depth in metres is a picture to nobody, and Stable-Baselines3 would flatten it."""
FARTHEST_M = 1e4
"""Bound of the translation in `world_from_camera` and of tokens: spaces want finite bounds."""


@dataclass(frozen=True)
class Layout:
    """What the spaces depend on."""

    size: tuple[int, int]
    latent_size: tuple[int, int]
    depth_range_m: tuple[float, float]
    latent_channels: int = 0
    """Of the memory's tokens; 0 for a world without one."""


@dataclass(frozen=True)
class View:
    """What the observations are built from."""

    frame: Frames
    """The one frame on show: generated, drafted, or held."""
    pose: Pose
    intrinsics_px: Float[np.ndarray, "3 3"]
    depth_range_m: tuple[float, float]
    chunk_share: float
    """Steps since the last generated frame over steps a chunk, in [0, 1)."""
    goal: Float[np.ndarray, "3"] | None
    """Distance (m), cos and sin of the bearing, where the task has a goal."""
    occupancy: Occupancy
    last_action: tuple[float, ...]
    """What it asked for, see `Motion`, in units of a step and of a turn; then 1 where not all of it could be done."""
    latent: Float32[np.ndarray, "C h w"] | None = None
    """What the memory shows from here, where it is asked for."""


@dataclass(frozen=True)
class Observation:
    """One entry of the observation: `build` returns a fresh array that lies in `space`."""

    space: Callable[[Layout], spaces.Space[Any]]
    build: Callable[[View], np.ndarray]


def depth_m(frame: Frames, depth_range_m: tuple[float, float]) -> Float32[np.ndarray, "H W"]:
    """z-depth of the last frame clipped to the range; sky and whatever has no depth is as far as the range goes."""
    near, far = depth_range_m
    depth = frame.depth_m[-1].numpy()
    seen = np.isfinite(depth) & (depth > 0) & ~frame.sky[-1].numpy()
    return np.where(seen, depth, far).clip(near, far).astype(np.float32)


def _depth_u8(view: View) -> np.ndarray:
    near, far = view.depth_range_m
    return np.rint((depth_m(view.frame, view.depth_range_m) - near) * (255.0 / (far - near))).astype(np.uint8)[
        ..., None
    ]


def _sky(view: View) -> np.ndarray:
    return (view.frame.sky[-1].numpy() * np.uint8(255))[..., None]


def _pose_space(layout: Layout) -> spaces.Space[Any]:
    bound = np.ones((4, 4), np.float32)
    bound[:3, 3] = FARTHEST_M
    return spaces.Box(-bound, bound, dtype=np.float32)


def _pose(view: View) -> np.ndarray:
    bound = np.ones((4, 4), np.float32)
    bound[:3, 3] = FARTHEST_M
    return np.clip(world_from_camera([view.pose])[0].numpy(), -bound, bound)


def _latent(view: View) -> np.ndarray:
    assert view.latent is not None  # checked when the environment was made
    return view.latent.clip(-FARTHEST_M, FARTHEST_M)


def _map(view: View) -> np.ndarray:
    around = view.occupancy.map_around(view.pose.x, view.pose.z, view.pose.yaw)
    return (around * np.uint8(255 // SOLID))[..., None]


def _goal(view: View) -> np.ndarray:
    assert view.goal is not None  # checked when the environment was made
    return np.asarray(view.goal, np.float32).clip((0.0, -1.0, -1.0), (FARTHEST_M, 1.0, 1.0)).astype(np.float32)


OBSERVATIONS: dict[str, Observation] = {
    "rgb": Observation(
        lambda at: spaces.Box(0, 255, (*at.size, 3), np.uint8),
        lambda view: view.frame.rgb[-1].numpy().copy(),
    ),
    "depth": Observation(
        lambda at: spaces.Box(at.depth_range_m[0], at.depth_range_m[1], at.size, np.float32),
        lambda view: depth_m(view.frame, view.depth_range_m),
    ),
    "depth_u8": Observation(lambda at: spaces.Box(0, 255, (*at.size, 1), np.uint8), _depth_u8),
    "sky": Observation(lambda at: spaces.Box(0, 255, (*at.size, 1), np.uint8), _sky),
    "world_from_camera": Observation(_pose_space, _pose),
    "intrinsics_px": Observation(
        lambda at: spaces.Box(-FARTHEST_M, FARTHEST_M, (3, 3), np.float32),
        lambda view: view.intrinsics_px.astype(np.float32),
    ),
    "remembered": Observation(
        lambda at: spaces.Box(0, 1, at.latent_size, np.uint8),
        lambda view: view.frame.remembered[-1].numpy().astype(np.uint8),
    ),
    "latent": Observation(
        lambda at: spaces.Box(-FARTHEST_M, FARTHEST_M, (at.latent_channels, *at.latent_size), np.float32), _latent
    ),
    "map": Observation(lambda at: spaces.Box(0, 255, (AROUND_CELLS, AROUND_CELLS, 1), np.uint8), _map),
    "chunk_phase": Observation(
        lambda at: spaces.Box(0.0, 1.0, (1,), np.float32),
        lambda view: np.array([view.chunk_share], np.float32),
    ),
    "last_action": Observation(
        lambda at: spaces.Box(-1.0, 1.0, (7,), np.float32), lambda view: np.array(view.last_action, np.float32)
    ),
    "goal": Observation(
        lambda at: spaces.Box(np.array([0, -1, -1], np.float32), np.array([FARTHEST_M, 1, 1], np.float32)), _goal
    ),
}
"""Every observation by name:

    rgb                 uint8 (H, W, 3)
    depth               float32 (H, W), z-depth in metres, clipped to `depth_range_m`; sky is at its far end
    depth_u8            uint8 (H, W, 1), the same, 0 at the near end and 255 at the far end, linear: for CNN policies
    sky                 uint8 (H, W, 1), 255 where it is sky: as far as depth can say, and no way to go
    world_from_camera   float32 (4, 4), where the camera is now, whichever frame is on show
    intrinsics_px       float32 (3, 3), K in pixels, pixel centres at +0.5
    remembered          uint8 (h, w), 1 where the memory showed a latent cell, 0 where the model invented it
    latent              float32 (C, h, w), the readout itself: the tokens that the memory, which holds all that was
                        generated, shows to the camera where it is now; 0 for none. Of generated worlds
    map                 uint8 (32, 32, 1), 8 x 8 m around the body, ahead is up: 0 not seen, 127 free, 254 solid
    chunk_phase         float32 (1,), steps since the last generated frame over steps a chunk: 0 when it is generated
    last_action         float32 (7,), right, down, forward, yaw, pitch, roll that the last action asked for, in units of
                        a step and a turn, and whether it was hindered; zero when an episode begins
    goal                float32 (3,), distance in metres, cos, sin of the bearing to the right; needs a task with a goal
"""


def parse_names(obs: Any) -> tuple[str, ...]:
    """The names in `obs`; raises UnknownNameError for an unknown one, InvalidValueError for none or a repeated one."""
    names = (obs,) if isinstance(obs, str) else tuple(obs) if isinstance(obs, Iterable) else ()
    if not all(isinstance(name, str) for name in names):
        raise InvalidValueError(f"obs must be one name or several, got {obs!r}; known are {', '.join(OBSERVATIONS)}")
    for name in names:
        if name not in OBSERVATIONS:
            raise UnknownNameError("observation", name, OBSERVATIONS)
    if not names or len(set(names)) < len(names):
        raise InvalidValueError(f"obs must name at least one observation, each once; got {obs!r}")
    return names


def observation_space(obs: str | Sequence[str], layout: Layout) -> spaces.Space[Any]:
    """A Dict of the named observations, or, for one name that is a plain string, its Box. Raises as `parse_names`."""
    names = parse_names(obs)
    if isinstance(obs, str):
        return OBSERVATIONS[obs].space(layout)
    return spaces.Dict({name: OBSERVATIONS[name].space(layout) for name in names})


def observe(obs: str | Sequence[str], view: View) -> Any:
    """The observation that `observation_space` describes, in fresh arrays."""
    if isinstance(obs, str):
        return OBSERVATIONS[obs].build(view)
    return {name: OBSERVATIONS[name].build(view) for name in obs}


def check_depth_range(depth_range_m: Any) -> tuple[float, float]:
    """(near, far) in metres, 0 <= near < far, finite; raises InvalidValueError."""
    try:
        near, far = (float(end) for end in depth_range_m)
    except (TypeError, ValueError):
        near = far = math.nan
    if not 0 <= near < far < math.inf:
        raise InvalidValueError(
            f"depth_range_m must be (near, far) in metres with 0 <= near < far, got {depth_range_m!r}"
        )
    return near, far
