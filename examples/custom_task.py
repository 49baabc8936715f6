"""A task of one's own, in ten lines: come near something blue. python examples/custom_task.py

`task=Blue()` is all that one script needs. A package makes it known by name, `task="blue"`, in its pyproject.toml:

    [project.entry-points."mirage_env.tasks"]
    blue = "my_package:Blue"
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

import mirage_env  # noqa: F401 (registers the environments)
from mirage_env.envs.tasks import Moment, Verdict


class Blue:
    def begin(self, moment: Moment, np_random: np.random.Generator) -> None:
        return None

    def judge(self, state: None, moment: Moment) -> Verdict:
        if moment.frames is None:  # a chunk fills: nothing new was generated
            return Verdict(terms={"blue": 0.0})
        red, green, blue = moment.frames.rgb[-1].float().mean((0, 1)).tolist()
        share = blue / (red + green + blue + 1.0)
        return Verdict(reward=share, terminated=share > 0.6, terms={"blue": share})


if __name__ == "__main__":
    # Tasks add up: this one pays for blue, and a little for what becomes known.
    task: dict[str, Any] = {"blue": (Blue(), 1.0), "explore": 0.01}
    env = gym.make("Mirage-v0", image="courtyard", size=(64, 64), task=task, action_mode="discrete")
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(12):
        _, reward, _, _, info = env.step(env.action_space.sample())
        print(f"reward {reward:.3f}", {name: round(value, 3) for name, value in info["reward_terms"].items()})
    env.close()
