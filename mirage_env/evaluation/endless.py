"""A walk without end: what chunk 1,000 costs beside chunk 10, in time and in resident memory.

Worlds are values, so that whoever came to chunk 1,000 can take the step after chunk 10 again: both are continued in
turn, and whatever else the machine does slows both alike.
"""

from __future__ import annotations

import gc
import math
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mirage_env.artefacts import versions
from mirage_env.errors import check_count
from mirage_env.evaluation.memory_bench import Clock, Scale, Watched, clock_name, page, table
from mirage_env.evaluation.plots import log_chart, number
from mirage_env.evaluation.run import write_json
from mirage_env.geometry.poses import DEFAULT_FOV_DEG, intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import camera_rays
from mirage_env.images import load_image
from mirage_env.memory import ChunkRecord, Memory, State
from mirage_env.resources import revision
from mirage_env.types import Cameras, SceneSpec
from mirage_env.world_model import WorldModel

EARLY = 10
MARKS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
ROUNDS = 31
STEP_M = 0.25
HALF_CORRIDOR_M = (2.0, 1.5)
FAR_M = 30.0
"""Beyond this nobody measures how far the corridor goes on."""


@dataclass(frozen=True)
class Mark:
    """Where a walk stood after so many chunks."""

    chunk: int
    points: int
    bytes: int
    """Of the memory."""
    resident_mib: float
    """Of the whole process."""
    ms: dict[str, float]
    """Part -> median of the chunks since the mark before; "all" is the whole chunk."""


@dataclass(frozen=True)
class Endless:
    """A walk of one kind."""

    name: str
    about: str
    """What a chunk is, for people."""
    marks: list[Mark]
    early_ms: dict[str, float]
    """Part -> milliseconds of the chunk after chunk 10, median over `ROUNDS`, in turn with `late_ms`."""
    late_ms: dict[str, float]
    """The same after the last chunk."""

    @property
    def ratio(self) -> float:
        """Cost of a chunk at the end, beside that of chunk 10."""
        return self.late_ms["all"] / self.early_ms["all"]

    @property
    def growth_mib(self) -> float:
        """By how much the process grew in the second half of the walk."""
        half = next(mark for mark in self.marks if 2 * mark.chunk >= self.marks[-1].chunk)
        return self.marks[-1].resident_mib - half.resident_mib


def whole_chunks(model: WorldModel, chunks: int, report: Callable[[int, int], None]) -> Endless:
    """The world model itself, a latent frame a chunk, straight on through what it makes up."""
    clock = Clock()
    timed = model.with_parts(**{part: clock.around(part, answer) for part, answer in model.parts.items()})
    timed = timed.with_memory(Watched(model.memory, clock))
    k = intrinsics_from_fov(math.radians(DEFAULT_FOV_DEG), model.size)
    scene = SceneSpec(torch.eye(4), k, camera_height_m=1.2, image=load_image("room", model.size).rgb)

    def chunk(state: Any, index: int) -> Any:
        with clock.watch("all"):
            return timed.advance(state, onward(model.temporal_stride, index, model.size))[1]

    about = f"{model.name}, {model.size[0]} x {model.size[1]} pixels, one latent frame a chunk, straight on"
    start = timed.begin(scene, 0)[1]
    return _walk("whole chunks", about, start, chunk, lambda state: state.memory, clock, chunks, report)


def memory_alone(scale: Scale, memory: Memory, chunks: int, report: Callable[[int, int], None]) -> Endless:
    """A memory that is read and written along a corridor of known depth, every chunk of it new."""
    clock = Clock()
    timed = Watched(memory, clock)
    draw = torch.Generator().manual_seed(0)
    nothing = torch.zeros(1, *scale.size, dtype=torch.bool)
    black, still = torch.zeros(1, *scale.size, 3, dtype=torch.uint8), torch.zeros(1, 6)  # some memories ask for them

    def chunk(state: Any, index: int) -> Any:
        cameras = onward(scale.views, index, scale.size)
        reading = timed.read(state, cameras.resized(scale.grid))
        if reading.settled is not None:
            reading.settled(slice(None))
        for key in range(scale.views // scale.keyframes - 1, scale.views, scale.views // scale.keyframes):
            seen = cameras[key : key + 1]
            latents = torch.randn(1, scale.channels, *scale.grid, generator=draw)
            state = timed.write(state, ChunkRecord(latents, corridor_depth(seen), nothing, nothing, seen, black, still))
        return state

    budget = getattr(memory.config, "max_points", None)
    about = (
        f"{scale.views} views of {scale.grid[0]} x {scale.grid[1]} x {scale.channels} read and {scale.keyframes} "
        f"keyframes written a chunk, {'no budget' if budget is None else f'at most {budget:,} points'}"
    )
    start = memory.empty(scale.channels)
    return _walk("memory alone", about, start, chunk, lambda state: state, clock, chunks, report)


def _walk(
    name: str,
    about: str,
    start: Any,
    chunk: Callable[[Any, int], Any],
    memory_of: Callable[[Any], State],
    clock: Clock,
    chunks: int,
    report: Callable[[int, int], None],
) -> Endless:
    """`chunk(state, index)` is the state after chunk `index`; it tells its parts to `clock`."""
    check_count("chunks", chunks, least=EARLY + 1)
    marks: list[Mark] = []
    rows: list[dict[str, float]] = []
    states = {0: start}

    def timed(state: Any, index: int) -> Any:
        clock.spent.clear()
        after = chunk(state, index)
        row = {part: 1e3 * sum(seconds) for part, seconds in clock.spent.items()}
        rows.append({**row, "all": row.get("all", sum(row.values()))})
        return after

    state = start
    for index in range(1, chunks + 1):
        state = timed(state, index)
        if index == EARLY:
            states = {EARLY: state}
        if index in MARKS or index == chunks:
            memory = memory_of(state)
            marks.append(Mark(index, len(memory), memory.nbytes, resident_mib(), _medians(rows)))
            rows.clear()
        report(index, chunks)
    states[chunks] = state
    for _ in range(ROUNDS + 1):  # the first warms up
        for index, state in states.items():
            timed(state, index + 1)
    return Endless(name, about, marks, _medians(rows[2::2]), _medians(rows[3::2]))


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(row[part] for row in rows) for part in rows[0]}


