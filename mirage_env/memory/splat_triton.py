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

from mirage_env.memory.splat_torch import NONE, Scene, by_age, depth_of, from_keys, surface_limit

_BLOCK = 256


@triton.jit
def _smallest_keys(  # type: ignore[no-untyped-def]
    points, spans, axes, centres, footprint, target, limit, best, height, width, FIT: tl.constexpr, BLOCK: tl.constexpr
):
    """Of all points, by depth; or with FIT of those within `limit`, by how well `footprint` meets `target`."""
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
    value = z
    if FIT:
        inside = inside & (z <= tl.load(limit + cell, mask=inside, other=0.0))
        has, wanted = tl.load(footprint + row, mask=here, other=1.0), tl.load(target + cell, mask=inside, other=1.0)
        larger = has >= wanted
        value = tl.div_rn(tl.where(larger, has, wanted), tl.where(larger, wanted, has))
        value = tl.where(value >= 1.0, value, float("inf"))  # NaN of what is no footprint must not win
    key = (value.to(tl.int32, bitcast=True).to(tl.int64) << 32) | row
    # Most points lie behind what is there already: a read, even of an outdated value, spares them the atomic.
    nearer = inside & (key < tl.load(best + cell, mask=inside, other=0))
    tl.atomic_min(best + cell, key, mask=nearer, sem="relaxed")


def frontmost_many(scenes: Sequence[Scene]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`splat.frontmost` of many scenes of one size and rule, in one launch, or two where footprints compete."""
    ordered = [by_age(scene) for scene in scenes]
    points = torch.cat([scene.points for scene, _ in ordered])
    axes, centres = torch.cat([s.axes for s in scenes]).contiguous(), torch.cat([s.centres for s in scenes])
    starts = list(accumulate((len(scene.points) for scene in scenes), initial=0))
    views, size, share = [len(scene.axes) for scene in scenes], scenes[0].size, scenes[0].same_surface
    best = torch.full((len(axes) * size[0] * size[1],), NONE, dtype=torch.int64, device=points.device)
    if len(axes) and len(points):
        spans = torch.tensor([span for span, count in zip(pairwise(starts), views, strict=True) for _ in range(count)])
        longest = max(len(scene.points) for scene in scenes)
        launch: Any = _smallest_keys[(len(axes), triton.cdiv(longest, _BLOCK))]
        given = points, spans.to(points.device), axes, centres
        launch(*given, points, points, points, best, *size, FIT=False, BLOCK=_BLOCK, enable_fp_fusion=False)
        if share:
            footprint = torch.cat([scene.footprint_m for scene, _ in ordered if scene.footprint_m is not None])
            focal = torch.cat([scene.focal for scene in scenes if scene.focal is not None])
            rule = footprint, depth_of(best) / focal.repeat_interleave(size[0] * size[1]), surface_limit(best, share)
            best = torch.full_like(best, NONE)
            launch(*given, *rule, best, *size, FIT=True, BLOCK=_BLOCK, enable_fp_fusion=False)
    index, offset, depth = (part.split(views) for part in from_keys(best, points, axes, centres, size))
    results = []
    for n, (start, (_, order)) in enumerate(zip(starts[:-1], ordered, strict=True)):
        row = torch.where(index[n] >= 0, index[n] - start, -1)
        if order is not None and len(order):
            row = torch.where(row >= 0, order[row.clamp_min(0)], -1)
        results.append((row, offset[n], depth[n]))
    return results
