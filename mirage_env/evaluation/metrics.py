"""What a picture, a depth map or a set of scenes scores. Masks choose what counts; nothing to count gives NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError

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


def ssim(
    prediction: UInt8[Tensor, "n H W 3"], truth: UInt8[Tensor, "n H W 3"], mask: Bool[Tensor, "n H W"] | None = None
) -> Float[Tensor, " n"]:
    """Structural similarity of each picture (Gaussian window, sigma 1.5) over the pixels of `mask`; sides from 11."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise InvalidValueError("SSIM comes with torchmetrics; pip install 'mirage-env[eval]'") from None

    pair = (x.movedim(-1, 1).float() for x in (prediction, truth))
    _, maps = structural_similarity_index_measure(*pair, data_range=255.0, reduction="none", return_full_image=True)
    return _masked_mean(maps.mean(1), mask)


def gradient_energy(
    pictures: UInt8[Tensor, "n H W 3"], mask: Bool[Tensor, "n H W"] | None = None
) -> Float[Tensor, " n"]:
    """Mean square step of grey (0 to 1) from pixel to pixel, right and down, where both pixels are in `mask`."""
    grey = pictures.float() @ pictures.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32) / 255.0
    steps = torch.stack([grey.diff(dim=1)[:, :, :-1], grey.diff(dim=2)[:, :-1]], 1).square().sum(1)
    inside = None if mask is None else mask[:, 1:, :-1] & mask[:, :-1, 1:] & mask[:, :-1, :-1]
    return _masked_mean(steps, inside)


def abs_rel(
    depth_m: Float[Tensor, "n H W"], truth_m: Float[Tensor, "n H W"], mask: Bool[Tensor, "n H W"]
) -> Float[Tensor, " n"]:
    """Mean of |d - d*| / d* of each picture over the pixels of `mask`, in metres as they are: no alignment."""
    return _masked_mean((depth_m - truth_m).abs() / torch.where(mask, truth_m, 1.0), mask)


def iou(found: Bool[Tensor, "n H W"], truth: Bool[Tensor, "n H W"]) -> float:
    """Intersection over union over all pictures together; NaN where neither holds anything."""
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else float("nan")


PATCH_PX = 16
_FEATURES = 64


def patch_features(
    pictures: UInt8[Tensor, "n H W 3"], mask: Bool[Tensor, "n H W"], most: int = 256
) -> Float[Tensor, "p 128"]:
    """Mean and deviation of fixed random features over every 16 x 16 patch that lies in `mask`; at most `most` of them.

    The features are those of a two-layer convolutional network with ReLU whose weights are drawn once from seed 0: they
    see colour, contrast and the grain of edges, and change with no model's training. Patches are spread evenly.
    """
    whole = -F.max_pool2d(-mask[:, None].float(), PATCH_PX)[:, 0] > 0
    where = whole.nonzero()
    if len(where) > most:
        where = where[torch.linspace(0, len(where) - 1, most).long()]
    tiles = pictures.unfold(1, PATCH_PX, PATCH_PX).unfold(2, PATCH_PX, PATCH_PX)
    patches = tiles[where[:, 0], where[:, 1], where[:, 2]].float() / 127.5 - 1.0
    generator = torch.Generator().manual_seed(0)
    x = patches
    for inputs, outputs in ((3, 32), (32, _FEATURES)):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (inputs * 9 / 2) ** 0.5
        bias = 0.1 * torch.randn(outputs, generator=generator)
        x = F.relu(F.conv2d(x, weight, bias, stride=2))
    mean = x.mean((2, 3), keepdim=True)
    return torch.cat([mean, (x - mean).square().mean((2, 3), keepdim=True).sqrt()], 1).flatten(1)


def kernel_distance(found: Float[Tensor, "p d"], truth: Float[Tensor, "q d"]) -> float:
    """Squared maximum mean discrepancy with KID's kernel (x.y / d + 1)^3, unbiased: 0 on average for equal sources.

    Features are first put in units of the truth's mean square. NaN for fewer than two patches.
    """
    if min(len(found), len(truth)) < 2:
        return float("nan")
    scale = truth.double().square().mean().sqrt().clamp_min(1e-6)
    x, y = found.double() / scale, truth.double() / scale

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2.0 * kernel(x, y).mean())


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


def bootstrap_ratio(above: Sequence[float], below: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of `above` over the mean of `below`, scene by scene paired, with its 95% interval."""
    pairs = np.stack([np.asarray(above, np.float64), np.asarray(below, np.float64)])
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    count = pairs.shape[1]
    if not count:
        return Interval(np.nan, np.nan, np.nan, 0)
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    over, under = pairs[:, drawn].mean(2)
    low, high = np.percentile(over / under, (2.5, 97.5))
    return Interval(float(pairs[0].mean() / pairs[1].mean()), float(low), float(high), count)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    values = values.flatten(1)
    if mask is None:
        return values.mean(1)
    mask = mask.flatten(1)
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1)
