"""PPO by Stable-Baselines3: checkpoints, resume, TensorBoard, and a learning curve."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from mirage_env.agents.checkpoint import load_checkpoint, save_checkpoint
from mirage_env.agents.config import AgentConfig, PPOConfig
from mirage_env.agents.policy import check_observations, policy_class, policy_kwargs
from mirage_env.agents.vec_env import SB3VecEnv
from mirage_env.agents.worlds import make_vector
from mirage_env.artefacts import prepare_folder
from mirage_env.world_model import resolve_device

CHECKPOINT = "agent.safetensors"
CURVE = "curve.jsonl"
REMEMBERED = 50
"""A point of the learning curve is the mean over so many finished episodes."""
LAST_RATE = 0.05
"""Where annealing ends, as a share of the learning rate."""
Report = Callable[[int, int, dict[str, float]], None]


def train(
    config: AgentConfig,
    folder: Path,
    minutes: float = math.inf,
    report: Report | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Trains up to `ppo.total_steps`, or `minutes`; goes on where `folder` was left. True when it is complete.

    A rollout that began in time is still learned from. `clock` tells the seconds; `time.process_time` counts only those
    of this process.

    `folder` gets agent.safetensors (policy, optimizer, steps, config), curve.jsonl (one line a rollout: steps, seconds,
    mean return and terms of the last episodes) and tensorboard/. Weights, optimizer and steps are kept; episodes that
    were under way when it was cut off begin anew.
    """
    prepare_folder(folder)
    checkpoint = folder / CHECKPOINT
    vector = VecMonitor(SB3VecEnv(make_vector(config.world, config.ppo.envs)))
    try:
        check_observations(vector.observation_space)
        spaces = vector.observation_space, vector.action_space
        model = PPO(
            policy_class(config.ppo),
            vector,
            **{
                name: getattr(config.ppo, name)
                for name in ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "clip_range",
                             "vf_coef", "max_grad_norm")
            },
            device=resolve_device(config.ppo.device),
            learning_rate=_learning_rate(config.ppo),
            policy_kwargs=policy_kwargs(config.ppo),
            tensorboard_log=str(folder / "tensorboard") if config.ppo.tensorboard else None,
        )  # fmt: skip
        seconds = 0.0
        if checkpoint.is_file():
            card = load_checkpoint(checkpoint, model.policy, *spaces)
            model.num_timesteps, seconds = int(card["steps"]), float(card["seconds"])
        left = config.ppo.total_steps - model.num_timesteps
        if left <= 0:
            return True
        # A resumed run draws other random numbers than the run that it continues drew at its start.
        model.set_random_seed(int(np.random.SeedSequence([config.seed, model.num_timesteps]).generate_state(1)[0] >> 1))
        keeper = _Keeper(config, folder, spaces, seconds, 60.0 * minutes, report, clock)
        model.learn(left, keeper, reset_num_timesteps=False, tb_log_name="ppo")
        return keeper.saved >= config.ppo.total_steps
    finally:
        vector.close()


def _learning_rate(config: PPOConfig) -> float | Callable[[float], float]:
    if not config.anneal:
        return config.learning_rate
    return lambda left: config.learning_rate * max(left, LAST_RATE)


class _Keeper(BaseCallback):
    """Writes curve and checkpoints, tells how it goes, and stops in time."""

    def __init__(
        self,
        config: AgentConfig,
        folder: Path,
        spaces: tuple[Any, Any],
        seconds: float,
        limit_s: float,
        report: Report | None,
        clock: Callable[[], float],
    ):
        super().__init__()
        self._config, self._folder, self._spaces = config, folder, spaces
        self._report, self._limit_s, self._clock = report, limit_s, clock
        self._before_s, self._start = seconds, clock()
        self._episodes: deque[dict[str, float]] = deque(maxlen=REMEMBERED)
        self._late = False
        self.saved = 0
        """Steps after which the checkpoint was written."""

    def _on_training_start(self) -> None:
        self.saved = self.num_timesteps
        path = self._folder / CURVE
        if path.is_file():  # points after the checkpoint are drawn again
            kept = [x for x in path.read_text("utf-8").splitlines() if json.loads(x)["steps"] <= self.num_timesteps]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                terms = {k: v for k, v in info["reward_terms"].items() if k.split("/")[-1] in ("success", "spl")}
                self._episodes.append(
                    {
                        "return": info["episode"]["r"],
                        "known_m3": info["known_m3"],
                        "length": info["episode"]["l"],
                        **terms,
                    }
                )
        return not self._late

    def _on_rollout_end(self) -> None:
        if not self._episodes:
            return
        means = {name: float(np.mean([e[name] for e in self._episodes])) for name in self._episodes[0]}
        for name, value in means.items():
            self.logger.record(f"episode/{name}", value)
        line = {"steps": self.num_timesteps, "seconds": round(self._seconds(), 2), **means}
        with (self._folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._report is not None:
            self._report(min(self.num_timesteps, self._config.ppo.total_steps), self._config.ppo.total_steps, means)

    def _on_rollout_start(self) -> None:
        self._late = self._clock() - self._start >= self._limit_s  # steps of a rollout cut short would teach nothing
        if self._late or self.num_timesteps - self.saved >= self._config.ppo.checkpoint_steps:
            self.save()

    def _on_training_end(self) -> None:
        if not self._late:
            self.save()

    def save(self) -> None:
        """The policy after its last update, and how far it has come."""
        card = {"steps": self.num_timesteps, "seconds": self._seconds(), "config": asdict(self._config)}
        save_checkpoint(self._folder / CHECKPOINT, self.model.policy, *self._spaces, card)
        self.saved = self.num_timesteps

    def _seconds(self) -> float:
        return self._before_s + self._clock() - self._start


def curve(folder: Path) -> list[dict[str, float]]:
    """The points of a learning curve; empty where there is none."""
    path = folder / CURVE
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if os.path.exists(path) else []
