"""The environment ids. Entry points are strings, so that registering imports neither torch nor a model."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike, fspath
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec

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


class PlainSpec:
    """The attribute `spec` of an environment. Paths in it become strings, so that it can be written to JSON; `always`
    are fields that it has whatever it is set to."""

    def __init__(self, **always: Any):
        self.always = always

    def __get__(self, env: Any, owner: type) -> EnvSpec | None:
        return None if env is None else env.__dict__.get("_spec")

    def __set__(self, env: Any, spec: EnvSpec | None) -> None:
        env.__dict__["_spec"] = (
            None if spec is None else replace(spec, kwargs=_without_paths(spec.kwargs), **self.always)
        )


def _without_paths(value: Any) -> Any:
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, dict):
        return {name: _without_paths(inner) for name, inner in value.items()}
    return type(value)(map(_without_paths, value)) if type(value) in (list, tuple) else value


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
