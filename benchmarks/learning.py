"""What learns most in a second: chunk length, feedback and resolution, each given the same time to learn a task.

python benchmarks/learning.py --out runs/learning
python benchmarks/learning.py --task point_goal --settings 1:draft:64 8:hold:64 --seconds 100 200

Every setting (chunk:feedback:side in pixels) trains PPO in Mirage-v0, and is examined in held-out scenes of
MirageSim-v0 at `chunk=1` and its own resolution whenever it has learned for so many seconds. A second is one of
processor time of this process on one thread, the update of the policy included and the examinations not: other load
does not count. Called again, it goes on; several of it share the settings of one folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mirage_env.agents.checkpoint import read_card
from mirage_env.agents.config import AgentConfig, load
from mirage_env.agents.evaluation import evaluate, make_agent
from mirage_env.agents.ppo import CHECKPOINT, train
from mirage_env.agents.proof import METRIC, claimed
from mirage_env.agents.worlds import draw_pool
from mirage_env.artefacts import prepare_folder, write_text
from mirage_env.errors import InvalidValueError
from mirage_env.evaluation.metrics import Interval, bootstrap
from mirage_env.evaluation.plots import point_chart, standalone
from mirage_env.simulator import TRAINING_SEED

PRESETS = {"explore": "explore", "point_goal": "point-goal"}
SETTINGS = ("1:draft:64", "2:draft:64", "4:draft:64", "4:hold:64", "8:draft:64", "8:hold:64", "1:draft:32",
            "4:draft:32", "8:draft:128")  # fmt: skip
POOL_STRIDE = 5
"""Of the scenes whose pictures are used; few sets of textures, as in the proof."""
SIZE = 64
"""Where random walks, from which every curve begins."""


@dataclass(frozen=True)
class Setting:
    chunk: int
    feedback: str
    size: int

    @classmethod
    def parse(cls, text: str) -> Setting:
        try:
            chunk, feedback, size = text.split(":")
            return cls(int(chunk), feedback, int(size))
        except ValueError:
            raise InvalidValueError(f'a setting must look like 4:draft:64, got "{text}"') from None

    @property
    def name(self) -> str:
        between = f" {self.feedback}" if self.chunk > 1 else ""
        return f"chunk {self.chunk}{between}, {self.size} px"

    @property
    def folder(self) -> str:
        return f"{self.chunk}-{self.feedback}-{self.size}"


@dataclass(frozen=True)
class Point:
    """What a setting had learned after so many seconds of processor time."""

    seconds: float
    steps: int
    scores: tuple[float, ...]
    """The task's metric in every episode of the examination."""

    @property
    def mean(self) -> Interval:
        return bootstrap(self.scores)


def configured(task: str, setting: Setting, folder: Path, weights: Path | None) -> AgentConfig:
    """The preset of the task at a setting; nothing ends it but time, so its learning rate does not fall."""
    config = load(PRESETS[task], ["ppo.total_steps=1000000000", "ppo.tensorboard=false"])
    size = {"size": [setting.size, setting.size]}
    own: dict[str, Any] = {**size, "images": str(folder / "pool"), "chunk": setting.chunk, "feedback": setting.feedback}
    if weights is not None:
        own["weights"] = str(weights)
    return replace(
        config,
        world=replace(config.world, kwargs={**config.world.kwargs, **own}),
        test=replace(config.test, kwargs={**config.test.kwargs, **size, "chunk": 1}),
    )


def examined(agent: str, config: AgentConfig, task: str, episodes: int, cell: Path) -> tuple[float, ...]:
    scores = evaluate(lambda env: make_agent(agent, config, env, cell), config.test, range(episodes))
    return tuple(score[METRIC[task]] for score in scores)


def learn(config: AgentConfig, task: str, cell: Path, targets: Sequence[float], episodes: int) -> None:
    """Trains to every target in seconds that has no point yet, and adds the point."""
    points = read_points(cell)
    for target in targets[len(points) :]:
        done_s = read_card(cell / CHECKPOINT)["seconds"] if (cell / CHECKPOINT).is_file() else 0.0
        train(config, cell, (target - done_s) / 60, clock=time.process_time)
        card = read_card(cell / CHECKPOINT)
        points.append(Point(card["seconds"], card["steps"], examined("ppo", config, task, episodes, cell)))
        write_text(cell / "points.json", json.dumps([asdict(point) for point in points], indent=1) + "\n")


