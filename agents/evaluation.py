"""Episodes, what they scored, and how they looked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mirage_env.agents.config import AgentConfig, WorldConfig
from mirage_env.agents.explorer import ExplorerAgent
from mirage_env.agents.simple import Agent, RandomAgent
from mirage_env.agents.worlds import make_env
from mirage_env.artefacts import whole_file, write_video
from mirage_env.envs.env import WalkEnv
from mirage_env.errors import UnknownNameError
from mirage_env.evaluation.metrics import Interval, bootstrap

AGENTS = ("ppo", "explorer", "random")


def make_agent(name: str, config: AgentConfig, env: WalkEnv, folder: Path | None = None) -> Agent:
    """The agent of that name for an environment; "ppo" is the one that was trained in `folder`."""
    if name == "random":
        return RandomAgent()
    if name == "explorer":
        return ExplorerAgent()
    if name != "ppo" or folder is None:
        raise UnknownNameError("agent", name, AGENTS)
    from mirage_env.agents.policy import PolicyAgent
    from mirage_env.agents.ppo import CHECKPOINT

    return PolicyAgent(folder / CHECKPOINT, env, config.ppo)


def run_episode(env: Any, agent: Agent, seed: int, look: Callable[[], None] | None = None) -> dict[str, float]:
    """One episode, reset with `seed`: return, length, collisions, known_m3 (made known after reset), and the last
    reward terms. `look` is called at every frame."""
    observation, info = env.reset(seed=seed)
    agent.begin(env.unwrapped, seed)
    known, total, steps, over = info["known_m3"], 0.0, 0, False
    if look is not None:
        look()
    while not over:
        observation, reward, terminated, truncated, info = env.step(agent.act(observation))
        total, steps = total + float(reward), steps + 1
        over = terminated or truncated
        if look is not None:
            look()
    return {
        "return": total,
        "length": float(steps),
        "collisions": float(info["collisions"]),
        **info["reward_terms"],
        "known_m3": info["known_m3"] - known,
    }


def evaluate(
    make: Callable[[WalkEnv], Agent],
    world: WorldConfig,
    seeds: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, float]]:
    """What `make(env)` scores in one episode for each seed."""
    env: Any = make_env(world)
    try:
        agent, scores = make(env.unwrapped), []
        for done, seed in enumerate(seeds):
            scores.append(run_episode(env, agent, seed))
            if progress is not None:
                progress(done + 1, len(seeds))
        return scores
    finally:
        env.close()


def summary(scores: Sequence[dict[str, float]]) -> dict[str, Interval]:
    """Mean of every number over episodes, with its 95% bootstrap interval."""
    return {name: bootstrap([score[name] for score in scores]) for name in scores[0]}


def film(
    make: Callable[[WalkEnv], Agent], world: WorldConfig, seed: int, path: Path, fps: float = 5.0
) -> dict[str, float]:
    """One episode as a video, the map beside the picture; returns its scores."""
    scores, frames = filmed(make, world, seed)
    with whole_file(path) as partial:
        write_video(partial, frames, fps=fps)
    return scores


def filmed(
    make: Callable[[WalkEnv], Agent], world: WorldConfig, seed: int
) -> tuple[dict[str, float], UInt8[np.ndarray, "T H W 3"]]:
    """Scores of one episode and what it rendered at every moment, the map beside the picture."""
    env: Any = make_env(world, render_mode="rgb_array", render_map=True)
    frames: list[np.ndarray] = []
    try:
        scores = run_episode(env, make(env.unwrapped), seed, lambda: frames.append(env.render()))
    finally:
        env.close()
    return scores, np.stack(frames)
