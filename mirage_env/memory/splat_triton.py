"""The readout on CUDA: every pair of a view and a point is one lane, and a 64-bit atomic minimum decides each cell.

Never run on a GPU: written where there was none, compiled for one (sm_90), and tested through Triton's interpreter
only. Contraction is off and division rounds to nearest, so that the results should be those of every other kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage_env.memory.splat_torch import NONE, by_age, from_keys

_BLOCK = 256


@triton.jit
def _smallest_keys(  # type: ignore[no-untyped-def]
    points, spans, axes, centres, best, height, width, BLOCK: tl.constexpr
):
    view = tl.program_id(0)
    row = tl.load(spans + 2 * view) + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = row < tl.load(spans + 2 * view + 1)
    u = tl.load(points + 3 * row, mask=here, other=0.0) - tl.load(centres + 3 * view)
    v = tl.load(points + 3 * row + 1, mask=here, other=0.0) - tl.load(centres + 3 * view + 1)
    w = tl.load(points + 3 * row + 2, mask=here, other=0.0) - tl.load(centres + 3 * view + 2)
    line = axes + 9 * view
    x = tl.load(line) * u + tl.load(line + 1) * v + tl.load(line + 2) * w
    y = tl.load(line + 3) * u + tl.load(line + 4) * v + tl.load(line + 5) * w
    z = tl.load(line + 6) * u + tl.load(line + 7) * v + tl.load(line + 8) * w
    ahead = here & (z > 0.0)
    z = tl.where(ahead, z, 1.0)
    x, y = tl.div_rn(x, z), tl.div_rn(y, z)
    inside = ahead & (x >= 0.0) & (y >= 0.0) & (x < width) & (y < height)
    x, y = tl.where(inside, x, 0.0), tl.where(inside, y, 0.0)  # what lies outside need not fit an integer
    cell = (view.to(tl.int64) * height + y.to(tl.int64)) * width + x.to(tl.int64)
    key = (z.to(tl.int32, bitcast=True).to(tl.int64) << 32) | row
    # Most points lie behind what is there already: a read, even of an outdated value, spares them the atomic.
    nearer = inside & (key < tl.load(best + cell, mask=inside, other=0))
    tl.atomic_min(best + cell, key, mask=nearer, sem="relaxed")


def frontmost_many(
    clouds: Sequence[tuple[Tensor, Tensor]], cameras: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`splat.frontmost` of many clouds (points, ids), each for its own views (axes, centres), in one launch."""
    ordered = [by_age(points, ids) for points, ids in clouds]
    points = torch.cat([cloud for cloud, _ in ordered])
    axes, centres = (torch.cat(parts).contiguous() for parts in zip(*cameras, strict=True))
    starts = list(accumulate((len(cloud) for cloud, _ in ordered), initial=0))
    views = [len(part) for part, _ in cameras]
    best = torch.full((len(axes) * size[0] * size[1],), NONE, dtype=torch.int64, device=points.device)
    if len(axes) and len(points):
        spans = torch.tensor([span for span, count in zip(pairwise(starts), views, strict=True) for _ in range(count)])
        longest = max(len(cloud) for cloud, _ in ordered)
        launch: Any = _smallest_keys[(len(axes), triton.cdiv(longest, _BLOCK))]
        place = points.device
        launch(points, spans.to(place), axes, centres, best, *size, BLOCK=_BLOCK, enable_fp_fusion=False)
    index, offset, depth = (part.split(views) for part in from_keys(best, points, axes, centres, size))
    results = []
    for n, (start, (_, order)) in enumerate(zip(starts[:-1], ordered, strict=True)):
        row = torch.where(index[n] >= 0, index[n] - start, -1)
        if order is not None and len(order):
            row = torch.where(row >= 0, order[row.clamp_min(0)], -1)
        results.append((row, offset[n], depth[n]))
    return results