def read_points(cell: Path) -> list[Point]:
    path = cell / "points.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else []
    return [Point(point["seconds"], point["steps"], tuple(point["scores"])) for point in found]


def write_report(folder: Path, task: str, settings: Sequence[Setting], targets: Sequence[float]) -> str:
    """learning.md, a row a setting, and learning.svg, a curve a setting; returns the table.

    Its last column compares each setting with the first one at the last point that both have, episode by episode.
    """
    chance = read_points(folder / "random")
    found = {setting: points for setting in settings if (points := read_points(folder / setting.folder))}
    heads = [f"{METRIC[task]} after {target:g} s (95%)" for target in targets]
    heads.append(f"less {settings[0].name}, then")
    rows = [["setting", "CPU ms a step", "steps", *heads], ["---"] * (3 + len(heads))]
    for setting, points in found.items():
        last, scores = points[-1], [_told(point.mean) for point in points]
        scores += ["-"] * (len(targets) - len(points))
        scores.append(_told(_ahead(points, found.get(settings[0], [])), "+") if setting != settings[0] else "-")
        rows.append([setting.name, f"{1000 * last.seconds / last.steps:.1f}", str(last.steps), *scores])
    if chance:
        rows.append(["random", "-", "0", _told(chance[0].mean), *["-"] * len(targets)])
    curves: Mapping[str, Sequence[tuple[float, float]]] = {
        setting.name: [(point.seconds, point.mean.mean) for point in [*chance, *points]]
        for setting, points in found.items()
    }
    chart = point_chart(curves, "seconds of one core", f"{METRIC[task]} in the true world")
    write_text(folder / "learning.svg", standalone(chart))
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    write_text(folder / "learning.md", table)
    return table


def _ahead(points: Sequence[Point], reference: Sequence[Point]) -> Interval:
    """By how much the last point that both have is above the reference's, in the same episodes."""
    both = list(zip(points, reference, strict=False))
    return bootstrap([a - b for a, b in zip(both[-1][0].scores, both[-1][1].scores, strict=True)] if both else [])


def _told(interval: Interval, sign: str = "") -> str:
    if not interval.scenes:
        return "-"
    digits = 1 if abs(interval.mean) >= 10 else 2
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in interval[:3])
    return f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=METRIC, default="explore")
    parser.add_argument("--settings", type=Setting.parse, nargs="+", default=[Setting.parse(x) for x in SETTINGS])
    parser.add_argument("--seconds", type=float, nargs="+", default=[50.0, 100.0, 200.0], help="points of a curve")
    parser.add_argument("--episodes", type=int, default=16, help="of each examination")
    parser.add_argument("--pool", type=int, default=32, help="pictures to make worlds from")
    parser.add_argument("--weights", type=Path, help="a folder of weights instead of those of the package")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    folder, task, targets = prepare_folder(arguments.out / arguments.task), arguments.task, sorted(arguments.seconds)
    draw_pool(folder / "pool", range(TRAINING_SEED, TRAINING_SEED + POOL_STRIDE * arguments.pool, POOL_STRIDE))
    with claimed(folder / "random") as mine:
        if mine and not read_points(folder / "random"):
            config = configured(task, Setting(1, "draft", SIZE), folder, arguments.weights)
            scores = examined("random", config, task, arguments.episodes, folder)
            write_text(folder / "random" / "points.json", json.dumps([asdict(Point(0.0, 0, scores))]) + "\n")
    for index in range(len(targets)):  # all settings come to a point before one goes on to the next
        for setting in arguments.settings:
            cell = folder / setting.folder
            with claimed(cell) as mine:
                if mine:
                    config = configured(task, setting, folder, arguments.weights)
                    learn(config, task, cell, targets[: index + 1], arguments.episodes)
            write_report(folder, task, arguments.settings, targets)
    print(write_report(folder, task, arguments.settings, targets))


if __name__ == "__main__":
    main()
