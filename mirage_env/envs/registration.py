"""The environment ids. Entry points are strings, so that registering imports neither torch nor a model."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec

MAX_EPISODE_STEPS = 500
"""Registered default; `gym.make(id, max_episode_steps=n)` sets another, -1 none."""

_ENTRY_POINTS = {
    "Mirage-v0": ("mirage_env.envs.mirage:MirageEnv", "mirage_env.envs.vector:MirageVectorEnv"),
    "MirageSim-v0": ("mirage_env.envs.mirage_sim:MirageSimEnv", "mirage_env.envs.vector:MirageSimVectorEnv"),
    "MirageTwin-v0": ("mirage_env.envs.mirage_twin:MirageTwinEnv", "mirage_env.envs.vector:MirageTwinVectorEnv"),
}
"""Environment id -> where one environment comes from, and where many at once do."""


class OfSingles(tuple[WrapperSpec, ...]):
    """Wrappers of single environments. `gym.make_vec` refuses a spec with wrappers of a length above 0, although a
    vector environment never gets them; a time limit, for one, it is told itself."""

    def __len__(self) -> int:
        return 0


def register_all() -> None:
    """Registers every id once; calling it again changes nothing."""
    inner_limit = WrapperSpec("InnerTimeLimit", "mirage_env.envs.time_limit:InnerTimeLimit", kwargs={})
    for env_id, (single, vector) in _ENTRY_POINTS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                single,
                vector_entry_point=vector,
                max_episode_steps=MAX_EPISODE_STEPS,
                additional_wrappers=OfSingles((inner_limit,)),
            )
