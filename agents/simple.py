"""An agent is two methods; here are the ones without a thought."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from mirage_env.envs.env import WalkEnv


@runtime_checkable
class Agent(Protocol):
    """Acts in one environment at a time."""

    def begin(self, env: WalkEnv, seed: int) -> None:
        """Called after every `reset` of `env`."""
        ...

    def act(self, observation: Any) -> Any:
        """An action of the environment's space."""
        ...


class RandomAgent:
    """Draws actions evenly."""

    def begin(self, env: WalkEnv, seed: int) -> None:
        self._space, self._rng = env.action_space, np.random.default_rng(seed)

    def act(self, observation: Any) -> Any:
        if hasattr(self._space, "n"):
            return int(self._rng.integers(self._space.n))
        return self._rng.uniform(self._space.low, self._space.high).astype(np.float32)  # type: ignore[attr-defined]


class ConstantAgent:
    """Always the same action. Policies that see nothing and remember nothing cannot do better than the best of these
    and of their mixtures."""

    def __init__(self, action: Any):
        self.action = action

    def begin(self, env: WalkEnv, seed: int) -> None:
        pass

    def act(self, observation: Any) -> Any:
        return self.action