def onward(frames: int, index: int, size: tuple[int, int]) -> Cameras:
    """The cameras of chunk `index`: straight on, looking a little to the left and to the right."""
    at = torch.arange((index - 1) * frames + 1, index * frames + 1, dtype=torch.float64)
    yaw, still = (0.3 * torch.sin(at / 20)).float(), torch.zeros(frames)
    place = torch.stack([still, still, (STEP_M * at).float()], 1)
    k = intrinsics_from_fov(math.radians(DEFAULT_FOV_DEG), size).repeat(frames, 1, 1)
    return Cameras(rigid(rotation_from_yaw_pitch_roll(yaw, still, still), place), k, size)


def corridor_depth(cameras: Cameras) -> Tensor:
    """Exact z-depth of the walls, floor and ceiling of a corridor along z; 0 beyond `FAR_M`."""
    direction = torch.einsum("vij,vhwj->vhwi", cameras.world_from_camera[:, :3, :3], camera_rays(cameras))[..., :2]
    centre = cameras.world_from_camera[:, None, None, :2, 3]
    depth = ((torch.sign(direction) * torch.tensor(HALF_CORRIDOR_M) - centre) / direction).amin(-1)
    return torch.where(depth < FAR_M, depth, 0.0)


def resident_mib() -> float:
    """What the process holds in main memory now; where the system does not tell, the most that it ever held."""
    gc.collect()
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def write_report(folder: Path, walks: Sequence[Endless]) -> tuple[Path, Path]:
    """Writes endless.json and endless.html; returns their paths."""
    files = folder / "endless.json", folder / "endless.html"
    measured = {
        "threads": torch.get_num_threads(),
        "clock": clock_name(),
        "revision": revision(),
        "versions": versions(),
    }
    write_json(files[0], measured | {"walks": [asdict(walk) | {"ratio": walk.ratio} for walk in walks]})
    cards, sections = [], []
    for walk in walks:
        last = walk.marks[-1]
        cards.append((f"{walk.ratio:.2f}x", f"{walk.name}: chunk {last.chunk:,} to chunk {EARLY}", "taken in turn"))
        cards.append((f"{walk.growth_mib:+.0f} MiB", f"{walk.name}: resident memory", "over the second half"))
        parts = list(walk.late_ms)
        drawn = [part for part in ("read", "write", "all") if part != "all" or len(parts) > 3]
        time_chart = log_chart({part: [(m.chunk, m.ms[part]) for m in walk.marks] for part in drawn}, "chunk", "ms")
        heads = ("chunk", "points", "memory MiB", "resident MiB", *(f"{part} ms" for part in parts))
        rows = [
            (f"{m.chunk:,}", f"{m.points:,}", f"{m.bytes / 2**20:.2f}", f"{m.resident_mib:.0f}",
             *(number(m.ms.get(part, 0.0)) for part in parts))
            for m in walk.marks
        ]  # fmt: skip
        for after, row in ((EARLY, walk.early_ms), (last.chunk, walk.late_ms)):
            times = (number(row.get(part, 0.0)) for part in parts)  # 0: such a chunk never asked for it
            rows.append((f"{after:,}, in turn", "", "", "", *times))
        note = f"{walk.about}. Medians since the row before; the last two rows were taken in turn."
        sections.append((walk.name.capitalize(), time_chart + table(heads, rows), note))
    title = f"{walks[0].marks[-1].chunk:,} chunks"
    page(files[1], "Mirage env memory bench", title, clock_name(), cards, sections)
    return files
