"""How long one read of the memory takes, beside the two obvious ways to write it, in one run.

python benchmarks/readout.py
python benchmarks/readout.py --sizes 4096x8x16x16x24 300000x9x44x80x48 --threads 2
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import project
from mirage_env.memory import splat
from mirage_env.types import Cameras

SIZES = ("300000x9x44x80x48", "4096x8x16x16x24", "4096x8x16x16x48")


class Room(NamedTuple):
    """Points in a room, and cameras in it."""

    points: Tensor
    tokens: Tensor
    ids: Tensor
    footprint_m: Tensor
    cameras: Cameras


Read = Callable[[Room], tuple[Tensor, Tensor]]


def ours(room: Room) -> tuple[Tensor, Tensor]:
    readout = splat(room.points, room.tokens, room.ids, room.cameras)
    return readout.tokens, readout.index


def by_footprint(room: Room) -> tuple[Tensor, Tensor]:
    """Ours, where among points within 2 % of the frontmost the best-fitting one wins."""
    readout = splat(room.points, room.tokens, room.ids, room.cameras, room.footprint_m, 0.02)
    return readout.tokens, readout.index


def view_by_view(room: Room) -> tuple[Tensor, Tensor]:
    """Project, sort far to near, write in that order and hope that the last write wins: torch does not promise it."""
    points, tokens, cameras = room.points, room.tokens, room.cameras
    height, width = cameras.size
    shown = torch.zeros(len(cameras), tokens.shape[1], height, width)
    index = torch.full((len(cameras), height, width), -1)
    for view in range(len(cameras)):
        position, depth = (a[0] for a in project(points, cameras[view : view + 1]))
        x, y = position.floor().long().unbind(-1)
        inside = ((depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)).nonzero()[:, 0]
        far_to_near = inside[depth[inside].argsort(descending=True)]
        shown[view, :, y[far_to_near], x[far_to_near]] = tokens[far_to_near].T
        index[view, y[far_to_near], x[far_to_near]] = far_to_near
    return shown, index


def naive_minimum(room: Room) -> tuple[Tensor, Tensor]:
    """Every point of every view into a minimum of depth, then whoever has it; points out of view share a spare cell."""
    points, tokens, cameras = room.points, room.tokens, room.cameras
    (height, width), views, count = cameras.size, len(cameras), len(points)
    position, depth = project(points, cameras)
    x, y = position.floor().long().unbind(-1)
    inside = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cell = torch.arange(views)[:, None] * height * width + y * width + x
    cell = torch.where(inside, cell, views * height * width).flatten()
    nearest = torch.full((views * height * width + 1,), math.inf).scatter_reduce(0, cell, depth.flatten(), "amin")
    row = torch.where(depth.flatten() == nearest[cell], torch.arange(count).repeat(views), count)
    index = torch.full((views * height * width + 1,), count).scatter_reduce(0, cell, row, "amin")[:-1]
    table = torch.cat([tokens, tokens.new_zeros(1, tokens.shape[1])])
    shown = table[index].unflatten(0, (views, height, width)).permute(0, 3, 1, 2).contiguous()
    return shown, torch.where(index < count, index, -1).view(views, height, width)


WAYS: dict[str, Read] = {
    "ours": ours,
    "ours, by footprint": by_footprint,
    "view by view, argsort": view_by_view,
    "naive minimum": naive_minimum,
}


def a_room(points: int, views: int, height: int, width: int, channels: int) -> Room:
    """Points on the walls, floor and ceiling of a room, and a walk that turns by 90 degrees in it."""
    torch.manual_seed(0)
    scattered = torch.rand(points, 3) * 2 - 1
    wall = torch.randint(0, 3, (points, 1))
    scattered.scatter_(1, wall, scattered.gather(1, wall).sign())
    yaw = torch.linspace(0, math.pi / 2, views)
    position = torch.stack([yaw, torch.zeros(views), yaw.cos()], 1)
    k = intrinsics_from_fov(math.radians(70), (height, width)).repeat(views, 1, 1)
    cameras = Cameras(rigid(rotation_from_yaw_pitch_roll(yaw, yaw * 0, yaw * 0), position), k, (height, width))
    place, tokens = scattered * torch.tensor([4.0, 1.5, 4.0]), torch.randn(points, channels)
    return Room(place, tokens, torch.arange(points), 0.02 + 0.2 * torch.rand(points), cameras)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="points x views x height x width x channels")
    parser.add_argument("--repeats", type=int, default=50, help="timed reads of each way (fewer where one takes long)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Of a single thread its own time is known, which nobody else on the machine can lengthen.
    clock, what = (time.thread_time, "CPU time") if arguments.threads == 1 else (time.perf_counter, "wall time")

    table = Table(title=f"One read of the memory, {arguments.threads} CPU thread(s), {what}, ways taken in turn")
    for column in ("points x views x h x w x C", "way", "ms", "min to max", "x ours", "x by footprint", "same"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for size in arguments.sizes:
        room = a_room(*(int(n) for n in size.split("x")))
        while "mirage_env.memory.splat_cpu" not in sys.modules:
            ours(room)  # until so much was read that the compiled kernel is loaded
        _, winners = ours(room)
        milliseconds: dict[str, list[float]] = {name: [] for name in WAYS}
        agreement = {name: float((way(room)[1] == winners).float().mean()) for name, way in WAYS.items()}  # warms up
        ways = list(WAYS.items())
        for _ in range(arguments.repeats if len(room.points) * len(room.cameras) < 1e6 else min(10, arguments.repeats)):
            ways = ways[1:] + ways[:1]  # whoever comes after a large one finds the caches cold
            for name, way in ways:
                start = clock()
                way(room)
                milliseconds[name].append((clock() - start) * 1e3)
        medians = {name: statistics.median(times) for name, times in milliseconds.items()}
        for name, times in milliseconds.items():
            first = name == "ours"
            table.add_row(
                size if first else "",
                name,
                f"{medians[name]:.2f}",
                f"{min(times):.2f} to {max(times):.2f}",
                *(f"{medians[name] / medians[way]:.1f}" for way in ("ours", "ours, by footprint")),
                f"{agreement[name]:.2%}",
                end_section=name == list(WAYS)[-1],
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
