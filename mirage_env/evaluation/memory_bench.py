"""What remembering costs: latent and RGB memory side by side, as the paper's Figure 5 and Appendix B do.

A camera walks through a plain room whose depth is known, so that time and bytes do not depend on any weights. Both
memories get the same keyframes and are read at the same cameras.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mirage_env.artefacts import versions
from mirage_env.codec.wan import CodecConfig, WanCodec
from mirage_env.evaluation.plots import log_chart, number
from mirage_env.evaluation.run import write_json
from mirage_env.geometry.poses import DEFAULT_FOV_DEG, intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import camera_rays
from mirage_env.images import load_image
from mirage_env.memory import ChunkRecord, LatentMemory, MemoryConfig, MemoryReading, State, splat
from mirage_env.memory.rgb import RgbMemory, RgbMemoryConfig
from mirage_env.precision import fast_autocast
from mirage_env.resources import revision
from mirage_env.types import Cameras, SceneSpec
from mirage_env.world_model import WorldModel

WAN22 = CodecConfig(48, 160, 256, (1, 2, 4, 4), (False, True, True), 2, True, 2)
"""The VAE of Wan2.2-TI2V-5B."""
PAPER_SPEED, PAPER_BYTES = 10.57, 55.0
HALF_ROOM_M = (4.0, 1.5, 4.0)


@dataclass(frozen=True)
class Scale:
    """Sizes of a chunk."""

    name: str
    size: tuple[int, int]
    channels: int
    stride: int
    temporal_stride: int
    views: int
    """Latent frames that are read for a chunk."""
    keyframes: int
    """Of them, how many are written after it."""

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // self.stride, self.size[1] // self.stride


FULL = Scale("full", (704, 1280), 48, 16, 4, views=9, keyframes=2)


def tiny(model: WorldModel, chunk: int = 8) -> Scale:
    """The chunk of a loaded world model."""
    codec = model.codec
    keyframes = -(-chunk // model.preset.keyframe_stride)
    return Scale("tiny", model.size, codec.channels, codec.spatial_stride, codec.temporal_stride, chunk, keyframes)


@dataclass(frozen=True)
class ChunkCost:
    """One memory after one chunk."""

    chunk: int
    points: int
    bytes: int
    read_ms: float
    """For one view, encoding included."""
    encode_ms: float
    """Of which in the codec."""


def now() -> float:
    """Seconds. Of a single thread its own, which nobody else on the machine can lengthen."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def clock_name() -> str:
    """What `now` counts, for people."""
    threads = torch.get_num_threads()
    return "CPU time of one thread" if threads == 1 else f"wall time of {threads} threads"


@dataclass
class Clock:
    """Seconds by name."""

    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def watch(self, name: str):  # type: ignore[no-untyped-def]
        start = now()
        yield
        self.spent.setdefault(name, []).append(now() - start)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            with self.watch(name):
                return function(*arguments)

        return timed


# ---- the room -------------------------------------------------------------------------------------------------------


def walk(frames: int, size: tuple[int, int]) -> Cameras:
    """A slow round through the room that looks along its path: 2 cm and 0.8 degrees a frame."""
    angle = torch.arange(frames) * 0.014
    position = torch.stack([1.5 * angle.sin(), 0 * angle, 1.5 * angle.cos()], 1)
    yaw = angle + math.pi / 2
    k = intrinsics_from_fov(math.radians(70), size).repeat(frames, 1, 1)
    return Cameras(rigid(rotation_from_yaw_pitch_roll(yaw, yaw * 0, yaw * 0), position), k, size)


def room_depth(cameras: Cameras) -> Tensor:
    """Exact z-depth of the room's walls, floor and ceiling."""
    direction = torch.einsum("vij,vhwj->vhwi", cameras.world_from_camera[:, :3, :3], camera_rays(cameras))
    centre = cameras.world_from_camera[:, None, None, :3, 3]
    return ((torch.sign(direction) * torch.tensor(HALF_ROOM_M) - centre) / direction).amin(-1)


