"""What a rollout costs: the overhead over raw stepping, frames a second and bytes a frame by shards and by ray, what
`plan` foretold, and resident memory over many short episodes.

python benchmarks/rollout.py --shards 1 2 4 --ray      the table of docs/rollouts.md
python benchmarks/rollout.py --plan                    what plan said beside what it took, for several configurations
python benchmarks/rollout.py --memory                  a thousand short episodes
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from mirage_env.rollout import movers
from mirage_env.rollout.config import Run, RunConfig
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.plan import plan
from mirage_env.rollout.run import Worker, mine


def raw(worker: Worker, unit: int) -> int:
    """Frames of a unit's episodes, stepped together with their movers; nothing is stored."""
    run, vector = worker.run, worker.vector
    jobs = run.jobs(unit)
    for env in vector.envs:
        env.close()
    options = [job.source.reset_options(worker.size, None) for job in jobs]
    walks = [env.resetting(job.seed, o) for env, job, o in zip(vector.envs, jobs, options, strict=True)]
    seen = vector.together(walks)
    moving = [
        movers.make_mover(run.config.mover, env, np.random.default_rng(job.mover_seed))
        for env, job in zip(vector.envs, jobs, strict=True)
    ]
    for _ in range(run.config.steps):
        actions = [mover.act(*s) for mover, s in zip(moving, seen, strict=True)]
        results = vector.together([env.stepping(a) for env, a in zip(vector.envs, actions, strict=True)])
        seen = [(result[0], result[4]) for result in results]
        for env in vector.envs:
            env.take_chunk()
    return len(jobs) * (run.config.steps + 1)


def stored(worker: Worker, unit: int, folder: str) -> int:
    """Frames of the same unit, on disk."""
    sidecar = worker.generate(RunFolder(folder), unit)
    assert sidecar is not None
    return sum(episode["frames"] for episode in sidecar["episodes"])


T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What it returns, the seconds that it took, and those of this process's processors."""
    start, busy = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - busy


def overhead(config: RunConfig, repeats: int) -> tuple[list[tuple[str, float]], str]:
    """(name, frames a second) of raw stepping and of storing, side by side so that other load weighs on both."""
    worker = Worker(Run(config))
    ratios, speeds = [], []
    for repeat in range(-1, repeats):
        with tempfile.TemporaryDirectory() as folder:
            pair = [lambda: raw(worker, 0), lambda: stored(worker, 0, folder)]
            times = {index: timed(pair[index]) for index in ((0, 1) if repeat % 2 else (1, 0))}
        (frames, alone, alone_busy), (_, seconds, busy) = times[0], times[1]
        if repeat >= 0:  # the first ones warm
            ratios.append((seconds / alone, busy / alone_busy))
            speeds.append((frames / alone, frames / seconds))
    clock, busy = (100 * (statistics.median(values) - 1) for values in zip(*ratios, strict=True))
    rows = list(zip(("raw stepping", "stored"), map(statistics.median, zip(*speeds, strict=True)), strict=True))
    return rows, f"overhead over raw stepping {clock:+.1f} %, of processor time {busy:+.1f} %"


def sharded(config: RunConfig, shards: int) -> tuple[float, float, float]:
    """Frames a second from when every worker is warm until the last one is done, the seconds with their start, and
    bytes a frame. Each worker is a process with one thread, as ray's are."""
    processes = multiprocessing.get_context("spawn")
    ready = processes.Barrier(shards + 1)
    with tempfile.TemporaryDirectory() as out:
        work = [processes.Process(target=_shard, args=(config, out, (i, shards), ready)) for i in range(shards)]
        start = time.perf_counter()
        for process in work:
            process.start()
        ready.wait()
        begun = time.time()
        for process in work:
            process.join()
        seconds = time.perf_counter() - start
        assert [process.exitcode for process in work] == [0] * shards
        found, end = RunFolder(out).status(), _ends(out)[-1]
    return found.frames / (end - begun), seconds, found.bytes / found.frames


def _ends(out: str | Path) -> list[float]:
    """When each unit was whole, one after another."""
    return sorted(path.stat().st_mtime for path in Path(out).glob("units/*/*.json"))


def _shard(config: RunConfig, out: str, shard: tuple[int, int], ready: threading.Barrier) -> None:
    torch.set_num_threads(1)
    worker = Worker(Run(config))
    with tempfile.TemporaryDirectory() as elsewhere:  # what comes first is slower
        stored(worker, 0, elsewhere)
    ready.wait()
    assert worker.run_units(RunFolder(out), mine(config.units, shard)).failed == 0


