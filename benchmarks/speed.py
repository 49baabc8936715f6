"""How fast the embedded preset is, through `env.step` and part by part, everything taken in turn in one run.

python benchmarks/speed.py
python benchmarks/speed.py --rounds 20 --threads 2
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mirage_env  # noqa: F401 (registers the ids)
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.simulator import FAMILIES, make_scene, render, sample_trajectory
from mirage_env.types import Cameras
from mirage_env.world_model import WorldModel

CHUNK = 8
PARTS = {
    "read": [("memory", "read_many")],
    "denoise": [("denoiser", "clean")],
    "decode": [("codec", "decode_after"), ("tiny_decoder", "forward")],
    "depth": [("perception", "forward")],
    "encode": [("codec", "encode")],
    "write": [("memory", "write")],
    "drafts": [(None, "draft_many")],
}
"""Part of a chunk -> attributes of the world model and their methods. What a draft reads and decodes is a draft's."""
IMPORT = "import time; start = time.perf_counter(); import mirage_env; print(time.perf_counter() - start)"
COLD = f"""
import time, gymnasium, mirage_env
env = gymnasium.make("Mirage-v0", chunk={CHUNK})
env.reset(seed=0)
print(time.time(), flush=True)
for _ in range(10 * {CHUNK}):
    env.step(env.action_space.sample())
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
"""Prints when the first observation was there, then the peak resident memory in KiB after ten chunks."""


class Walker:
    """An environment and a gentle walk through it that never ends."""

    def __init__(self, env_id: str, **kwargs: Any):
        self.env = gym.make(env_id, max_episode_steps=-1, **kwargs)
        self.env.reset(seed=0)
        self.steps = 0

    def walk(self, steps: int) -> None:
        for _ in range(steps):
            self.steps += 1
            self.env.step([0.5 * math.cos(self.steps / 9), 0.0, 0.5 * math.sin(self.steps / 7)])


class PartTimer:
    """Seconds spent in each of `PARTS`, gathered by wrapping the methods of one world model."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.denoise_calls: list[tuple[Any, ...]] = []
        self.inside = False

    @contextmanager
    def watch(self, model: WorldModel) -> Iterator[PartTimer]:
        places = [
            (name, getattr(model, owner) if owner else model, method)
            for name, methods in PARTS.items()
            for owner, method in methods
        ]
        for name, owner, method in places:
            setattr(owner, method, self._timed(name, getattr(owner, method)))
        try:
            yield self
        finally:
            for _, owner, method in places:
                delattr(owner, method)  # the class's own method shows again

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return function(*args, **kwargs)
            self.inside, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self.inside = False
                if name == "denoise":
                    self.denoise_calls.append(args)

        return timed


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_seconds(dtype: torch.dtype, side: int = 2048) -> Callable[[], Any]:
    a, b = (torch.randn(side, side, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def simulator_frames(frames: int = 8, size: tuple[int, int] = (128, 128)) -> Callable[[], Any]:
    """Draws `frames` frames of a walk in a scene of each family."""
    scenes = [make_scene(seed, family) for seed, family in enumerate(FAMILIES)]
    poses = [sample_trajectory(scene, np.random.default_rng(0), "walk", frames) for scene in scenes]
    count = frames * len(scenes)
    cameras = Cameras(torch.cat(poses), intrinsics_from_fov(1.2, size).expand(count, 3, 3), size)
    index = torch.arange(len(scenes)).repeat_interleave(frames)
    return lambda: render(scenes, index, cameras, torch.zeros(count))


def denoiser_flops(model: WorldModel, call: tuple[Any, ...]) -> int:
    """Floating-point operations of one pass; plain attention, because the counter does not know the CPU's fused one."""
    with torch.no_grad(), model.precision(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.denoiser.clean(*call[:3])  # from scratch: nothing is kept from the pass that was caught
    return counter.get_total_flops()


def in_a_new_process(code: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [float(line) for line in done.stdout.split()]


class Report:
    """One table: what, unit, median, min to max, bar."""

    def __init__(self, title: str):
        self.table = Table(title=title)
        self.table.add_column("what", no_wrap=True)
        for column in ("unit", "median", "min to max", "bar"):
            self.table.add_column(column, justify="right", no_wrap=True)

    def row(self, what: str, unit: str, values: Sequence[float], bar: str = "", at_least: bool = True) -> None:
        """`bar` is a number; the median meets it from above or below, and is coloured accordingly."""
        middle = statistics.median(values)
        digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
        text = f"{middle:.{digits}f}"
        if bar:
            met = middle >= float(bar) if at_least else middle <= float(bar)
            text = f"[{'green' if met else 'red'}]{text}[/]"
            bar = f"{'at least' if at_least else 'at most'} {bar}"
        spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}" if len(values) > 1 else ""
        self.table.add_row(what, unit, text, spread, bar)

    def section(self) -> None:
        self.table.add_section()


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Timings of everything, taken in turn.")] = 12,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")] = 0,
    last_chunk: Annotated[int, typer.Option(min=4, help="The late chunk that is compared with chunk 3.")] = 100,
) -> None:
    """Time the embedded preset on this machine and print one table."""
    if threads:
        torch.set_num_threads(threads)
    walkers = {
        "Mirage-v0, 128 x 128, chunk=8": Walker("Mirage-v0", size=(128, 128), chunk=CHUNK),
        'Mirage-v0, 128 x 128, chunk=8, feedback="hold"': Walker("Mirage-v0", chunk=CHUNK, feedback="hold"),
        "Mirage-v0, 64 x 64, chunk=1": Walker("Mirage-v0", size=(64, 64)),
        "MirageSim-v0, 128 x 128, chunk=8": Walker("MirageSim-v0", size=(128, 128), chunk=CHUNK),
        "MirageSim-v0, 64 x 64, chunk=1": Walker("MirageSim-v0", size=(64, 64)),
    }
    bars = ["20", "", "10", "", ""]
    main_walker, *_ = walkers.values()
    model: WorldModel = main_walker.env.unwrapped.world
    for walker in walkers.values():
        walker.walk(2 * CHUNK)  # warm, and past chunk 3's start
    products = {"float32": matrix_seconds(torch.float32), "bfloat16": matrix_seconds(torch.bfloat16)}
    for product in products.values():
        product()

    steps: dict[str, list[float]] = {name: [] for name in walkers}
    parts: dict[str, list[float]] = {name: [] for name in (*PARTS, "everything else")}
    denoise_s: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in products}
    draw = simulator_frames()
    draw()
    drawn: list[float] = []
    early = main_walker.env.unwrapped.snapshot()
    for _ in range(rounds):
        for name, walker in walkers.items():
            steps[name].append(CHUNK / seconds(lambda walker=walker: walker.walk(CHUNK)))
        drawn.append(32 / seconds(draw))
        with PartTimer().watch(model) as timer:
            total = seconds(lambda: main_walker.walk(CHUNK))
        timer.seconds["everything else"] = total - sum(timer.seconds.values())
        for name, spent in timer.seconds.items():
            parts[name].append(100 * spent / total)
        denoise_s.append(timer.seconds["denoise"])
        for name, product in products.items():
            rates[name].append(2 * 2048**3 / seconds(product) / 1e9)

    main_walker.env.unwrapped.restore(early)
    main_walker.walk((last_chunk - 3) * CHUNK)
    late = main_walker.env.unwrapped.snapshot()
    cost: dict[str, list[float]] = {"early": [], "late": []}
    for _ in range(rounds):
        for name, state in (("early", early), ("late", late)):
            main_walker.env.unwrapped.restore(state)
            cost[name].append(seconds(lambda: main_walker.walk(CHUNK)))

    flops = sum(denoiser_flops(model, call) for call in timer.denoise_calls) / 1e9
    in_use = next(model.denoiser.transformer.blocks[0].attn1.to_q.parameters()).dtype
    precision = str(in_use).removeprefix("torch.")

    title = f"mirage-tiny, {torch.get_num_threads()} CPU threads, {precision}, {rounds} rounds taken in turn"
    report = Report(title)
    for (name, values), bar in zip(steps.items(), bars, strict=True):
        report.row(name, "frames/s" if "chunk=8" in name else "steps/s", values, bar)
    report.row("simulator alone, 128 x 128, 32 frames of 4 scenes", "frames/s", drawn, "60")
    report.section()
    for name, values in parts.items():
        report.row(f"share of a chunk of 8: {name}", "%", values)
    report.section()
    report.row(f"denoiser: {flops:.1f} GFLOP a chunk of 8", "GFLOP/s", [flops / s for s in denoise_s])
    for name, values in rates.items():
        report.row(f"this machine: 2048 x 2048 matrices in {name}", "GFLOP/s", values)
    shares = [100 * flops / s / rate for s, rate in zip(denoise_s, rates[precision], strict=True)]
    report.row(f"denoiser's share of the {precision} rate", "%", shares)
    report.section()
    ratios = [b / a for a, b in zip(cost["early"], cost["late"], strict=True)]
    report.row("chunk 3", "ms", [1e3 * s for s in cost["early"]])
    report.row(f"chunk {last_chunk}", "ms", [1e3 * s for s in cost["late"]])
    report.row(f"chunk {last_chunk} over chunk 3", "times", ratios, "1.2", at_least=False)
    report.section()
    imports, cold, peak = [], [], []
    for _ in range(3):
        imports += in_a_new_process(IMPORT)
        start = time.time()
        first, kib = in_a_new_process(COLD)
        cold.append(first - start)
        peak.append(kib / 2**20)
    report.row("import mirage_env", "s", imports, "2", at_least=False)
    report.row("cold process to its first observation", "s", cold, "10", at_least=False)
    report.row("peak resident memory after ten chunks of 8", "GiB", peak, "2", at_least=False)
    Console(width=120).print(report.table)


if __name__ == "__main__":
    typer.run(main)
