"""MirageSim-v0: walk in a world whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import EzPickle

from mirage_env.envs.env import Episode, WalkEnv
from mirage_env.envs.floor_plan import FloorPlan
from mirage_env.envs.simulator_world import SimulatorState, SimulatorWorld
from mirage_env.envs.world import SceneSpec
from mirage_env.errors import InvalidValueError, check_size

SCENES = 1_000_000
"""Scene seeds lie below this number; those above are for training."""


class MirageSimEnv(WalkEnv):
    """Ground truth: the same spaces, steps and tasks, drawn by the procedural simulator (id `MirageSim-v0`).

    Args:
        family: a kind of place, see `mirage_env.simulator`; None lets the scene's seed choose one that training knows.
        scene_seed: which scene; None draws one at each reset, below 1,000,000: scenes that training has never seen.
        size: (H, W) of the frames, multiples of 8.
        **walk: everything else is shared by all worlds, see `WalkEnv`.

    Collisions and shortest ways are those of the true geometry; the map and the coverage come from what was seen, as
    everywhere.
    `reset(options={"scene_seed": ...})` chooses the scene of one episode.
    """

    reset_options = (*WalkEnv.reset_options, "scene_seed")
    world: SimulatorWorld

    def __init__(
        self,
        *,
        family: str | None = None,
        scene_seed: int | None = None,
        size: Sequence[int] = (128, 128),
        **walk: Any,
    ):
        EzPickle.__init__(self, family=family, scene_seed=scene_seed, size=size, **walk)
        self.scene_seed = None if scene_seed is None else check_scene_seed(scene_seed)
        WalkEnv.__init__(self, SimulatorWorld(check_size(size), family), **walk)

    def scene(self, options: Mapping[str, Any]) -> tuple[SceneSpec, dict[str, Any]]:
        seed = draw_scene_seed(options, self.scene_seed, self.np_random)
        intrinsics_px, about = self.lens()
        scene = SceneSpec(self.first_camera(), intrinsics_px, self.camera_height_m, scene_seed=seed)
        return scene, {"scene_seed": seed, "family": self.world.family_of(seed), **about}

    def move(self, episode: Episode, target: tuple[float, float]) -> tuple[float, float]:
        """As far as the true geometry lets the body go; with `collision="seen"`, only where something was seen."""
        return truly_moved(self.world, episode.world, episode, target, self.collision)

    def plan(self, episode: Episode) -> FloorPlan:
        """Where the true geometry lets the body be."""
        return self.world.plan(episode.world)


def truly_moved(
    world: SimulatorWorld, state: SimulatorState, episode: Episode, target: tuple[float, float], mode: str
) -> tuple[float, float]:
    """Where a body gets to on its way to `target` among true things."""
    here = (episode.pose.x, episode.pose.z)
    if mode == "seen":
        target, mode = episode.occupancy.move(here, target, mode), "slide"
    return world.move(state, here, target, mode)


def draw_scene_seed(options: Mapping[str, Any], fixed: int | None, np_random: np.random.Generator) -> int:
    """The seed that `reset` was given, else the environment's own, else one that training has never seen."""
    given = options.get("scene_seed")
    if given is not None:
        return check_scene_seed(given)
    return fixed if fixed is not None else int(np_random.integers(SCENES))


def check_scene_seed(seed: Any) -> int:
    """The seed as it is, or InvalidValueError."""
    if not isinstance(seed, int) or seed < 0:
        raise InvalidValueError(f"scene_seed must be a whole number of at least 0, got {seed!r}")
    return seed
