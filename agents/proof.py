"""The proof: does an agent that learned only in worlds made from single pictures do well in the true world?

Every cell (task, method, seed) is a folder that is trained and examined once; the same command goes on where it was cut
off, and several of it share the cells of one folder. Everybody is examined in `MirageSim-v0` and scored on true
geometry, in the same episodes: held-out scenes of the families that training knows, and the family that it never draws
from.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mirage_env.agents.config import AgentConfig, PPOConfig, WorldConfig
from mirage_env.agents.evaluation import evaluate, filmed, make_agent
from mirage_env.agents.simple import ConstantAgent
from mirage_env.agents.worlds import PICTURES, draw_pool, make_env
from mirage_env.artefacts import prepare_folder, write_text
from mirage_env.config import build
from mirage_env.errors import InvalidValueError, UnknownNameError, check_count
from mirage_env.evaluation.plots import point_chart, stacked, standalone
from mirage_env.simulator import HELD_OUT_FAMILY, TRAINING_SEED

METRIC = {"explore": "known_m3", "point_goal": "spl"}
"""What a task is scored by: cubic metres made known, true; success weighted by path length, true."""
METHODS = {
    "dream": "PPO trained in Mirage-v0",
    "simulator": "PPO trained in MirageSim-v0",
    "drafts": "PPO trained in the warped memory, nothing generated",
    "blind": "PPO trained in MirageSim-v0 without eyes",
    "explorer": "scripted explorer",
    "constant": "best constant policy",
    "random": "random",
}
LEARNED = {
    "dream": "trained in dreams",
    "simulator": "trained in the simulator",
    "drafts": "trained in drafts",
    "blind": "trained without eyes",
}
SCRIPTED = ("explorer", "constant")
"""They draw nothing: the first seed says it all."""
SHEET_MOMENTS = 6
Report = Callable[[str, int, int, dict[str, float]], None]
"""(cell, done, total, latest values)"""


@dataclass(frozen=True)
class ProofConfig:
    """What a YAML of a proof says."""

    kwargs: dict[str, Any]
    """Arguments of `gym.make` that all worlds share."""
    tasks: tuple[str, ...] = ("explore", "point_goal")
    task_kwargs: dict[str, Any] = field(default_factory=dict)
    """One mapping a task."""
    task_worlds: dict[str, Any] = field(default_factory=dict)
    """More arguments of `gym.make`, one mapping a task."""
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 100
    """Steps of an episode."""
    pool: int = 64
    """How many training scenes give one picture each; agents of the simulator learn in the same scenes."""
    pool_first: int = TRAINING_SEED
    pool_stride: int = 9
    """Scenes are `pool_first + k * pool_stride`: every family in turn where it is odd."""
    test_episodes: int = 32
    """In each of the two examinations."""
    constant_episodes: int = 8
    """How many episodes in training scenes choose the best constant action."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    task_ppo: dict[str, Any] = field(default_factory=dict)
    """What a task's agents have other than `ppo`, one mapping a task."""

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in METRIC:
                raise UnknownNameError("task of the proof", task, METRIC)
        for method in self.methods:
            if method not in METHODS:
                raise UnknownNameError("method", method, METHODS)
        for name in ("steps", "pool", "pool_stride", "test_episodes", "constant_episodes"):
            check_count(name, getattr(self, name))
        if self.pool_first < TRAINING_SEED:
            raise InvalidValueError(
                f"pool_first must be a training seed, {TRAINING_SEED} or more, got {self.pool_first}"
            )
        for task in self.task_ppo:
            self.ppo_for(task)
        if not self.seeds:
            raise InvalidValueError("seeds must name at least one seed")
        for seed in self.seeds:
            check_count("a seed", seed, least=0)

    def ppo_for(self, task: str) -> PPOConfig:
        """What PPO is told in this task."""
        return build(PPOConfig, {**asdict(self.ppo), **self.task_ppo.get(task, {})}, f"task_ppo.{task}")

    @property
    def scenes(self) -> tuple[int, ...]:
        """Seeds of the training scenes."""
        return tuple(self.pool_first + k * self.pool_stride for k in range(self.pool))


