from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mirage_env.evaluation.metrics import (
    MAX_PSNR_DB,
    abs_rel,
    bootstrap,
    bootstrap_ratio,
    cells_all,
    cells_to_pixels,
    gradient_energy,
    iou,
    kernel_distance,
    patch_features,
    pooled_psnr,
    psnr,
    ssim,
)


def plain(value: int, count: int = 1) -> torch.Tensor:
    return torch.full((count, 16, 24, 3), value, dtype=torch.uint8)


def test_psnr_of_a_known_error():
    assert psnr(plain(105), plain(100)).item() == pytest.approx(10 * math.log10(255**2 / 25), abs=1e-4)
    assert psnr(plain(0), plain(255)).item() == pytest.approx(0.0, abs=1e-5)
    assert psnr(plain(9), plain(9)).item() == pytest.approx(MAX_PSNR_DB)


def test_psnr_counts_the_mask_alone():
    picture, mask = plain(100, 2), torch.zeros(2, 16, 24, dtype=torch.bool)
    picture[:, :8] = 110
    mask[0, :8] = True
    inside, nothing = psnr(picture, plain(100, 2), mask)
    assert inside.item() == pytest.approx(10 * math.log10(255**2 / 100), abs=1e-4)
    assert math.isnan(nothing)


def test_pooling_weighs_pixels_not_pictures():
    picture, mask = plain(100, 2), torch.ones(2, 16, 24, dtype=torch.bool)
    picture[1] = 110
    mask[1, 1:] = False  # 24 pixels of 10^2 among 24 * 17
    pooled = pooled_psnr(picture, plain(100, 2), mask)
    assert pooled.item() == pytest.approx(10 * math.log10(255**2 / (100 / 17)), abs=1e-3)
    assert math.isnan(pooled_psnr(picture, picture, mask & False))


def test_ssim_of_plain_pictures_is_their_luminance_term():
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + constant) / (100**2 + 150**2 + constant)
    assert ssim(plain(100), plain(150)).item() == pytest.approx(expected, abs=1e-3)
    noise = torch.randint(0, 255, (2, 16, 24, 3), dtype=torch.uint8)
    assert ssim(noise, noise).tolist() == pytest.approx([1.0, 1.0])


def test_abs_rel_is_metric_and_masked():
    truth = torch.tensor([[[2.0, 4.0], [0.0, 1.0]]])
    seen = torch.tensor([[[3.0, 3.0], [9.0, 1.0]]])
    assert abs_rel(seen, truth, truth > 0).item() == pytest.approx((0.5 + 0.25 + 0.0) / 3)
    assert abs_rel(2 * truth, truth, truth > 0).item() == pytest.approx(1.0)


def test_cells_and_pixels():
    cells = torch.rand(2, 3, 4) > 0.5
    pixels = cells_to_pixels(cells, (24, 32))
    assert torch.equal(pixels[:, 3::8, 5::8], cells) and int(pixels.sum()) == 64 * int(cells.sum())
    assert torch.equal(cells_all(pixels, (3, 4)), cells)
    assert not cells_all(pixels & (torch.arange(32) != 0), (3, 4))[:, :, 0].any()


def test_bootstrap_intervals():
    assert bootstrap([2.0, 2.0, math.nan]) == (2.0, 2.0, 2.0, 2)
    assert bootstrap([math.nan]).scenes == 0
    values = np.random.default_rng(0).normal(7.0, 2.0, 100)
    mean, low, high, count = bootstrap(values.tolist())
    assert mean == pytest.approx(values.mean()) and count == 100
    # the mean of n draws strays by 1.96 sigma / sqrt(n)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)
    assert bootstrap(values.tolist()) == (mean, low, high, count)


def test_ssim_counts_the_mask_alone():
    picture = torch.randint(0, 255, (1, 32, 32, 3), dtype=torch.uint8)
    broken, mask = picture.clone(), torch.ones(1, 32, 32, dtype=torch.bool)
    broken[:, :, 24:] = 0
    mask[:, :, 16:] = False  # beyond the window's reach
    assert ssim(broken, picture, mask).item() == pytest.approx(1.0, abs=1e-4)
    assert ssim(broken, picture).item() < 0.9


def test_gradient_energy_of_a_ramp():
    """Grey grows by 2 levels a pixel to the right and by 1 down."""
    ramp = (
        (2 * torch.arange(16)[None, :] + torch.arange(8)[:, None])
        .to(torch.uint8)[None, :, :, None]
        .expand(-1, -1, -1, 3)
    )
    assert gradient_energy(ramp).item() == pytest.approx(5 / 255**2, rel=1e-4)
    half = torch.zeros(1, 8, 16, dtype=torch.bool)
    half[:, :, :8] = True
    flat = ramp.clone()
    flat[:, :, 8:] = 100
    assert gradient_energy(flat, half).item() == pytest.approx(5 / 255**2, rel=1e-4)
    assert math.isnan(gradient_energy(ramp, half & False))


def test_iou_is_pooled():
    found, truth = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    found[0, :2], truth[0, 1:3] = True, True
    assert iou(found, truth) == pytest.approx(4 / 12)
    assert math.isnan(iou(found & False, truth & False))


def test_kernel_distance_tells_textures_apart():
    whole = torch.ones(4, 64, 64, dtype=torch.bool)
    rough, alike = (torch.randint(0, 255, (4, 64, 64, 3), dtype=torch.uint8) for _ in range(2))
    mush = rough.float().mean((1, 2), keepdim=True).expand(4, 64, 64, 3).to(torch.uint8)
    rough_f, alike_f, mush_f = (patch_features(x, whole) for x in (rough, alike, mush))
    assert rough_f.shape == (4 * 16, 128)
    assert abs(kernel_distance(alike_f, rough_f)) < 0.02 * kernel_distance(mush_f, rough_f)
    assert math.isnan(kernel_distance(rough_f[:1], rough_f))
    inside = torch.zeros_like(whole)
    inside[:, :16, :32] = True
    assert torch.equal(patch_features(rough, inside)[:2], patch_features(rough[:1, :16, :32], whole[:1, :16, :32]))
    assert len(patch_features(rough, whole, most=7)) == 7


def test_kernel_distance_is_the_written_out_estimator():
    x, y = torch.rand(5, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
    scale = y.square().mean().sqrt()

    def mean(a: torch.Tensor, b: torch.Tensor, skip: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (skip and i == j)]
        return sum(float((a[i] @ b[j] / scale**2 / 3 + 1) ** 3) for i, j in pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_the_ratio_of_means_is_paired():
    above, below = [2.0, 4.0, math.nan, 6.0], [4.0, 8.0, 1.0, 12.0]
    assert bootstrap_ratio(above, below) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5), 3)
    assert bootstrap_ratio([math.nan], [1.0]).scenes == 0