def by_ray(config: RunConfig, workers: int) -> tuple[float, float, float]:
    """The same of `--workers ray:N`, by the whole command: frames a second once so many units are done as there are
    workers."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "run.yaml", Path(folder) / "out"
        file.write_text(yaml.safe_dump({k: v for k, v in vars(config).items() if v is not None}))
        command = [sys.executable, "-m", "mirage_env.cli", "rollout", "run", str(file), "--out", str(out)]
        alike = {**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}  # ray's own are nicer: 15
        start = time.perf_counter()
        subprocess.run([*command, "--workers", f"ray:{workers}"], stdout=subprocess.DEVNULL, env=alike, check=True)
        seconds = time.perf_counter() - start
        found = RunFolder(out).status()
        ends = _ends(out)
        share = (len(ends) - workers) / len(ends)
        return share * found.frames / (ends[-1] - ends[workers - 1]), seconds, found.bytes / found.frames


def table(arguments: argparse.Namespace, console: Console) -> None:
    lines = Table("pixels", "", "frames/s", "kB/frame", "with start, s")
    for side in arguments.sizes:
        kwargs = {"size": [side, side], "chunk": arguments.chunk, "collision": "none"}
        config = RunConfig(episodes=arguments.episodes, steps=arguments.steps, env_kwargs=kwargs)
        repeats = max(3, arguments.repeats * 64**2 // side**2)  # a larger picture takes longer, and is steadier
        rows, told = overhead(replace(config, episodes=4, episodes_a_unit=4), repeats)
        console.print(f"{side} px: {told}")
        for name, speed in rows:
            lines.add_row(str(side), f"{name}, this process", f"{speed:.1f}")
        most = max([*arguments.shards, arguments.ray])
        config = replace(config, episodes_a_unit=max(1, arguments.episodes // (2 * max(most, 1))))
        work = [(f"{count} shards", partial(sharded, config, count)) for count in arguments.shards]
        work += [(f"{arguments.ray} ray workers", partial(by_ray, config, arguments.ray))] * bool(arguments.ray)
        for name, measured in work:
            speed, seconds, size = measured()
            lines.add_row(str(side), name, f"{speed:.1f}", f"{size / 1e3:.1f}", f"{seconds:.0f}")
    console.print(lines)


SMALL: dict[str, Any] = {"size": [64, 64], "chunk": 8}
PLANNED: dict[str, dict[str, Any]] = {
    "64 px, walk": {"episodes": 16, "env_kwargs": SMALL},
    "64 px, loop, chunk 1": {"mover": "loop", "episodes": 2, "episodes_a_unit": 1, "env_kwargs": {"size": [64, 64]}},
    "128 px, walk": {"episodes": 4, "episodes_a_unit": 2, "env_kwargs": {"chunk": 8}},
    "64 px, video": {"rgb": "video", "episodes": 8, "env_kwargs": SMALL},
    "64 px, 200 steps": {"steps": 200, "episodes": 4, "episodes_a_unit": 2, "env_kwargs": SMALL},
    "simulator": {"env": "MirageSim-v0", "episodes": 8, "episodes_a_unit": 4, "env_kwargs": SMALL},
}
"""What `plan` is asked about, and what is then done."""


def planned(console: Console) -> None:
    lines = Table("", "plan: s", "took: s", "", "plan: MB", "took: MB", "")
    for name, changes in PLANNED.items():
        run = Run(RunConfig(**{"steps": 64, **changes}))
        told = plan(run)
        with tempfile.TemporaryDirectory() as folder:
            _, seconds, _ = timed(lambda run=run, folder=folder: Worker(run).run_units(  # type: ignore[misc]
                RunFolder(folder), range(run.config.units)))  # fmt: skip
            size = RunFolder(folder).status().bytes
        said = 3600 * told.hours - told.startup_s
        row = [name]
        for foretold, true in ((said, seconds), (told.bytes / 1e6, size / 1e6)):
            row += [f"{foretold:.1f}", f"{true:.1f}", f"{100 * (foretold / true - 1):+.0f} %"]
        lines.add_row(*row)
    console.print(lines)


def memory(episodes: int, console: Console) -> None:
    """The curve of resident memory: one figure after each tenth of the episodes."""
    run = Run(RunConfig(episodes=episodes, steps=2, env_kwargs={"size": [32, 32], "chunk": 2}))
    worker, marks = Worker(run), []
    with tempfile.TemporaryDirectory() as folder:
        for units in np.array_split(np.arange(run.config.units), 10):
            worker.run_units(RunFolder(folder), [int(unit) for unit in units])
            marks.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    console.print(f"resident MB after each tenth of {episodes} episodes: {', '.join(f'{mark:.1f}' for mark in marks)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--episodes", type=int, default=16, help="of each row of shards and of ray")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--shards", type=int, nargs="*", default=[1, 2], help="processes; none: leave them out")
    parser.add_argument("--ray", type=int, nargs="?", const=2, default=0, help="and so many ray workers (2)")
    parser.add_argument("--repeats", type=int, default=5, help="of raw stepping beside storing, at 64 pixels")
    parser.add_argument("--plan", action="store_true", help="instead: plan beside the truth")
    parser.add_argument("--memory", type=int, nargs="?", const=1000, help="instead: so many short episodes")
    arguments = parser.parse_args()
    console = Console()
    if arguments.plan:
        planned(console)
    elif arguments.memory:
        memory(arguments.memory, console)
    else:
        table(arguments, console)


if __name__ == "__main__":
    main()
