"""Walk into a picture through the Gymnasium API: python examples/quickstart.py [my.jpg]"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
from PIL import Image

import mirage_env  # noqa: F401 (registers the environments)

env = gym.make("Mirage-v0", image=sys.argv[1] if len(sys.argv) > 1 else None, obs=("rgb", "depth"))
observation, info = env.reset(seed=0)
print(f"rgb {observation['rgb'].shape}, depth {observation['depth'].shape} in metres, actions {env.action_space}")

forward, look_right, look_left = [0.5, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]
pictures = [observation["rgb"]]
for action in [look_right] * 3 + [look_left] * 3 + [forward] * 4:
    observation, reward, terminated, truncated, info = env.step(np.array(action, np.float32))
    pictures.append(observation["rgb"])
env.close()

Image.fromarray(np.concatenate(pictures, axis=1)).save("quickstart.png")
print("The walk is in quickstart.png. What info tells:", ", ".join(info))