def prove(config: ProofConfig, folder: Path, minutes: float = math.inf, report: Report | None = None) -> bool:
    """Works off the cells that are missing; True when there is none left. See `write_report` for what stands then."""
    import time

    prepare_folder(folder)
    _same_config(folder / "config.json", config)
    deadline = time.monotonic() + 60 * minutes

    def tell(cell: str) -> Callable[..., None]:
        return lambda done, total, values=None: report and report(cell, done, total, values or {})

    draw_pool(folder / "pool", config.scenes, config.kwargs.get("size", (128, 128)), tell("pool"))
    for seed in config.seeds:
        for task in config.tasks:
            for method in config.methods:
                cell, name = folder / task / method / f"seed-{seed}", f"{task}, {method}, seed {seed}"
                if method in SCRIPTED and seed != config.seeds[0]:
                    continue
                with claimed(cell) as mine:
                    if not mine or (cell / "scores.json").is_file():
                        continue
                    agent = agent_config(config, folder, task, method, seed)
                    if method in LEARNED:
                        from mirage_env.agents.ppo import train

                        left = (deadline - time.monotonic()) / 60
                        if left <= 0 or not train(agent, cell, left, tell(name)):
                            return False
                    _examine(config, agent, task, method, cell, tell(name + ", examined"))
    return not missing(config, folder)


def missing(config: ProofConfig, folder: Path) -> list[tuple[str, str, int]]:
    """(task, method, seed) of every cell that is not done."""
    return [
        (task, method, seed)
        for seed in config.seeds
        for task in config.tasks
        for method in config.methods
        if (method not in SCRIPTED or seed == config.seeds[0])
        and not (folder / task / method / f"seed-{seed}" / "scores.json").is_file()
    ]