def scattered(points: int, channels: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the room's walls in no order, the worst case for caches, with tokens and ids."""
    draw = torch.Generator().manual_seed(0)
    place = torch.rand(points, 3, generator=draw) * 2 - 1
    wall = torch.randint(0, 3, (points, 1), generator=draw)
    place.scatter_(1, wall, place.gather(1, wall).sign())
    return place * torch.tensor(HALF_ROOM_M), torch.randn(points, channels, generator=draw), torch.arange(points)


# ---- measurements ---------------------------------------------------------------------------------------------------


def over_chunks(
    scale: Scale,
    chunks: int,
    encode: Callable[[Tensor], Tensor],
    rule: str,
    report: Callable[[int, int], None],
    encode_ms: float | None = None,
) -> dict[str, list[ChunkCost]]:
    """Latent and RGB memory after every chunk; where one encode was timed before, `encode_ms`, it is added to reads."""
    clock = Clock()
    options: dict[str, Any] = {"write_rule": rule, "depth_edges": "keep" if rule == "paper" else "reject"}
    memories: dict[str, Any] = {
        "latent": LatentMemory(MemoryConfig(**options, token_dtype="float16")),
        "rgb": RgbMemory(RgbMemoryConfig(**options, depth_downsample="nearest"), clock.around("encode", encode)),
    }
    states = {name: memory.empty(scale.channels) for name, memory in memories.items()}
    costs: dict[str, list[ChunkCost]] = {name: [] for name in memories}
    cameras = walk(chunks * scale.views + scale.views + 1, scale.size)
    draw = torch.Generator().manual_seed(0)
    for chunk in range(1, chunks + 1):
        last = chunk * scale.views
        keys = torch.linspace(last - scale.views, last, scale.keyframes + 1).long()[0 if chunk == 1 else 1 :]
        for key in keys.split(1):
            seen = cameras[key]
            depth, nothing = room_depth(seen), torch.zeros(1, *scale.size, dtype=torch.bool)
            latents = torch.randn(1, scale.channels, *scale.grid, generator=draw)
            rgb = torch.randint(0, 256, (1, *scale.size, 3), dtype=torch.uint8, generator=draw)
            record = ChunkRecord(latents, depth, nothing, nothing, seen, rgb)
            states = {name: memory.write(states[name], record) for name, memory in memories.items()}
        targets = cameras[last + 1 : last + 1 + scale.views].resized(scale.grid)
        for name, memory in memories.items():
            clock.spent.clear()
            seconds = _repeated(partial(memory.read, states[name], targets))
            a_view = 1e3 / scale.views
            encoding = statistics.median(clock.spent.get("encode", [0.0])) * a_view
            read = statistics.median(seconds) * a_view
            if encode_ms is not None and name == "rgb":
                read, encoding = read + encode_ms, encode_ms
            state = states[name]
            costs[name].append(ChunkCost(chunk, len(state), state.nbytes, read, encoding))
        report(chunk, chunks)
    return costs


def bytes_every_way(scale: Scale, chunks: int) -> list[dict[str, Any]]:
    """Cache bytes after so many chunks where every cell and every pixel is stored, however one may count."""
    keys = scale.keyframes * chunks + 1
    frames = scale.views * scale.temporal_stride * chunks + 1
    cells, pixels = math.prod(scale.grid), math.prod(scale.size)
    rows = []
    for what, latent_frames, rgb_frames in (
        ("the same keyframes", keys, keys),
        ("latent keyframes, RGB of all frames", keys, frames),
    ):
        for how, token, colour in (
            ("payload alone, one dtype: s^2 * 3 / C", scale.channels, 3),
            ("float16 tokens, uint8 colours, float32 places", 2 * scale.channels + 12, 3 + 12),
            ("float32 tokens, uint8 colours, float32 places", 4 * scale.channels + 12, 3 + 12),
            ("float32 everything", 4 * scale.channels + 12, 12 + 12),
            ("as stored here: float16, uint8, footprint and id", 2 * scale.channels + 24, 3 + 24),
        ):
            latent, rgb = latent_frames * cells * token, rgb_frames * pixels * colour
            rows.append({"stored": what, "counted": how, "latent": latent, "rgb": rgb, "ratio": rgb / latent})
    return rows


def growth() -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of a latent read (48 channels) as one size grows: "points", "views" and "cells"."""
    base = {"points": 65_536, "views": 8, "side": 64}

    def read_ms(points: int, views: int, side: int) -> float:
        cloud, cameras = scattered(points), walk(views, (side, side))
        return 1e3 * statistics.median(_repeated(partial(splat, *cloud, cameras)))

    return {
        "points": [(n, read_ms(**base | {"points": n})) for n in (4096, 16_384, 65_536, 262_144, 1_048_576)],
        "views": [(v, read_ms(**base | {"views": v})) for v in (1, 2, 4, 8, 16, 32)],
        "cells": [(s * s, read_ms(**base | {"side": s})) for s in (16, 32, 64, 128, 256)],
    }


def _repeated(read: Callable[[], Any]) -> list[float]:
    """Seconds of each of 3 to 30 calls, after one that warms up."""
    read()
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < 30 and sum(seconds) < 0.3):
        start = now()
        read()
        seconds.append(now() - start)
    return seconds


def encode_once(codec: CodecConfig, size: tuple[int, int]) -> float:
    """Milliseconds in which the codec, with random weights, encodes one picture."""
    network = WanCodec(codec).eval()
    with torch.inference_mode(), fast_autocast("cpu"):
        start = now()
        network.encode(torch.zeros(1, 3, *size))
        return 1e3 * (now() - start)


def no_encode(scale: Scale) -> Callable[[Tensor], Tensor]:
    """Zeros, where an encode takes so long that it is timed once."""
    return lambda pictures: torch.zeros(len(pictures), scale.channels, *scale.grid)


class Watched:
    """A memory whose reads and writes are timed."""

    config_class: ClassVar[Any] = MemoryConfig
    state_class: ClassVar[Any] = State

    def __init__(self, memory: Any, clock: Clock):
        self.config, self.empty = memory.config, memory.empty
        self._read, self._clock = clock.around("read", memory.read), clock
        self.write = clock.around("write", memory.write)

    def read(self, state: Any, cameras: Cameras) -> MemoryReading:
        reading: MemoryReading = self._read(state, cameras)
        if reading.settled is None:
            return reading
        return replace(reading, settled=self._clock.around("read", reading.settled))


def end_to_end(model: WorldModel, chunks: int, report: Callable[[int, int], None]) -> dict[str, dict[str, float]]:
    """Memory -> part -> milliseconds a chunk of 8 frames, medians; "all" is the whole chunk."""
    scene = SceneSpec(
        torch.eye(4),
        intrinsics_from_fov(math.radians(DEFAULT_FOV_DEG), model.size),
        camera_height_m=1.2,
        image=load_image("room", model.size).rgb,
    )
    kinds: dict[str, Any] = {
        "latent": model.memory,
        "rgb": RgbMemory(RgbMemoryConfig(depth_downsample="nearest"), model.encode),
    }
    clocks = {name: Clock() for name in kinds}
    worlds = {
        name: model.with_parts(
            **{part: clocks[name].around(part, answer) for part, answer in model.parts.items()}
        ).with_memory(Watched(memory, clocks[name]))
        for name, memory in kinds.items()
    }
    cameras = walk(8 * (chunks + 1) + 1, model.size)
    cameras = Cameras(
        cameras.world_from_camera[:1].inverse() @ cameras.world_from_camera[1:],
        scene.intrinsics_px.expand(len(cameras) - 1, 3, 3),
        model.size,
    )
    states = {name: world.begin(scene, 0)[1] for name, world in worlds.items()}
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for chunk in range(chunks + 1):  # in turn, so that whatever else the machine does slows both
        for name, world in worlds.items():
            clocks[name].spent.clear()
            with clocks[name].watch("all"):
                _, states[name] = world.advance(states[name], cameras[8 * chunk : 8 * chunk + 8])
            spent[name].append({part: sum(seconds) for part, seconds in clocks[name].spent.items()})
        report(chunk + 1, chunks + 1)
    return {  # the first warms up
        name: {part: 1e3 * statistics.median(chunk.get(part, 0.0) for chunk in each[1:]) for part in each[-1]}
        for name, each in spent.items()
    }


# ---- the report -----------------------------------------------------------------------------------------------------


def summary(scale: Scale, costs: Mapping[str, Sequence[ChunkCost]]) -> dict[str, float]:
    """Ratios of RGB to latent memory at chunk 5, or the last before it, and what the paper says."""
    at = min(5, len(costs["latent"])) - 1
    latent, rgb = costs["latent"][at], costs["rgb"][at]
    return {
        "chunk": at + 1,
        "read_ratio": rgb.read_ms / latent.read_ms,
        "read_ratio_without_encoding": (rgb.read_ms - rgb.encode_ms) / latent.read_ms,
        "bytes_ratio": rgb.bytes / latent.bytes,
        "formula": scale.stride**2 * 3 / scale.channels,
        "paper_end_to_end": PAPER_SPEED,
        "paper_bytes": PAPER_BYTES,
    }


def write_report(
    folder: Path,
    scale: Scale,
    costs: Mapping[str, Sequence[ChunkCost]],
    ways: Sequence[Mapping[str, Any]],
    grown: Mapping[str, Sequence[tuple[float, float]]],
    split: Mapping[str, Mapping[str, float]],
) -> tuple[Path, Path]:
    """Writes bench.json and bench.html; returns their paths."""
    measured = {
        "scale": asdict(scale),
        "threads": torch.get_num_threads(),
        "clock": clock_name(),
        "summary": summary(scale, costs),
        "chunks": {name: [asdict(cost) for cost in rows] for name, rows in costs.items()},
        "bytes_every_way": list(ways),
        "growth_ms": dict(grown),
        "end_to_end_ms": dict(split),
        "revision": revision(),
        "versions": versions(),
    }
    files = folder / "bench.json", folder / "bench.html"
    write_json(files[0], measured)
    _write_page(files[1], scale, costs, ways, grown, split)
    return files


def _write_page(path: Path, scale: Scale, costs: Any, ways: Any, grown: Any, split: Any) -> None:
    brief = summary(scale, costs)
    formula = f"as stored; the paper's {PAPER_BYTES:g}, s² · 3 / C is {number(brief['formula'])}"
    ratios = [
        (brief["read_ratio"], "read time, RGB to latent", f"a frame, at chunk {brief['chunk']:.0f}"),
        (brief["read_ratio_without_encoding"], "the same, without the encode", "which a GPU does faster"),
        (brief["bytes_ratio"], "cache bytes, RGB to latent", formula),
    ]
    if split:
        whole = split["rgb"]["all"] / split["latent"]["all"]
        ratios.append((whole, "time a chunk, RGB to latent", f"end to end; the paper's {PAPER_SPEED:g}"))
    cards = [(f"{number(value)}x", label, note) for value, label, note in ratios]
    time_chart = log_chart(
        {name: [(c.chunk, c.read_ms) for c in rows] for name, rows in costs.items()}, "chunk", "ms a frame"
    )
    bytes_chart = log_chart(
        {name: [(c.chunk, c.bytes / 2**20) for c in rows] for name, rows in costs.items()}, "chunk", "MiB"
    )
    growth_charts = "".join(log_chart({"latent": rows}, what, "ms a read") for what, rows in grown.items())
    way_rows = [
        (w["stored"], w["counted"], f"{w['latent'] / 2**20:.2f}", f"{w['rgb'] / 2**20:.1f}", f"{w['ratio']:.1f}")
        for w in ways
    ]
    parts = list(dict.fromkeys(part for row in split.values() for part in row))
    split_rows = [(part, *(number(row.get(part, 0.0)) for row in split.values())) for part in parts]
    sections = [
        ("Reading", time_chart, "One view of a chunk's read; for RGB the picture is rendered and encoded."),
        ("Bytes", bytes_chart, "As stored, by the rule of this run: places, tokens or colours, footprints, ids."),
        (
            "Bytes at chunk 5, every way to count",
            table(("stored", "counted", "latent MiB", "RGB MiB", "ratio"), way_rows),
            "Every cell and every pixel of the named frames. The paper says 55.",
        ),
        ("Growth", growth_charts, "65,536 points, 8 views, 64 x 64 cells, 48 channels; one of them grows."),
        (
            "A whole chunk",
            table(("part, ms", *split), split_rows) if split else "",
            "Of 8 frames, medians of every part; see is depth and masks, glance and sketch are seeing and decoding "
            "between keyframes; an RGB read's encode counts within read.",
        ),
    ]
    facts = (
        f"{scale.size[0]} x {scale.size[1]} pixels, {scale.grid[0]} x {scale.grid[1]} x {scale.channels} latents, "
        f"{scale.views} views a chunk, {clock_name()}"
    )
    page(path, "Mirage env memory bench", f"{scale.name}: what remembering costs", facts, cards, sections)


def page(
    path: Path,
    kicker: str,
    title: str,
    facts: str,
    cards: Sequence[tuple[str, str, str]],
    sections: Sequence[tuple[str, str, str]],
) -> None:
    """Writes a page for people: `cards` are figure, label and note; `sections` title, HTML and note."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = f"<p class=kicker>{escape(kicker)}</p><h1>{escape(title)}</h1><p class=facts>{escape(facts)}</p>"
    shown = "".join(
        f"<div><b>{escape(figure)}</b><span>{escape(label)}</span><small>{escape(note)}</small></div>"
        for figure, label, note in cards
    )
    body = "".join(
        f"<section><h2>{escape(name)}</h2>{content}<p class=note>{escape(note)}</p></section>"
        for name, content, note in sections
        if content
    )
    partial = path.with_suffix(".partial")
    partial.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Memory bench</title><style>{style}</style><main>{head}<div class=cards>{shown}</div>{body}"
        "</main></html>\n",
        encoding="utf-8",
    )
    partial.replace(path)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As HTML."""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{lines}</table></div>"
