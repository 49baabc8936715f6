"""Walk into a picture through the Gymnasium API: python examples/quickstart.py [my.jpg]"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
from PIL import Image

import mirage_env  # noqa: F401 (registers the environments)

env = gym.make("Mirage-v0", image=sys.argv[1] if len(sys.argv) > 1 else None, render_mode="rgb_array")
observation, info = env.reset(seed=0)
print(f"rgb {observation['rgb'].shape}, depth {observation['depth'].shape} in metres, actions {env.action_space}")

FORWARD, LOOK_RIGHT, LOOK_LEFT = np.eye(3, dtype=np.float32)[0], np.float32([0, 0, 1]), np.float32([0, 0, -1])
pictures = [env.render()]
for action in [LOOK_RIGHT] * 3 + [LOOK_LEFT] * 3 + [0.5 * FORWARD] * 4:
    observation, reward, terminated, truncated, info = env.step(action)
    pictures.append(env.render())
env.close()

Image.fromarray(np.concatenate(pictures, axis=1)).save("quickstart.png")
print("What the walk looked like is in quickstart.png; what info tells:", ", ".join(info))
