"""Lets the environment know Gymnasium's time limit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs


class InnerTimeLimit(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Tells the environment the limit of the `TimeLimit` wrapper around it.

    `gym.make(id, max_episode_steps=n)` keeps n for its own wrapper. The environment must know it, so that it generates
    the rest of a chunk before the last observation; then both truncate at the same step, after `restore` too.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._outer = env if isinstance(env, gym.wrappers.TimeLimit) else None
        limit = env.spec.max_episode_steps if env.spec is not None else None
        inner: Any = env.unwrapped
        if limit is not None:
            inner.max_episode_steps = min(limit, inner.max_episode_steps or limit)

    def step(self, action: Any) -> Any:
        """One action; `TimeLimit` is told how many came before, because a restored walk goes on at another count."""
        if self._outer is not None:
            inner: Any = self.env.unwrapped
            self._outer._elapsed_steps = inner.steps
        return self.env.step(action)
