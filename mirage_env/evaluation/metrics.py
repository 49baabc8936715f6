"""What a picture, a depth map or a set of scenes scores. Masks choose what counts; nothing to count gives NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

MAX_PSNR_DB = 100.0
"""What equal pictures score, so that a mean over pictures stays finite."""


def psnr(
    prediction: UInt8[Tensor, "n *d 3"], truth: UInt8[Tensor, "n *d 3"], mask: Bool[Tensor, "n *d"] | None = None
) -> Float[Tensor, " n"]:
    """10 log10(255^2 / MSE) in dB of each picture, over the pixels of `mask`; at most `MAX_PSNR_DB`."""
    error = (prediction.float() - truth.float()).square().mean(-1)
    mse = _masked_mean(error, mask)
    return 10.0 * torch.log10(255.0**2 / mse.clamp_min(255.0**2 * 10.0 ** (-MAX_PSNR_DB / 10.0)))


def pooled_psnr(
    prediction: UInt8[Tensor, "n *d 3"], truth: UInt8[Tensor, "n *d 3"], mask: Bool[Tensor, "n *d"]
) -> Float[Tensor, ""]:
    """PSNR over the chosen pixels of all pictures together: for masks of which single pictures hold next to nothing."""
    return psnr(prediction.reshape(1, -1, 3), truth.reshape(1, -1, 3), mask.reshape(1, -1))[0]


def ssim(prediction: UInt8[Tensor, "n H W 3"], truth: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, " n"]:
    """Structural similarity of each picture, with its authors' Gaussian window (sigma 1.5); sides of at least 11."""
    from skimage.metrics import structural_similarity

    pairs = zip(prediction.cpu().numpy(), truth.cpu().numpy(), strict=True)
    return torch.tensor(
        [
            structural_similarity(
                a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for a, b in pairs
        ],
        dtype=torch.float32,
    )


def abs_rel(
    depth_m: Float[Tensor, "n H W"], truth_m: Float[Tensor, "n H W"], mask: Bool[Tensor, "n H W"]
) -> Float[Tensor, " n"]:
    """Mean of |d - d*| / d* of each picture over the pixels of `mask`, in metres as they are: no alignment."""
    return _masked_mean((depth_m - truth_m).abs() / torch.where(mask, truth_m, 1.0), mask)


def cells_to_pixels(cells: Bool[Tensor, "n h w"], size: tuple[int, int]) -> Bool[Tensor, "n H W"]:
    """The mask of all pixels of the chosen cells."""
    rows, columns = size[0] // cells.shape[1], size[1] // cells.shape[2]
    return cells.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


def cells_all(pixels: Bool[Tensor, "n H W"], grid: tuple[int, int]) -> Bool[Tensor, "n h w"]:
    """The cells all of whose pixels are chosen."""
    n, height, width = pixels.shape
    return pixels.reshape(n, grid[0], height // grid[0], grid[1], width // grid[1]).all(4).all(2)


class Interval(NamedTuple):
    """A mean over scenes and where it lies with 95% confidence; `scenes` of them had a value."""

    mean: float
    low: float
    high: float
    scenes: int


def bootstrap(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of the values that are not NaN, with the 2.5 and 97.5 percentiles of the means of resampled scenes."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(np.nan, np.nan, np.nan, 0)
    drawn = np.random.default_rng(seed).integers(0, len(known), (resamples, len(known)))
    low, high = np.percentile(known[drawn].mean(1), (2.5, 97.5))
    return Interval(float(known.mean()), float(low), float(high), len(known))


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    values = values.flatten(1)
    if mask is None:
        return values.mean(1)
    mask = mask.flatten(1)
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1)
