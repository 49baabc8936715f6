"""What a rollout costs beside raw stepping, in one run: frames a second and bytes a frame, the overhead of storing,
what `plan` foretold, and resident memory over many short episodes.

python benchmarks/rollout.py
python benchmarks/rollout.py --sizes 64 128 --episodes 16 --steps 64 --shards 1 2 4 --ray
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from mirage_env.rollout import movers
from mirage_env.rollout.config import Run, RunConfig
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.plan import plan
from mirage_env.rollout.run import Worker


def raw(worker: Worker, unit: int) -> tuple[int, float]:
    """Frames and seconds of a unit's episodes, stepped by `vector.step` with its movers; nothing is stored."""
    run, vector = worker.run, worker.vector
    jobs = run.jobs(unit)
    for env in vector.envs:
        env.close()
    start = time.perf_counter()
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
    return len(jobs) * (run.config.steps + 1), time.perf_counter() - start


def stored(worker: Worker, unit: int) -> tuple[int, float, int]:
    """Frames, seconds and bytes of the same unit on disk."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sidecar = worker.generate(RunFolder(folder), unit)
        seconds = time.perf_counter() - start
    assert sidecar is not None
    return sum(episode["frames"] for episode in sidecar["episodes"]), seconds, sidecar["bytes"]


def by_command(config: RunConfig, shards: int, ray: bool) -> tuple[float, float]:
    """Frames a second and bytes a frame of whole processes, their start included."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "run.yaml", Path(folder) / "out"
        file.write_text(yaml.safe_dump({k: v for k, v in vars(config).items() if v is not None}))
        command = [sys.executable, "-m", "mirage_env.cli", "rollout", "run", str(file), "--out", str(out)]
        more = [["--workers", f"ray:{shards}"]] if ray else [["--shard", f"{i}/{shards}"] for i in range(shards)]
        start = time.perf_counter()
        running = [subprocess.Popen([*command, *m], stdout=subprocess.DEVNULL) for m in more]
        assert [process.wait() for process in running] == [0] * len(running)
        seconds = time.perf_counter() - start
        found = RunFolder(out).status()
    return found.frames / seconds, found.bytes / found.frames


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--shards", type=int, nargs="*", default=[1, 2], help="whole processes; none: leave them out")
    parser.add_argument("--ray", action="store_true", help="and the same numbers of ray workers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short-episodes", type=int, default=1000)
    arguments = parser.parse_args()
    console = Console()

    table = Table("pixels", "", "frames/s", "kB/frame")
    for side in arguments.sizes:
        kwargs = {"size": [side, side], "chunk": arguments.chunk, "collision": "none"}
        config = RunConfig(episodes=arguments.episodes, steps=arguments.steps, env_kwargs=kwargs)
        worker = Worker(Run(config))
        stored(worker, 0)  # warm
        ratios, speeds, kilobytes = [], [], 0.0
        for _ in range(arguments.repeats):  # side by side, so that other load weighs on both
            (frames, alone), (_, seconds, size) = raw(worker, 0), stored(worker, 0)
            ratios.append(seconds / alone)
            speeds.append((frames / alone, frames / seconds))
            kilobytes = size / frames / 1e3
        for name, values in zip(("raw stepping", "stored"), zip(*speeds, strict=True), strict=True):
            table.add_row(str(side), name, f"{statistics.median(values):.1f}", f"{kilobytes:.1f}" * (name == "stored"))
        console.print(f"{side} px: overhead {100 * (statistics.median(ratios) - 1):+.1f} % over raw stepping")
        told = plan(Run(config))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            Worker(Run(config)).run_units(RunFolder(folder), range(config.units))
            true_bytes = RunFolder(folder).status().bytes
        true = time.perf_counter() - start
        said = 3600 * told.hours - told.startup_s
        console.print(f"{side} px: plan said {said:.1f} s and {told.bytes / 1e6:.2f} MB; it took {true:.1f} s "
                      f"({100 * (said / true - 1):+.0f} %) and {true_bytes / 1e6:.2f} MB")  # fmt: skip
        for shards in arguments.shards:
            for ray in (False, True)[: 1 + arguments.ray]:
                speed, size = by_command(config, shards, ray)
                name = f"{shards} {'ray workers' if ray else 'shards'}, start included"
                table.add_row(str(side), name, f"{speed:.1f}", f"{size / 1e3:.1f}")
    console.print(table)

    if arguments.short_episodes:
        short = {"size": [32, 32], "chunk": 2}
        run = Run(RunConfig(episodes=arguments.short_episodes, steps=2, env_kwargs=short))
        worker, marks = Worker(run), []
        with tempfile.TemporaryDirectory() as folder:
            for units in np.array_split(np.arange(run.config.units), 10):
                worker.run_units(RunFolder(folder), [int(unit) for unit in units])
                marks.append(round(resident_mb()))
        console.print(f"resident MB after each tenth of {arguments.short_episodes} episodes: {marks}")


if __name__ == "__main__":
    main()
