"""The environment ids. Entry points are strings, so that registering imports neither torch nor a model."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec

MAX_EPISODE_STEPS = 500
"""Registered default; `gym.make(id, max_episode_steps=n)` sets another, -1 none."""

_ENTRY_POINTS = {
    "Mirage-v0": "mirage_env.envs.mirage:MirageEnv",
    "MirageSim-v0": "mirage_env.envs.mirage_sim:MirageSimEnv",
    "MirageTwin-v0": "mirage_env.envs.mirage_twin:MirageTwinEnv",
}


def register_all() -> None:
    """Registers every id once; calling it again changes nothing."""
    inner_limit = WrapperSpec("InnerTimeLimit", "mirage_env.envs.time_limit:InnerTimeLimit", kwargs={})
    for env_id, entry_point in _ENTRY_POINTS.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point, max_episode_steps=MAX_EPISODE_STEPS, additional_wrappers=(inner_limit,))
