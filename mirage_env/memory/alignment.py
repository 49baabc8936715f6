"""Depth that continues the remembered world instead of letting it breathe: one scale a chunk, then cell by cell."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError
from mirage_env.memory.depth_grid import depth_to_grid, straddles_edge
from mirage_env.types import SKY_M, Readout


def align_log_scale(
    depth_m: Float[Tensor, "T H W"],
    valid: Bool[Tensor, "T H W"],
    remembered_depth_m: Float[Tensor, "_ h w"],
    limit: float = 0.2,
    min_overlap: float = 0.1,
) -> float:
    """The s for which exp(s) * depth_m agrees best with the memory: a median of log ratios, clamped to +-limit.

    `remembered_depth_m` is `Readout.depth_m` from the same cameras (zero where nothing was shown), on a grid that
    divides the depth map or at its own resolution. Compared are cells that the memory shows and whose pixels are one
    valid surface. Where they are fewer than the share `min_overlap` of all cells, the answer is 0.0: no change.
    """
    if len(depth_m) != len(remembered_depth_m):
        raise InvalidValueError(f"{len(depth_m)} depth maps cannot be aligned to {len(remembered_depth_m)} read-outs")
    grid = (remembered_depth_m.shape[1], remembered_depth_m.shape[2])
    depth = depth_to_grid(depth_m, valid, grid)
    surface = (remembered_depth_m > 0) & (remembered_depth_m < SKY_M / 2)  # the sky has no scale
    comparable = torch.isfinite(depth) & surface & ~straddles_edge(depth_m, valid, grid)
    if int(comparable.sum()) < min_overlap * comparable.numel() or not bool(comparable.any()):
        return 0.0
    ratio = remembered_depth_m[comparable].log() - depth[comparable].log()
    return float(ratio.median().clamp(-limit, limit))


def anchored(
    depth_m: Float[Tensor, "T H W"], valid: Bool[Tensor, "T H W"], shown: Readout, limit: Float[Tensor, "T H W"]
) -> Float[Tensor, "T H W"]:
    """Depth moved onto the surfaces that the memory shows to the same cameras.

    In every cell whose remembered point lies on a valid pixel, no farther from it than its `limit` (a difference of
    natural logarithms: beyond it there is another surface), the correction is that difference. A cell that shows
    nothing takes the mean of such cells around it, and all others have none. Between the centres of cells it is
    interpolated.
    """
    (height, width), (h, w) = depth_m.shape[1:], shown.visible.shape[1:]
    x = (torch.arange(w, device=depth_m.device) + 0.5 + shown.offset[:, 0]) * (width / w)
    y = (torch.arange(h, device=depth_m.device)[:, None] + 0.5 + shown.offset[:, 1]) * (height / h)
    frame = torch.arange(len(depth_m), device=depth_m.device)[:, None, None]
    pixel = frame, y.long().clamp(0, height - 1), x.long().clamp(0, width - 1)
    off = shown.depth_m.log() - depth_m[pixel].log()
    known = shown.visible & (shown.depth_m < SKY_M / 2) & valid[pixel] & (off.abs() <= limit[pixel])
    correction = torch.where(known, off, 0.0)[:, None]
    around = F.avg_pool2d(correction, 3, 1, 1) / F.avg_pool2d(known.float()[:, None], 3, 1, 1).clamp_min(0.1)
    correction = torch.where(shown.visible[:, None], correction, around)
    return depth_m * F.interpolate(correction, size=(height, width), mode="bilinear")[:, 0].exp()
