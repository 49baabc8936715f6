"""Environments as a config describes them, pictures of training scenes, and worlds of drafts alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from mirage_env.agents.config import WorldConfig
from mirage_env.artefacts import prepare_folder, whole_file, write_text
from mirage_env.envs.mirage import MirageEnv, picture_pool
from mirage_env.envs.mirage_sim import MirageSimEnv
from mirage_env.envs.world import SceneSpec, World
from mirage_env.errors import InvalidValueError, UnknownNameError, check_count, check_size
from mirage_env.simulator.materials import TRAINING_BANKS
from mirage_env.types import Cameras, Frames

PICTURES = ("rgb", "depth_u8", "depth")


def check_world(config: WorldConfig) -> None:
    """Raises UnknownNameError for an environment that does not exist, ImageError for a pool without pictures."""
    import mirage_env  # noqa: F401 (registers the ids)

    if config.id not in gym.registry:
        raise UnknownNameError("environment", config.id, (name for name in gym.registry if name.startswith("Mirage")))
    if config.kwargs.get("images") is not None:
        picture_pool(config.kwargs["images"])


def make_env(config: WorldConfig, **more: Any) -> gym.Env[Any, Any]:
    """The environment of a config; raises InvalidValueError where `kwargs` names what it does not have."""
    check_world(config)
    kwargs = {**config.kwargs, **more}
    try:
        if config.drafts_only:
            env: gym.Env[Any, Any] = gym.wrappers.TimeLimit(DraftEnv(**kwargs), config.steps)
            env.unwrapped.max_episode_steps = config.steps  # type: ignore[attr-defined]
        else:
            env = gym.make(config.id, max_episode_steps=config.steps, disable_env_checker=True, **kwargs)
    except TypeError as error:
        raise InvalidValueError(f"{config.id} does not take these kwargs: {error}") from None
    if config.scene_seeds is not None:
        env = SceneDraw(env, config.scene_seeds)
    return Blind(env) if config.blind else env


class SceneDraw(gym.Wrapper[Any, Any, Any, Any]):
    """Every episode draws its simulated scene from a list, unless `reset` is told which."""

    def __init__(self, env: gym.Env[Any, Any], seeds: Sequence[int]):
        super().__init__(env)
        if not seeds:
            raise InvalidValueError("scene_seeds must name at least one scene")
        self._seeds, self._rng = tuple(seeds), np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng([seed, 7])
        drawn = {"scene_seed": self._seeds[int(self._rng.integers(len(self._seeds)))]}
        return self.env.reset(seed=seed, options={**drawn, **(options or {})})


class Blind(gym.ObservationWrapper[Any, Any, Any]):
    """Pictures and depth are black; everything else stays."""

    def observation(self, observation: Any) -> Any:
        return {name: np.zeros_like(x) if name in PICTURES else x for name, x in observation.items()}


class DraftWorld:
    """The world of the first picture, warped: nothing is generated and nothing new is remembered."""

    def __init__(self, world: World):
        self._world = world
        self.size, self.latent_size, self.temporal_stride = world.size, world.latent_size, world.temporal_stride
        self.draft, self.stats = world.draft, world.stats

    def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, Any]:
        return self._world.begin(scene, seed)

    def advance(self, state: Any, cameras: Cameras) -> tuple[Frames, Any]:
        return self._world.draft(state, cameras), state


class DraftEnv(MirageEnv):
    """`Mirage-v0` in a `DraftWorld`: the same memory, the same picture, no generation."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.world = DraftWorld(self.world)


def draw_pool(
    folder: Path,
    scene_seeds: Sequence[int],
    size: Any = (128, 128),
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One picture of each simulated scene: `scene-SEED.png` in `folder`, and `pool.json` with K, field of view, family.

    Pictures are the first frames that `MirageSim-v0` shows of these scenes, level and 1.2 m above the floor. What is
    there already is not drawn again. Scenes that training draws from have seeds from 1,000,000 on.
    """
    size = check_size(size)
    seeds = [check_count("scene seed", seed, least=0) for seed in scene_seeds]
    if not seeds:
        raise InvalidValueError("a pool needs at least one scene")
    target = prepare_folder(folder)
    env = MirageSimEnv(size=size, obs="rgb")
    files = {seed: target / f"scene-{seed}.png" for seed in seeds}
    for done, seed in enumerate(sorted(seeds, key=lambda seed: seed % TRAINING_BANKS)):  # each bank is drawn once
        if not files[seed].is_file():
            picture, _ = env.reset(seed=seed, options={"scene_seed": seed})
            with whole_file(files[seed]) as partial:
                Image.fromarray(picture).save(partial, "PNG")
        if progress is not None:
            progress(done + 1, len(seeds))
    intrinsics, lens = env.lens()
    about = {
        "size": list(size),
        "fov_deg": lens["fov_deg"],
        "intrinsics_px": intrinsics.tolist(),
        "family_of_scene": {str(seed): env.world.family_of(seed) for seed in sorted(seeds)},
    }
    write_text(target / "pool.json", json.dumps(about, indent=1) + "\n")
    return [files[seed] for seed in seeds]
