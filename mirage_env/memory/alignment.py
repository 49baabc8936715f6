"""One scale a chunk, so that new depth continues the remembered world instead of letting it breathe."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirage_env.errors import InvalidValueError
from mirage_env.memory.depth_grid import depth_to_grid, straddles_edge
from mirage_env.memory.latent import SKY_M


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
