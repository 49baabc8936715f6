"""Environments as a config describes them, pictures of training scenes, and worlds of drafts alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode
from PIL import Image

from mirage_env.agents.config import WorldConfig
from mirage_env.artefacts import prepare_folder, whole_file, write_text
from mirage_env.envs.env import WalkEnv
from mirage_env.envs.mirage import MirageEnv, picture_pool
from mirage_env.envs.mirage_sim import MirageSimEnv, check_scene_seed
from mirage_env.envs.vector import WalkVectorEnv
from mirage_env.envs.world import SceneSpec
from mirage_env.errors import InvalidValueError, UnknownNameError, check_count, check_size
from mirage_env.types import Cameras, Frames

PICTURES = ("rgb", "depth_u8", "depth", "sky", "map", "remembered", "latent")
"""Observations that eyes make."""


def check_world(config: WorldConfig) -> None:
    """Raises UnknownNameError for an environment that does not exist, ImageError for a pool without pictures."""
    import mirage_env  # noqa: F401 (registers the ids)

    if config.id not in gym.registry:
        raise UnknownNameError("environment", config.id, (name for name in gym.registry if name.startswith("Mirage")))
    if config.kwargs.get("images") is not None:
        picture_pool(config.kwargs["images"])


def make_env(config: WorldConfig, **more: Any) -> WalkEnv:
    """One environment of a config; raises InvalidValueError where `kwargs` names what it does not have."""
    check_world(config)
    kwargs = {**config.kwargs, **more, "max_episode_steps": config.steps}
    if config.drafts_only:
        maker: Any = DraftEnv
    elif config.scene_seeds is not None:
        maker = partial(PoolSimEnv, config.scene_seeds)
    else:
        maker = load_env_creator(gym.spec(config.id).entry_point)
    try:
        env: WalkEnv = maker(**kwargs)
    except TypeError as error:
        raise InvalidValueError(f"{config.id} does not take these kwargs: {error}") from None
    return env


def make_vector(config: WorldConfig, count: int) -> WalkVectorEnv:
    """`count` environments of a config that ask their world together; one that ends begins anew in the same step.

    They go through the networks in batches, whatever that does to the order of sums: nobody compares training frames.
    """
    return WalkVectorEnv([make_env(config) for _ in range(count)], AutoresetMode.SAME_STEP, "batched")


class PoolSimEnv(MirageSimEnv):
    """Every episode draws its simulated scene from a list, unless `reset` is told which."""

    def __init__(self, scene_seeds: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self._seeds = [check_scene_seed(seed) for seed in scene_seeds]
        if not self._seeds:
            raise InvalidValueError("scene_seeds must name at least one scene")

    def scene(self, options: Mapping[str, Any]) -> tuple[SceneSpec, dict[str, Any]]:
        drawn = self._seeds[int(self.np_random.integers(len(self._seeds)))]
        return super().scene({"scene_seed": drawn, **options})


class DraftWorld:
    """The world of the first picture, warped: nothing is generated and nothing new is remembered."""

    def __init__(self, world: Any):
        self.world = world
        self.size, self.latent_size, self.temporal_stride = world.size, world.latent_size, world.temporal_stride
        self.begin, self.begin_many = world.begin, world.begin_many
        self.draft, self.draft_many, self.stats = world.draft, world.draft_many, world.stats

    def advance(self, state: Any, cameras: Cameras) -> tuple[Frames, Any]:
        return self.draft(state, cameras), state

    def advance_many(self, states: list[Any], cameras: list[Cameras], exact: bool = True) -> list[tuple[Frames, Any]]:
        return list(zip(self.draft_many(states, cameras, exact=exact), states, strict=True))


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
    for done, seed in enumerate(sorted(seeds)):  # neighbours share a texture bank
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
