"""What learns most in a second: chunk length, feedback and resolution, each given the same time to learn point_goal.

python benchmarks/learning.py --seconds 600 --out runs/learning

Every setting trains PPO in Mirage-v0 for so many seconds of wall clock, then walks in held-out scenes of MirageSim-v0
at `chunk=1` and the same resolution. Called again, it goes on. Run it on a quiet machine: seconds are what it measures.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

from mirage_env.agents.checkpoint import read_card
from mirage_env.agents.config import load
from mirage_env.agents.evaluation import evaluate, make_agent, summary
from mirage_env.agents.ppo import CHECKPOINT, train
from mirage_env.agents.worlds import draw_pool
from mirage_env.artefacts import prepare_folder, write_text
from mirage_env.simulator import TRAINING_SEED


def settings(chunks: list[int], sizes: list[int]) -> list[tuple[int, str, int]]:
    """(chunk, feedback, side in pixels); with chunk 1 nothing is drafted or held."""
    return [
        (chunk, feedback, size)
        for size, chunk, feedback in itertools.product(sizes, chunks, ("draft", "hold"))
        if chunk > 1 or feedback == "draft"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of training for each setting")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--pool", type=int, default=32, help="pictures to make worlds from")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    arguments = parser.parse_args()

    folder = prepare_folder(arguments.out)
    draw_pool(folder / "pool", range(TRAINING_SEED, TRAINING_SEED + arguments.pool))
    lines = ["| chunk | feedback | size | steps | steps / s | SPL in the true world (95%) | return |", "|" + "---|" * 7]
    for chunk, feedback, size in settings(arguments.chunks, arguments.sizes):
        cell = prepare_folder(folder / f"chunk-{chunk}-{feedback}-{size}")
        if not (cell / "scores.json").is_file():
            config = load(
                "point-goal", [f"ppo.envs={arguments.envs}", "ppo.total_steps=100000000", "ppo.tensorboard=false"]
            )
            own = {"images": str(folder / "pool"), "chunk": chunk, "feedback": feedback, "size": [size, size]}
            world = replace(config.world, kwargs={**config.world.kwargs, **own})
            test = replace(config.test, kwargs={**config.test.kwargs, "size": [size, size]})
            config = replace(config, world=world, test=test)
            train(config, cell, arguments.seconds / 60)
            scores = evaluate(
                lambda env, config=config, cell=cell: make_agent("ppo", config, env, cell),
                test,
                range(arguments.episodes),
            )
            write_text(cell / "scores.json", json.dumps(scores))
        found = summary(json.loads((cell / "scores.json").read_text("utf-8")))
        card, spl = read_card(cell / CHECKPOINT), found["spl"]
        lines.append(
            f"| {chunk} | {feedback if chunk > 1 else '-'} | {size} | {card['steps']} | "
            f"{card['steps'] / card['seconds']:.1f} | "
            f"{spl.mean:.3f} ({spl.low:.3f} to {spl.high:.3f}) | {found['return'].mean:.2f} |"
        )
        write_text(folder / "learning.md", "\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
