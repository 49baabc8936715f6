"""Agents as the movers of a rollout: `explorer`, and `policy` with what `mirage-env agent train` left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mirage_env.agents.config import load
from mirage_env.agents.explorer import ExplorerAgent
from mirage_env.agents.simple import Agent
from mirage_env.envs.env import WalkEnv


class AgentMover:
    """One agent for one episode."""

    def __init__(self, env: WalkEnv, rng: np.random.Generator, agent: Agent):
        self._agent = agent
        agent.begin(env, int(rng.integers(2**31)))

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        return self._agent.act(observation)


def explorer(env: WalkEnv, rng: np.random.Generator) -> AgentMover:
    """The scripted explorer."""
    return AgentMover(env, rng, ExplorerAgent())


def policy(env: WalkEnv, rng: np.random.Generator, path: str, config: str) -> AgentMover:
    """What PPO learned: `path` is the folder of its training, `config` the name or file that it was trained with."""
    from mirage_env.agents.policy import PolicyAgent
    from mirage_env.agents.ppo import CHECKPOINT

    return AgentMover(env, rng, PolicyAgent(Path(path).expanduser() / CHECKPOINT, env, load(config).ppo))
