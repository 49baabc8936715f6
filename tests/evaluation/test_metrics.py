from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mirage_env.evaluation.metrics import (
    MAX_PSNR_DB,
    abs_rel,
    bootstrap,
    cells_all,
    cells_to_pixels,
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
    assert ssim(plain(100), plain(150)).item() == pytest.approx(expected, abs=1e-4)
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
