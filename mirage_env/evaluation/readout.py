"""How well the memory's points cover and hide, for every way to bring depth down to the latent grid (paper, Table 5).

The first picture is written with its true depth and read along the walk: no network takes part.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import torch

from mirage_env.evaluation.metrics import cells_all
from mirage_env.evaluation.walk import Walk, seen_in_first_frame
from mirage_env.memory.depth_grid import DepthDownsample
from mirage_env.memory.latent import LatentMemory, MemoryConfig
from mirage_env.memory.protocol import ChunkRecord

DOWNSAMPLINGS: tuple[DepthDownsample, ...] = get_args(DepthDownsample)
BEHIND = 0.1
"""By what share of its depth a readout must lie behind everything in its cell to show the background."""
READOUT_METRICS = {
    "hole_rate": "share of empty cells in the read views (Table 5)",
    "avoidable_hole_rate": "the same among cells that the first picture shows whole, without sky and moving things",
    "see_through_rate": "share of hit cells whose point lies behind everything that the cell truly shows",
}


def readout_study(walk: Walk, grid: tuple[int, int], config: MemoryConfig) -> dict[str, dict[str, float]]:
    """downsampling -> metric of `READOUT_METRICS` -> value on one walk; NaN where no cell counts."""
    if not walk.geometry:
        return {}
    first, goal = walk.truth[:1], walk.goal
    record = ChunkRecord(torch.zeros(1, 1, *grid), first.depth_m, first.sky, first.dynamic, first.cameras)
    views, solid = goal.cameras.resized(grid), ~(goal.sky | goal.dynamic)
    whole = cells_all(solid, grid)
    known = whole & cells_all(seen_in_first_frame(walk.truth), grid)
    # The farthest surface of every cell, by a maximum over its pixels.
    farthest = torch.nn.functional.adaptive_max_pool2d(torch.where(solid, goal.depth_m, 0.0)[:, None], grid)[:, 0]
    results: dict[str, dict[str, float]] = {}
    for method in DOWNSAMPLINGS:
        memory = LatentMemory(replace(config, depth_downsample=method))
        shown = memory.read(memory.write(memory.empty(1), record), views).grid
        assert shown is not None
        hit, behind = shown.visible, shown.depth_m > farthest * (1.0 + BEHIND)
        results[method] = dict(
            zip(
                READOUT_METRICS,
                (_share(~hit, torch.ones_like(hit)), _share(~hit, known), _share(behind, hit & whole)),
                strict=True,
            )
        )
    return results


def _share(chosen: torch.Tensor, among: torch.Tensor) -> float:
    count = int(among.sum())
    return int((chosen & among).sum()) / count if count else math.nan
