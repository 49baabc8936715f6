from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import backproject
from mirage_env.memory.depth_grid import straddles_edge
from mirage_env.perception.drawn import (
    FAR_M,
    FEATURES,
    LENGTHS_M,
    NEARER,
    SILL_M,
    WALL_M,
    DepthDrawer,
    DrawerConfig,
    draw_features,
    drawn,
    noise,
    planes,
    to_draw,
)
from mirage_env.perception.tiny import Perceived
from mirage_env.types import Cameras

SIDE, CELLS = 64, 8
EYES = torch.tensor([1.2])
"""Metres above the floor."""


def turned(yaw: torch.Tensor) -> Cameras:
    """Cameras at the origin that look along `yaw` (radians), a quarter turn wide."""
    nothing = torch.zeros_like(yaw)
    poses = rigid(rotation_from_yaw_pitch_roll(yaw, nothing, nothing), torch.zeros(len(yaw), 3))
    k = intrinsics_from_fov(math.pi / 2, (SIDE, SIDE)).repeat(len(yaw), 1, 1)
    return Cameras(poses, k, (SIDE, SIDE))


def wall(frames: int, depth_m: float = 2.0) -> Perceived:
    nothing = torch.zeros(frames, SIDE, SIDE, dtype=torch.bool)
    depth = torch.full((frames, SIDE, SIDE), depth_m)
    return Perceived(depth, nothing, nothing, torch.full_like(depth, 0.4))


def test_holes_of_one_or_two_cells_belong_to_what_is_around_them() -> None:
    visible = torch.ones(1, CELLS, CELLS, dtype=torch.bool)
    visible[:, 2:4, 3:5] = False
    assert not to_draw(visible).any()
    visible[:, :, 5:] = False
    assert torch.equal(to_draw(visible)[0].nonzero()[:, 1].unique(), torch.tensor([5, 6, 7]))


