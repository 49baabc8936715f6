"""Depth maps brought down to the latent grid, and the cells where that is not possible (paper, Table 5).

A cell covers H/h x W/w pixels. Pixels that are not valid (sky, moving things, no finite positive depth) never count.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirage_env.errors import InvalidValueError, UnknownNameError

DepthDownsample = Literal["bilinear", "nearest", "area", "median"]


def depth_to_grid(
    depth_m: Float[Tensor, "T H W"],
    valid: Bool[Tensor, "T H W"],
    grid: tuple[int, int],
    method: DepthDownsample = "bilinear",
) -> Float[Tensor, "T h w"]:
    """z-depth at every cell's centre in metres; NaN where `method` finds no valid pixel.

    bilinear: the depth at the centre, that is the mean of the (at most four) pixels around it.
    nearest: the pixel that holds the centre (of four, the lower right one).
    area, median: over all pixels of the cell; of an even count the lower median, so that it is a depth that was seen.
    """
    cells = torch.where(_usable(depth_m, valid), depth_m, torch.nan)
    cells = _cells(cells, grid)
    high, wide = cells.shape[-2:]
    if method == "bilinear":
        return cells[..., (high - 1) // 2 : high // 2 + 1, (wide - 1) // 2 : wide // 2 + 1].flatten(3).nanmean(3)
    if method == "nearest":
        return cells[..., high // 2, wide // 2]
    if method == "area":
        return cells.flatten(3).nanmean(3)
    if method == "median":
        return cells.flatten(3).nanmedian(3).values
    raise UnknownNameError("depth_downsample", method, get_args(DepthDownsample))


def straddles_edge(
    depth_m: Float[Tensor, "T H W"], valid: Bool[Tensor, "T H W"], grid: tuple[int, int], step: float = 0.1
) -> Bool[Tensor, "T h w"]:
    """Cells that hold more than one surface: those with a pixel that is not valid, or with a jump of depth.

    Inverse depth is affine in the picture on any plane, so a plane is fitted to it and what is left is judged: a jump
    is a range of residuals above `step` times the mean. A floor at a grazing angle is none, however deep its cell.
    """
    return _fitted(depth_m, valid, grid, step)[1]


def plane_slopes(
    depth_m: Float[Tensor, "T H W"], valid: Bool[Tensor, "T H W"], grid: tuple[int, int], step: float = 0.1
) -> Float[Tensor, "T 2 h w"]:
    """By what share of itself inverse depth grows over a cell, to the right and down; 0 in cells that straddle an
    edge."""
    fit, edge = _fitted(depth_m, valid, grid, step)
    slopes = (fit[..., 1:] / fit[..., :1]).flip(3).movedim(3, 1)
    return torch.where(edge[:, None] | ~slopes.isfinite(), 0.0, slopes)


def _fitted(
    depth_m: Tensor, valid: Tensor, grid: tuple[int, int], step: float
) -> tuple[Float[Tensor, "T h w 3"], Bool[Tensor, "T h w"]]:
    """The plane of every cell's inverse depth (its mean, its growth over the cell downwards and to the right), and
    which cells are none."""
    usable = _usable(depth_m, valid)
    inverse = _cells(torch.where(usable, depth_m, 1.0).reciprocal(), grid)
    plane, spans = _plane(inverse.shape[3], inverse.shape[4], inverse.device)
    inverse = inverse.flatten(3)
    fit = inverse @ plane
    residual = inverse - fit @ plane.T
    jump = residual.amax(3) - residual.amin(3) > step * inverse.mean(3)
    return fit * spans, jump | ~_cells(usable, grid).flatten(3).all(3)


def _plane(height: int, width: int, device: torch.device) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "3"]]:
    """An orthonormal basis of the affine functions on a cell's pixels, row by row, and how much each grows over it
    (the first: how large it is)."""
    y, x = (torch.arange(n, device=device) - (n - 1) / 2 for n in (height, width))
    basis = torch.cat([torch.ones(height * width, 1, device=device), torch.cartesian_prod(y, x)], 1)
    norms = basis.norm(dim=0).clamp_min(1e-6)
    return basis / norms, torch.tensor([1.0, height, width], device=device) / norms


def _usable(depth_m: Tensor, valid: Tensor) -> Tensor:
    return valid & torch.isfinite(depth_m) & (depth_m > 0)


def _cells(picture: Tensor, grid: tuple[int, int]) -> Tensor:
    """(T, H, W) -> (T, h, w, H/h, W/w)"""
    (frames, height, width), (h, w) = picture.shape, grid
    if h < 1 or w < 1 or height % h or width % w:
        raise InvalidValueError(
            f"a depth map of {height} x {width} pixels does not divide into a grid of {h} x {w} cells; "
            "pass a map whose sides are multiples of the grid's"
        )
    return picture.reshape(frames, h, height // h, w, width // w).transpose(2, 3)
