"""Eight worlds at once, each from a picture of its own: python examples/vectorised_rollout.py [folder of pictures]"""

from __future__ import annotations

import sys
import time

import gymnasium as gym
import numpy as np

import mirage_env  # noqa: F401 (registers the environments)
from mirage_env.images import builtin_names

N, STEPS = 8, 16
images = sys.argv[1] if len(sys.argv) > 1 else builtin_names()
envs = gym.make_vec("Mirage-v0", num_envs=N, images=images, size=(64, 64), chunk=4, task="explore")
observations, infos = envs.reset(seed=0)
rng = np.random.default_rng(0)

returns, started = np.zeros(N), time.perf_counter()
for _ in range(STEPS):
    actions = np.stack([rng.uniform(0, 1, N), np.zeros(N), rng.uniform(-1, 1, N)], axis=1)  # forward, sideways, turn
    observations, rewards, terminated, truncated, infos = envs.step(actions.astype(np.float32))
    returns += rewards
rate = N * STEPS / (time.perf_counter() - started)
envs.close()

print(f"{N} worlds, observations {observations['rgb'].shape}: {rate:.1f} steps a second")
for image, known_m3 in zip(infos["image"], returns, strict=True):
    print(f"  {image}: {known_m3:.1f} cubic metres became known")