def test_draws_change_their_cells_alone_and_are_surfaces_that_stand_still() -> None:
    cells = torch.zeros(1, CELLS, CELLS, dtype=torch.bool)
    cells[:, :, 4:] = True
    everywhere = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    before = replace(wall(1), sky=everywhere, dynamic=everywhere)
    features, _ = draw_features(wall(1), cells, torch.where(cells, 0.0, 2.0), turned(torch.zeros(1)), 1.2)
    farther = torch.full((1, CELLS, CELLS), math.log(1.5) + NEARER)
    found = drawn(before, features, farther, EYES, 50.0)
    above = slice(None, SIDE // 2)
    assert found.depth_m[..., :32].eq(2.0).all() and found.depth_m[:, above, 32:].allclose(torch.tensor(3.0))
    assert found.sky[..., :32].all() and not found.sky[..., 32:].any()
    assert found.dynamic[..., :32].all() and not found.dynamic[..., 32:].any()
    assert drawn(wall(1), features, farther + 5.0, EYES, 10.0).depth_m[:, above, 32:].eq(10.0).all()


@pytest.mark.parametrize("height_m", [-0.5, 0.0, 0.25])
def test_what_is_drawn_nearly_at_the_floor_is_floor(height_m: float) -> None:
    """Beneath it, at it or a little above it."""
    cells, cameras = torch.ones(1, CELLS, CELLS, dtype=torch.bool), turned(torch.zeros(1))
    features, _ = draw_features(wall(1), cells, torch.zeros(1, CELLS, CELLS), cameras, 1.2)
    floor = features[:, FEATURES.index("floor")]
    off = floor + math.log((1.2 - height_m) / 1.2) - features[:, FEATURES.index("perceived")]
    off[:, : CELLS // 2] = 0.0
    points = backproject(drawn(wall(1), features, off, EYES, 50.0).depth_m, cameras)[0, SIDE // 2 + SIDE // CELLS :]
    torch.testing.assert_close(points[..., 1], torch.full_like(points[..., 1], 1.2), atol=1e-4, rtol=0)


def test_drawn_things_stand_upright() -> None:
    """What leans a little is upright, what is far before or behind the rest of its column is left."""
    cells, cameras = torch.ones(1, CELLS, CELLS, dtype=torch.bool), turned(torch.zeros(1))
    features, _ = draw_features(wall(1), cells, torch.zeros(1, CELLS, CELLS), cameras, 1.2)
    told = dict(zip(FEATURES, features.unbind(1), strict=True))
    column = torch.tensor(
        [1.5, 4.0, 4.0, 4.2, 4.0, 2.2, 0.5, 1.3]
    ).log()  # from the 5th on the floor is 9.6 to 1.4 away
    off = column[:, None] - told["perceived"]
    depth = drawn(wall(1), features, off, EYES, 50.0).depth_m[0]
    middles = depth.reciprocal().unflatten(0, (CELLS, -1)).unflatten(2, (CELLS, -1)).mean((1, 3)).reciprocal()
    standing = torch.tensor([1.5, 4.0, 4.0, 4.0, 4.0, 0.0, 0.5, 0.0]) * math.exp(-NEARER)
    standing[[5, 7]] = told["floor"][0, [5, 7], 0].exp()  # where the floor comes before the wall
    torch.testing.assert_close(middles, standing[:, None].expand(-1, CELLS))


@pytest.mark.parametrize("beside_m", [2.0, None])
def test_what_is_drawn_far_away_is_seen_through_a_window_in_the_wall_beside_it(beside_m: float | None) -> None:
    cells, cameras = torch.ones(1, CELLS, CELLS, dtype=torch.bool), turned(torch.zeros(1))
    cells[:, :, :4] = beside_m is None
    features, _ = draw_features(wall(1), cells, torch.where(cells, 0.0, beside_m or 0.0), cameras, 1.2)
    told = dict(zip(FEATURES, features[0].unbind(), strict=True))
    around = (1 + told["ray_x"][0] ** 2).sqrt()  # how much farther away than deep
    off = math.log(12.0) - features[:, FEATURES.index("perceived")]
    depth = drawn(wall(1), features, off, EYES, 50.0).depth_m[0, :, 32:40]
    middle = depth.reciprocal().unflatten(0, (CELLS, -1)).mean((1, 2)).reciprocal()  # of column 4
    at = (beside_m * around[2:4].min() if beside_m else WALL_M) / around[4]
    sill = 1.2 - at * told["down"][:, 4] < SILL_M
    assert sill.tolist() == [False] * 5 + [True] * 3 or sill.tolist() == [False] * 4 + [True] * 4
    floor = torch.where(told["down"][:, 4] > 0, told["floor"][:, 4].exp(), FAR_M)
    torch.testing.assert_close(middle, torch.where(sill, torch.minimum(at, floor), floor))


def test_cells_on_a_plane_are_that_plane_to_the_pixel() -> None:
    def inverse(side: int) -> torch.Tensor:  # of a plane that turns away to the right and up
        at = (torch.arange(side) + 0.5) / side
        return 0.1 + 0.3 * at[:, None] + 0.2 * (1 - at)

    found = planes(-inverse(CELLS).log()[None], (SIDE, SIDE))[0]
    torch.testing.assert_close(found, 1 / inverse(SIDE))
    assert planes(torch.zeros(1, 1, CELLS), (8, SIDE)).eq(1.0).all()  # one row of cells has no slope


def test_no_drawn_cell_holds_two_surfaces_however_wild_the_draw() -> None:
    """Else the memory would not keep it, and it would be drawn anew, otherwise, at every look."""
    log_depth = torch.randn(4, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    depth = planes(log_depth, (SIDE, SIDE))
    assert not straddles_edge(depth, torch.ones_like(depth, dtype=torch.bool), (CELLS, CELLS)).any()
    middle = depth.reciprocal().unflatten(1, (CELLS, -1)).unflatten(3, (CELLS, -1)).mean((2, 4))
    torch.testing.assert_close(middle, (-log_depth).exp())
    ratio = depth.unflatten(1, (CELLS, -1)).unflatten(3, (CELLS, -1)) / log_depth.exp()[:, :, None, :, None]
    assert (ratio > 0.5).all() and (ratio < 5.0 + 1e-4).all()


def test_frames_that_see_one_place_get_one_noise_for_it() -> None:
    generator = torch.Generator().manual_seed(0)
    places = 3.0 * torch.randn(1, 2, CELLS, CELLS, generator=generator)
    both = torch.cat([places, places.flip(3)])
    first, second = noise(both, [5, 5])
    torch.testing.assert_close(first, second.flip(2))
    assert first.shape == (len(LENGTHS_M), CELLS, CELLS)
    assert not torch.allclose(first, noise(both, [5, 6])[1].flip(2))


def test_noise_has_mean_zero_and_variance_one_and_is_as_smooth_as_its_waves_are_long() -> None:
    x = torch.arange(0, 0.5 * CELLS**2, 0.5).view(CELLS, CELLS)
    places = torch.stack([x, torch.zeros_like(x)])[None].expand(300, -1, -1, -1)
    fields = noise(places, list(range(300))).flatten(2)
    assert fields.mean((0, 2)) == pytest.approx(torch.zeros(len(LENGTHS_M)), abs=0.1)
    assert fields.var((0, 2)) == pytest.approx(torch.ones(len(LENGTHS_M)), rel=0.15)
    steps = fields.diff(dim=2).abs().mean((0, 2))
    assert steps[0] < steps[1] < steps[3] < steps[5]


def test_what_the_drawer_is_told() -> None:
    """A level camera 1.2 m above the floor: straight down a ray, the floor lies where geometry says."""
    cameras = turned(torch.tensor([0.0, math.pi / 2]))
    visible = torch.zeros(2, CELLS, CELLS, dtype=torch.bool)
    visible[0, :, 0] = True
    shown = torch.where(visible, 3.0, 0.0)
    features, places = draw_features(wall(2, 100.0), to_draw(visible), shown, cameras, 1.2)
    told = dict(zip(FEATURES, features.unbind(1), strict=True))
    assert features.isfinite().all()
    torch.testing.assert_close(told["perceived"].exp(), torch.full((2, CELLS, CELLS), FAR_M))
    assert told["memory"][0, :, 0].exp() == pytest.approx(torch.full((CELLS,), 3.0))
    assert told["memory"][0, :, 1:].eq(0).all() and torch.equal(told["shown"] > 0, visible)
    below = (torch.arange(CELLS) + 0.5) / (CELLS / 2) - 1  # the slope of a cell's ray
    expected = torch.where(below > 0, 1.2 / below.clamp_min(1e-6), FAR_M).clamp(max=FAR_M)
    torch.testing.assert_close(told["floor"][0, :, 3].exp(), expected)
    torch.testing.assert_close(told["down"][1, :, 3], below)
    # The second camera looks along +x: what it sees lies there.
    assert (places[1, 0] > 0.99 * FAR_M).all() and places[0, 1].min() > 0.99 * FAR_M


@pytest.mark.parametrize("cells", [(8, 8), (5, 7)])
def test_a_drawer_takes_any_grid(cells: tuple[int, int]) -> None:
    torch.manual_seed(0)
    drawer = DepthDrawer(DrawerConfig(width=8, blocks=1))
    off = drawer(torch.randn(2, len(FEATURES) + len(LENGTHS_M), *cells))
    assert off.shape == (2, *cells) and off.dtype == torch.float32
    with pytest.raises(InvalidValueError, match="multiples of 8"):
        DrawerConfig(width=12)
