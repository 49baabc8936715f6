"""PPO in worlds made from pictures, in miniature: python examples/train_ppo.py [folder of pictures]

A real run is one command: mirage-env agent train explore world.kwargs.images=my_pictures
"""

from __future__ import annotations

import sys
from pathlib import Path

from mirage_env.agents.config import load
from mirage_env.agents.evaluation import evaluate, film, make_agent, summary
from mirage_env.agents.ppo import train
from mirage_env.images import builtin_names

FOLDER = Path("runs/example-ppo")
images = sys.argv[1] if len(sys.argv) > 1 else str(builtin_names()).replace("'", "")
config = load(
    "point-goal",
    [
        f"world.kwargs.images={images}",
        *("ppo.total_steps=256", "ppo.envs=4", "ppo.n_steps=32", "ppo.batch_size=64", "ppo.tensorboard=false"),
        *("test.kwargs.scene_seed=0", "test.steps=20"),
    ],
)


def show(done: int, total: int, values: dict[str, float]) -> None:
    print(f"{done} of {total} steps: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))


train(config, FOLDER, report=show)  # called again, it goes on; here it was complete
for name in ("ppo", "random"):
    scores = evaluate(lambda env, name=name: make_agent(name, config, env, FOLDER), config.test, range(2))
    mean, low, high, _ = summary(scores)["spl"]
    print(f"{name} in the true world: SPL {mean:.2f} ({low:.2f} to {high:.2f})")
film(lambda env: make_agent("ppo", config, env, FOLDER), config.test, 0, FOLDER / "episode.mp4")
print(f"{FOLDER / 'episode.mp4'} shows an episode, {FOLDER / 'curve.jsonl'} how it learned")