@contextlib.contextmanager
def claimed(cell: Path) -> Iterator[bool]:
    """Whether this process alone works on the cell now; a process that dies lets go."""
    prepare_folder(cell)
    with (cell / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except (ImportError, OSError):  # Windows, and file systems without locks
            pass
        yield True


def agent_config(config: ProofConfig, folder: Path, task: str, method: str, seed: int) -> AgentConfig:
    """The agent of a cell: where it learns and where it is examined."""
    own = config.task_worlds.get(task, {})
    kwargs = {**config.kwargs, **own, "task": task, "task_kwargs": config.task_kwargs.get(task, {})}
    names = list(kwargs.get("obs", ("rgb", "depth_u8")))
    kwargs["obs"] = [*names, "goal"] if task == "point_goal" and "goal" not in names else names
    if method == "blind":
        kwargs["obs"] = [name for name in kwargs["obs"] if name not in PICTURES] or ["chunk_phase"]
    pictures = {**kwargs, "images": str(folder / "pool")}
    true = WorldConfig("MirageSim-v0", kwargs, config.steps)
    world = {
        "simulator": replace(true, scene_seeds=config.scenes),
        "blind": replace(true, scene_seeds=config.scenes),  # what it does best: the true collisions
        "drafts": WorldConfig("Mirage-v0", pictures, config.steps, drafts_only=True),
    }.get(method, WorldConfig("Mirage-v0", pictures, config.steps))
    return AgentConfig(world=world, test=true, ppo=config.ppo_for(task), seed=seed)


def examinations(config: ProofConfig, agent: AgentConfig) -> dict[str, WorldConfig]:
    """The two examinations: held-out scenes of known families, and the held-out family."""
    family = {**agent.test.kwargs, "family": HELD_OUT_FAMILY}
    return {"scenes": agent.test, "family": replace(agent.test, kwargs=family)}


def _examine(
    config: ProofConfig, agent: AgentConfig, task: str, method: str, cell: Path, tell: Callable[..., None]
) -> None:
    constant = _best_constant(config, agent, task) if method == "constant" else None

    def make(env: Any) -> Any:
        if constant is not None:
            return ConstantAgent(constant)
        return make_agent("ppo" if method in LEARNED else method, agent, env, cell)

    # The same episodes for all; agents that draw their actions draw others for each seed of training.
    episodes = range(config.test_episodes)
    scores = {
        name: evaluate(lambda env: _Reseeded(make(env), agent.seed), world, episodes, tell)
        for name, world in examinations(config, agent).items()
    }
    _write(cell / "scores.json", {"scores": scores, "constant": constant})


class _Reseeded:
    """An agent whose draws depend on the seed of its training, too."""

    def __init__(self, agent: Any, seed: int):
        self._agent, self._seed, self.act = agent, seed, agent.act

    def begin(self, env: Any, seed: int) -> None:
        self._agent.begin(env, int(np.random.SeedSequence([self._seed, seed]).generate_state(1)[0]))


def _best_constant(config: ProofConfig, agent: AgentConfig, task: str) -> Any:
    """The discrete action (or the bound or zero of each continuous one) that scores most in training scenes."""
    world = replace(agent.test, scene_seeds=config.scenes)
    env: Any = make_env(world)
    space = env.action_space
    env.close()
    if hasattr(space, "n"):
        choices: list[Any] = list(range(int(space.n)))
    else:
        choices = [sign * row for row in np.eye(space.shape[0], dtype=np.float32) for sign in (1, -1)]
    means = []
    for action in choices:
        scores = evaluate(lambda env, action=action: ConstantAgent(action), world, range(config.constant_episodes))
        means.append(np.mean([score[METRIC[task]] for score in scores]))
    best = choices[int(np.argmax(means))]
    return best if isinstance(best, int) else best.tolist()


# ---- what came out --------------------------------------------------------------------------------------------------


def read_scores(config: ProofConfig, folder: Path, task: str, examination: str) -> dict[str, Float[np.ndarray, "s e"]]:
    """method -> the task's metric for every seed that is done and every episode; methods with none are left out."""
    found = {}
    for method in config.methods:
        rows = []
        for seed in config.seeds:
            path = folder / task / method / f"seed-{seed}" / "scores.json"
            if path.is_file():
                episodes = json.loads(path.read_text("utf-8"))["scores"][examination]
                rows.append([episode[METRIC[task]] for episode in episodes])
        if rows:
            found[method] = np.array(rows, float)
    return found


def resampled(scores: dict[str, np.ndarray], resamples: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """method -> its mean in each of `resamples` worlds that could have been: seeds drawn anew for each method, episodes
    drawn anew for all alike, because all were examined in the same ones."""
    rng = np.random.default_rng(seed)
    count = next(iter(scores.values())).shape[1]
    episodes = rng.integers(0, count, (resamples, count))
    means = {}
    for method, table in scores.items():
        seeds = rng.integers(0, len(table), (resamples, len(table)))
        means[method] = np.array([table[s][:, e].mean() for s, e in zip(seeds, episodes, strict=True)])
    return means


def write_report(config: ProofConfig, folder: Path) -> Path:
    """`proof.json`, `proof.md` (the table), and `curves.svg` from the cells that are done; returns the table's path.

    `share` is (method - random) / (simulator-trained PPO - random) with its 95% interval, where both were examined.
    """
    lines, results = [], {}
    for task in config.tasks:
        for examination, title in (("scenes", "held-out scenes"), ("family", f"held-out family ({HELD_OUT_FAMILY})")):
            scores = read_scores(config, folder, task, examination)
            if not scores:
                continue
            drawn = resampled(scores)
            lines += [
                f"\n### {task}, {title}: {METRIC[task]}\n",
                "| method | mean (95%) | share of the simulator-trained | seeds | episodes |",
                "|---|---|---|---|---|",
            ]
            for method, table in scores.items():
                low, high = np.percentile(drawn[method], (2.5, 97.5))
                row = {"mean": table.mean(), "low": low, "high": high, "seeds": len(table), "episodes": table.shape[1]}
                share = "-"
                if {"random", "simulator"} <= scores.keys():
                    gap = drawn["simulator"] - drawn["random"]
                    ratio = (drawn[method] - drawn["random"]) / np.where(np.abs(gap) < 1e-9, np.nan, gap)
                    centre = (table.mean() - scores["random"].mean()) / (
                        scores["simulator"].mean() - scores["random"].mean() or math.nan
                    )
                    bounds = np.nanpercentile(ratio, (2.5, 97.5)) if np.isfinite(ratio).any() else (math.nan, math.nan)
                    row |= {"share": centre, "share_low": bounds[0], "share_high": bounds[1]}
                    if np.isfinite([centre, *bounds]).all():
                        share = f"{centre:.2f} ({bounds[0]:.2f} to {bounds[1]:.2f})"
                results[f"{task}/{examination}/{method}"] = {
                    name: float(value) if math.isfinite(value) else None for name, value in row.items()
                }
                lines.append(
                    f"| {METHODS[method]} | {table.mean():.3f} ({low:.3f} to {high:.3f}) | {share} | {len(table)} | "
                    f"{table.shape[1]} |"
                )
            lines += _compared(drawn, scores)
    _write(folder / "proof.json", results)
    write_text(folder / "curves.svg", _curves(config, folder))
    steps = ", ".join(f"{config.ppo_for(task).total_steps} for {task}" for task in config.tasks)
    about = f"Steps of training: {steps}. {config.pool} pictures, episodes of {config.steps} steps."
    head = f"## The proof\n\n{about}"
    write_text(folder / "proof.md", "\n".join([head, *lines, ""]))
    return folder / "proof.md"


def film_cells(config: ProofConfig, folder: Path, episode: int = 0) -> list[Path]:
    """A video of the first seed of every method that is done, in one episode of held-out scenes, and for each task
    `episodes.jpg`, a row a method."""
    from mirage_env.artefacts import whole_file, write_video
    from mirage_env.contact_sheet import Strip, contact_sheet

    paths = []
    for task in config.tasks:
        strips = []
        for method in (*LEARNED, "explorer", "random"):
            cell = folder / task / method / f"seed-{config.seeds[0]}"
            if method not in config.methods or not (cell / "scores.json").is_file():
                continue
            agent = agent_config(config, folder, task, method, config.seeds[0])
            name = "ppo" if method in LEARNED else method
            scores, frames = filmed(lambda env, n=name, a=agent, c=cell: make_agent(n, a, env, c), agent.test, episode)
            paths.append(cell / "episode.mp4")
            with whole_file(paths[-1]) as partial:
                write_video(partial, frames, fps=5.0)
            moments = np.linspace(0, len(frames) - 1, SHEET_MOMENTS).round().astype(int)
            label = LEARNED.get(method, method)
            strips.append(Strip(label, f"{METRIC[task]} {scores[METRIC[task]]:.3g}", frames[moments]))
        if strips:
            about = f"one held-out scene, {SHEET_MOMENTS} moments from start to end"
            sheet = contact_sheet(strips, title=f"{task} in the true world", subtitle=about, picture_px=128)
            paths.append(folder / task / "episodes.jpg")
            with whole_file(paths[-1]) as partial:
                sheet.save(partial, "JPEG", quality=82)
    return paths


def _curves(config: ProofConfig, folder: Path) -> str:
    """Learning curves in the agents' own worlds: a panel a task, a line a method, from where every world has ended an
    episode; before, only those have that were soon successful."""
    panels, first = [], config.ppo.envs * config.steps
    for task in config.tasks:
        cells = {method: [folder / task / method / f"seed-{seed}" for seed in config.seeds] for method in LEARNED}
        lines = {LEARNED[x]: _mean_curve(cells[x], first) for x in LEARNED if x in config.methods}
        panels.append(point_chart(lines, "steps of training", f"{task}: mean return"))
    return standalone(stacked(panels))


def _mean_curve(cells: Sequence[Path], first: int) -> list[tuple[float, float]]:
    """(steps, return) from step `first`, a mean over the cells that have begun, at steps that all have come to."""
    from mirage_env.agents.ppo import curve

    begun = [{p["steps"]: p["return"] for p in points} for points in map(curve, cells) if points]
    common = sorted(steps for steps in set.intersection(*map(set, begun)) if steps >= first) if begun else []
    return [(steps, float(np.mean([points[steps] for points in begun]))) for steps in common]


def _compared(drawn: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> list[str]:
    """Is the reference real, and does generation add anything?"""
    said = []
    if {"simulator", "explorer"} <= scores.keys() and (drawn["explorer"] > 0).all():
        ratio, (low, high) = drawn["simulator"] / drawn["explorer"], (2.5, 97.5)
        centre = scores["simulator"].mean() / scores["explorer"].mean()
        bounds = np.percentile(ratio, (low, high))
        said.append(f"The simulator-trained over the explorer: {centre:.2f} ({bounds[0]:.2f} to {bounds[1]:.2f}).")
    if {"dream", "drafts"} <= scores.keys():
        centre = scores["dream"].mean() - scores["drafts"].mean()
        bounds = np.percentile(drawn["dream"] - drawn["drafts"], (2.5, 97.5))
        said.append(f"Dreams minus drafts: {centre:+.3f} ({bounds[0]:+.3f} to {bounds[1]:+.3f}).")
    return ["", " ".join(said)] if said else []


def _same_config(path: Path, config: ProofConfig) -> None:
    """A proof goes on only with the configuration that it began with; seeds, methods and tasks may be added."""
    fixed = json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in ("seeds", "methods", "tasks")}))
    if path.is_file() and (before := json.loads(path.read_text("utf-8"))) != fixed:
        changed = sorted(k for k in fixed.keys() | before.keys() if fixed.get(k) != before.get(k))
        raise InvalidValueError(
            f"{path.parent} holds a proof with another {', '.join(changed)}; choose another output folder"
        )
    _write(path, fixed)


def _write(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
