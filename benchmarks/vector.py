"""The vector environment beside single ones in turn, what is not model time, and what snapshots and forks cost.

python benchmarks/vector.py
python benchmarks/vector.py --most 8 --rounds 3 --steps 4000
python benchmarks/vector.py --most 0 --forks 0 --steps 100000
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import mirage_env  # noqa: F401 (registers the ids)
from mirage_env.world_model import load_world

SIZE = (64, 64)


class ModelTime:
    """Seconds that a world model takes; everything else of a step is what the environment adds."""

    def __init__(self, world: Any):
        self.seconds = 0.0
        for method in ("begin_many", "advance_many", "draft_many"):
            setattr(world, method, self._timed(getattr(world, method)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start

        return timed


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def walk(count: int, step: int) -> np.ndarray:
    turn = 0.5 * np.sin((step + 3 * np.arange(count)) / 7)
    return np.stack([np.full(count, 0.5), np.zeros(count), turn], 1).astype(np.float32)


def scaling(count: int, rounds: int, steps: int = 4) -> tuple[float, float]:
    """Steps of an environment a second: N single ones in turn, and N together; medians of rounds taken in turn."""
    kwargs: dict[str, Any] = {"size": SIZE, "collision": "none"}
    singles = [gym.make("Mirage-v0", max_episode_steps=-1, **kwargs) for _ in range(count)]
    together = gym.make_vec("Mirage-v0", num_envs=count, max_episode_steps=-1, **kwargs)
    for index, env in enumerate(singles):
        env.reset(seed=index)
    together.reset(seed=0)
    moment = 0

    def in_turn() -> None:
        for step in range(moment, moment + steps):
            actions = walk(count, step)
            for index, env in enumerate(singles):
                env.step(actions[index])

    def at_once() -> None:
        for step in range(moment, moment + steps):
            together.step(walk(count, step))

    taken: dict[str, list[float]] = {"turn": [], "once": []}
    for index in range(rounds + 1):
        one, many = seconds(in_turn), seconds(at_once)
        moment += steps
        if index:  # the first round also finds out what may be batched
            taken["turn"].append(one)
            taken["once"].append(many)
    return tuple(count * steps / statistics.median(values) for values in taken.values())  # type: ignore[return-value]


def overhead(steps: int, size: tuple[int, int], chunk: int) -> tuple[float, float]:
    """Milliseconds a step, of this thread's own time, and the share of it that is not the world model's."""
    env = gym.make("Mirage-v0", size=size, max_episode_steps=-1, task="explore", chunk=chunk)
    env.reset(seed=0)
    spent = ModelTime(env.unwrapped.world)  # type: ignore[attr-defined]
    for step in range(2 * chunk):
        env.step(walk(1, step)[0])
    spent.seconds = 0.0
    start = time.thread_time()
    for step in range(steps):
        env.step(walk(1, step)[0])
    total = time.thread_time() - start
    return 1000 * total / steps, 1 - spent.seconds / total


def snapshots(count: int) -> tuple[float, float]:
    """Milliseconds of snapshot and restore, the observation included; bytes a branch beyond its own new points."""
    env: Any = gym.make("Mirage-v0", size=(128, 128), max_episode_steps=-1).unwrapped
    env.reset(seed=0)
    for step in range(10):
        env.step(walk(1, step)[0])
    both = [seconds(lambda: env.restore(env.snapshot())) for _ in range(20)]
    shared = storages(env.snapshot().episode)
    forks = env.fork(count)
    extra = []
    for index, fork in enumerate(forks):
        for step in range(10):
            fork.step(walk(count, step)[index])
        own = {key: size for key, size in storages(fork.snapshot().episode).items() if key not in shared}
        memory = fork.snapshot().episode.world.memory
        new = memory.next_id - env.snapshot().episode.world.memory.next_id
        extra.append(sum(own.values()) - new * memory.nbytes / max(1, len(memory)))
    return 1000 * statistics.median(both), max(extra)


def storages(value: Any, found: dict[int, int] | None = None) -> dict[int, int]:
    """Bytes of every array and tensor that a value holds, by where they lie."""
    found = {} if found is None else found
    if isinstance(value, torch.Tensor):
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    elif isinstance(value, np.ndarray):
        found[value.__array_interface__["data"][0]] = value.nbytes
    elif isinstance(value, (tuple, list)):
        for inner in value:
            storages(inner, found)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            storages(getattr(value, name), found)
    return found


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def long_run(steps: int, points: int = 10) -> list[tuple[int, float, int]]:
    """(steps, resident MiB, open files) along a long run of four environments in episodes of 20, told as they come; the
    first tenth, in which caches fill, is the start."""
    env = gym.make_vec("Mirage-v0", num_envs=4, size=SIZE, max_episode_steps=20)
    env.reset(seed=0)
    curve = []
    for step in range(1, steps // 4 + 1):
        env.step(walk(4, step))
        if step % max(1, steps // 4 // points) == 0:
            curve.append((4 * step, resident_mib(), len(os.listdir("/proc/self/fd"))))
            print("{} steps: {:.1f} MiB, {} files".format(*curve[-1]), flush=True)
    return curve


def main(
    most: Annotated[int, typer.Option(help="The largest number of environments.")] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds of each measurement.")] = 5,
    forks: Annotated[int, typer.Option(help="Branches, of ten chunks each.")] = 16,
    steps: Annotated[
        int, typer.Option(help="Steps of the long run: the bar is 100000, an hour; 4000 take minutes; 0 leaves it out.")
    ] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Prints one table."""
    torch.set_num_threads(threads)
    load_world("mirage-tiny", SIZE, "cpu")
    table = Table(title=f"Mirage-v0, chunk 1, {SIZE[0]} x {SIZE[1]}, {threads} threads, load {os.getloadavg()[0]:.1f}")
    for column in ("what", "measured", "bar"):
        table.add_column(column)
    count = 1
    while count <= most:
        turn, once = scaling(count, rounds)
        bar = ">= 10 steps/s" if count in (1, 8) else "never slower"
        table.add_row(f"{count} envs", f"{turn:.1f} in turn, {once:.1f} together ({once / turn:.2f} x)", bar)
        count *= 2
    if forks:
        both, extra = snapshots(forks)
        table.add_row("snapshot + restore, 128 x 128", f"{both:.2f} ms", "< 10 ms")
        table.add_row(f"a branch of {forks} beyond its own points", f"{extra / 2**20:.2f} MiB", "< 1 MB")
    if steps:
        curve = long_run(steps)
        early, late = curve[0], curve[-1]
        table.add_row(
            f"steps {early[0]} to {late[0]}, resets every 20",
            f"{' '.join(f'{mib:.0f}' for _, mib, _ in curve)} MiB ({100 * (late[1] / early[1] - 1):+.1f} %), "
            f"{late[2] - early[2]:+d} files",
            "within 2 %, +0",
        )
    for size, chunk in ((SIZE, 1), ((128, 128), 1), ((128, 128), 8)):
        total, share = overhead(8 * rounds, size, chunk)
        what = f"not model time, {size[0]} x {size[1]}, chunk {chunk}"
        table.add_row(what, f"{100 * share:.1f} % of {total:.1f} ms: {share * total:.2f} ms", "< 5 %")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
