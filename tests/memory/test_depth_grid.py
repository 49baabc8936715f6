import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.memory.depth_grid import DepthDownsample, depth_to_grid, plane_slopes, straddles_edge

METHODS: tuple[DepthDownsample, ...] = ("bilinear", "nearest", "area", "median")


def everywhere(depth: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(depth, dtype=torch.bool)


@pytest.mark.parametrize(("method", "by_hand"), [("bilinear", 6.5), ("nearest", 9.0), ("area", 10.5), ("median", 4.0)])
def test_four_by_four_by_hand(method: DepthDownsample, by_hand: float) -> None:
    cell = torch.tensor([[[1.0, 2, 3, 50], [4, 5, 6, 60], [7, 6, 9, 1], [8, 2, 3, 1]]])
    assert depth_to_grid(cell, everywhere(cell), (1, 1), method).item() == by_hand


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5), st.sampled_from(METHODS))
def test_equals_numpy_over_the_valid_pixels(seed: int, high: int, wide: int, method: DepthDownsample) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 9, (2, 2 * high, 3 * wide)).astype(np.float32)
    valid = rng.random(depth.shape) < 0.7
    got = depth_to_grid(torch.from_numpy(depth), torch.from_numpy(valid), (2, 3), method)
    for t, v, u in np.ndindex(2, 2, 3):
        rows, columns = slice(v * high, (v + 1) * high), slice(u * wide, (u + 1) * wide)
        cell, ok = depth[t, rows, columns], valid[t, rows, columns]
        if method == "bilinear":
            middle = np.ix_(sorted({(high - 1) // 2, high // 2}), sorted({(wide - 1) // 2, wide // 2}))
            cell, ok = cell[middle], ok[middle]
        if method == "nearest":
            cell, ok = cell[high // 2, wide // 2], ok[high // 2, wide // 2]
        seen = np.sort(cell[ok])
        if len(seen) == 0:
            assert math.isnan(got[t, v, u])
        else:
            expected = seen[(len(seen) - 1) // 2] if method == "median" else seen.mean()
            assert float(got[t, v, u]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -3.0, 1e30])
def test_invalid_pixels_never_leak(method: DepthDownsample, bad: float) -> None:
    """The last is a finite sky: only the mask can tell."""
    torch.manual_seed(1)
    depth = torch.full((1, 16, 16), 2.0)
    spoiled = torch.rand(1, 16, 16) < 0.4
    depth[spoiled] = bad
    grid = depth_to_grid(depth, ~spoiled if bad == 1e30 else everywhere(depth), (4, 4), method)
    known = ~torch.isnan(grid)
    assert bool(known.any()) and bool((grid[known] == 2.0).all())


def test_bilinear_is_exact_on_a_slant_at_the_cell_centre() -> None:
    u = torch.arange(32) + 0.5
    depth = (1.0 + 0.25 * u).expand(1, 16, 32).contiguous()
    centres = (torch.arange(4) + 0.5) * 8
    torch.testing.assert_close(depth_to_grid(depth, everywhere(depth), (2, 4))[0, 0], 1.0 + 0.25 * centres)


def test_at_its_own_resolution_depth_stays() -> None:
    depth = torch.rand(2, 5, 7) + 0.1
    for method in METHODS:
        assert torch.equal(depth_to_grid(depth, everywhere(depth), (5, 7), method), depth)  # type: ignore[arg-type]
    assert not bool(straddles_edge(depth, everywhere(depth), (5, 7)).any())


def test_a_jump_is_an_edge_and_a_slant_is_none() -> None:
    jump = torch.full((1, 8, 24), 2.0)
    jump[..., 12:] = 2.5  # inside the second of three cells
    assert straddles_edge(jump, everywhere(jump), (1, 3))[0, 0].tolist() == [False, True, False]
    below_horizon = torch.arange(8, 32) + 0.5
    floor = (100.0 / below_horizon)[None, :, None].expand(1, 24, 8).contiguous()  # 12.5 m down to 6.5 m in one cell
    assert not bool(straddles_edge(floor, everywhere(floor), (3, 1)).any())


@pytest.mark.parametrize(("jump", "edge"), [(1.05, False), (1.2, True)])
def test_small_jumps_are_tolerated(jump: float, edge: bool) -> None:
    depth = torch.full((1, 8, 8), 3.0)
    depth[:, 4:] *= jump
    assert bool(straddles_edge(depth, everywhere(depth), (1, 1), step=0.1)[0, 0, 0]) == edge


def test_the_border_of_a_mask_is_an_edge() -> None:
    depth = torch.full((1, 8, 16), 2.0)
    valid = everywhere(depth)
    valid[0, 0, 15] = False
    assert straddles_edge(depth, valid, (1, 2))[0, 0].tolist() == [False, True]


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (0, 4), (32, 16)])
def test_grids_that_do_not_divide(grid: tuple[int, int]) -> None:
    depth = torch.ones(1, 16, 16)
    with pytest.raises(InvalidValueError, match="16 x 16 pixels does not divide into a grid of"):
        depth_to_grid(depth, everywhere(depth), grid)


@pytest.mark.usefixtures("unchecked")
def test_unknown_method() -> None:
    depth = torch.ones(1, 4, 4)
    with pytest.raises(UnknownNameError, match=r'unknown depth_downsample "bilinar"; .* did you mean "bilinear"'):
        depth_to_grid(depth, everywhere(depth), (2, 2), "bilinar")  # type: ignore[arg-type]


def test_slopes_of_planes_are_those_of_inverse_depth() -> None:
    """Inverse depth 1 + 0.02 u - 0.01 v a pixel: over cells of 8 x 4 pixels 0.16 to the right and -0.04 down, as shares
    of what it is in their middles."""
    v, u = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    depth = (1.0 / (1.0 + 0.02 * u - 0.01 * v))[None]
    depth[0, :4, :8] *= 1.0 + 0.5 * (u[:4, :8] > 4)  # an edge in the first cell
    middle = 1.0 + 0.02 * (torch.arange(4) * 8 + 4)[None] - 0.01 * (torch.arange(3) * 4 + 2)[:, None]
    expected = torch.stack([0.16 / middle, -0.04 / middle])
    expected[:, 0, 0] = 0.0
    torch.testing.assert_close(plane_slopes(depth, everywhere(depth), (3, 4))[0], expected, atol=1e-5, rtol=1e-4)
