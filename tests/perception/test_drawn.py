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
    SILL_M,
    WALL_M,
    DepthDrawer,
    DrawerConfig,
    draw_features,
    drawn,
    made_up,
    middles,
    noise,
    planes,
    to_draw,
)
from mirage_env.perception.tiny import Perceived
from mirage_env.types import SKY_M, Cameras, Readout

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


def remembered(shown_m: torch.Tensor, offset: torch.Tensor | None = None) -> Readout:
    """A memory's answer: depth in metres (0 for nothing), and where in their cells the points lie."""
    frames, height, width = shown_m.shape
    nothing = torch.zeros(frames, 2, height, width)
    index = torch.where(shown_m > 0, 0, -1)
    return Readout(nothing, shown_m > 0, shown_m, nothing if offset is None else offset, index)


def draw(
    seen: Perceived,
    shown_m: torch.Tensor,
    off: torch.Tensor,
    given_m: float = math.nan,
    cells: torch.Tensor | None = None,
    max_depth_m: float = 50.0,
) -> Perceived:
    """What a level camera at the origin sees once drawn; the given picture was taken from there, too, and shows
    surfaces at `given_m`. By default all cells that show nothing are drawn."""
    cameras, cells = turned(torch.zeros(1)), shown_m == 0 if cells is None else cells
    features, _ = draw_features(seen, cells, shown_m, cameras, 1.2)
    grid = cameras.resized((CELLS, CELLS))
    given = torch.full((1, CELLS, CELLS), given_m), grid
    return drawn(seen, features, off, remembered(shown_m), grid, given, EYES, max_depth_m)


def of_cells(depth: torch.Tensor) -> torch.Tensor:
    """The depth of one frame in the middle of its cells, where each is a piece of a plane."""
    return depth.reciprocal().unflatten(0, (CELLS, -1)).unflatten(2, (CELLS, -1)).mean((1, 3)).reciprocal()


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
    shown = torch.where(cells, 0.0, 2.0)
    farther = torch.full((1, CELLS, CELLS), math.log(1.5))
    found = draw(before, shown, farther)
    above = slice(None, SIDE // 2)
    assert found.depth_m[..., :32].eq(2.0).all() and found.depth_m[:, above, 32:].allclose(torch.tensor(3.0))
    assert found.sky[..., :32].all() and not found.sky[..., 32:].any()
    assert found.dynamic[..., :32].all() and not found.dynamic[..., 32:].any()
    assert draw(wall(1), shown, farther + 5.0, max_depth_m=10.0).depth_m[:, above, 32:].eq(10.0).all()


@pytest.mark.parametrize("height_m", [-0.5, 0.0, 0.25])
def test_what_is_drawn_nearly_at_the_floor_is_floor(height_m: float) -> None:
    """Beneath it, at it or a little above it."""
    cells, cameras = torch.ones(1, CELLS, CELLS, dtype=torch.bool), turned(torch.zeros(1))
    nothing = torch.zeros(1, CELLS, CELLS)
    features, _ = draw_features(wall(1), cells, nothing, cameras, 1.2)
    floor = features[:, FEATURES.index("floor")]
    off = floor + math.log((1.2 - height_m) / 1.2) - features[:, FEATURES.index("perceived")]
    off[:, : CELLS // 2] = 0.0
    points = backproject(draw(wall(1), nothing, off).depth_m, cameras)[0, SIDE // 2 + SIDE // CELLS :]
    torch.testing.assert_close(points[..., 1], torch.full_like(points[..., 1], 1.2), atol=1e-4, rtol=0)


def test_drawn_things_stand_upright() -> None:
    """What leans a little is upright, what is far before or behind the rest of its column is left."""
    cells, cameras = torch.ones(1, CELLS, CELLS, dtype=torch.bool), turned(torch.zeros(1))
    nothing = torch.zeros(1, CELLS, CELLS)
    features, _ = draw_features(wall(1), cells, nothing, cameras, 1.2)
    told = dict(zip(FEATURES, features.unbind(1), strict=True))
    column = torch.tensor(
        [1.5, 4.0, 4.0, 4.2, 4.0, 2.2, 0.5, 1.3]
    ).log()  # from the 5th on the floor is 9.6 to 1.4 away
    off = column[:, None] - told["perceived"]
    found = of_cells(draw(wall(1), nothing, off).depth_m[0])
    standing = torch.tensor([1.5, 4.0, 4.0, 4.0, 4.0, 0.0, 0.5, 0.0])
    standing[[5, 7]] = told["floor"][0, [5, 7], 0].exp()  # where the floor comes before the wall
    torch.testing.assert_close(found, standing[:, None].expand(-1, CELLS))


@pytest.mark.parametrize("beside_m", [2.0, 20.0, None])
def test_what_is_drawn_far_away_is_seen_through_a_window_in_the_wall_beside_it(beside_m: float | None) -> None:
    cells, cameras = torch.ones(1, CELLS, CELLS, dtype=torch.bool), turned(torch.zeros(1))
    cells[:, :, :4] = beside_m is None
    shown = torch.where(cells, 0.0, beside_m or 0.0)
    features, _ = draw_features(wall(1), cells, shown, cameras, 1.2)
    told = dict(zip(FEATURES, features[0].unbind(), strict=True))
    around = (1 + told["ray_x"][0] ** 2).sqrt()  # how much farther away than deep
    off = math.log(12.0) - features[:, FEATURES.index("perceived")]
    depth = draw(wall(1), shown, off).depth_m[0]
    middle = of_cells(depth)[:, 4]
    assert depth[: SIDE // 4, 32:].allclose(torch.tensor(FAR_M))
    at = (beside_m * around[2:4].min() if beside_m == 2.0 else WALL_M) / around[4]  # what is far is no wall
    sill = 1.2 - at * told["down"][:, 4] < SILL_M
    assert sill.tolist() == [False] * 5 + [True] * 3 or sill.tolist() == [False] * 4 + [True] * 4
    floor = torch.where(told["down"][:, 4] > 0, told["floor"][:, 4].exp(), FAR_M)
    torch.testing.assert_close(middle, torch.where(sill, torch.minimum(at, floor), floor))


@pytest.mark.parametrize("place", ["floor", "wall"])
def test_points_anywhere_in_their_cells_tell_how_deep_the_middle_is(place: str) -> None:
    """Of the floor 1.2 m below, and of a wall that is seen at a slant."""
    grid = turned(torch.zeros(1)).resized((CELLS, CELLS))
    features, _ = draw_features(wall(1), torch.zeros(1, CELLS, CELLS) > 0, torch.ones(1, CELLS, CELLS), grid, 1.2)
    told = dict(zip(FEATURES, features.unbind(1), strict=True))
    offset = 0.7 * (torch.rand(1, 2, CELLS, CELLS, generator=torch.Generator().manual_seed(0)) - 0.5)
    offset[:, 1] *= place == "floor"  # points of an upright wall are as deep wherever they lie in a column

    def depth(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 1.2 / y if place == "floor" else 1 / (0.4 + 0.15 * x)

    ray_x, ray_y = told["ray_x"], told["ray_y"]
    there = depth(ray_x + offset[:, 0] * 2 / CELLS, ray_y + offset[:, 1] * 2 / CELLS)
    shown = torch.where((there > 0) & (there < FAR_M), there, 0.0)
    at = slice(CELLS // 2 + 1, None) if place == "floor" else slice(None, CELLS // 2)
    found = middles(remembered(shown, offset), told, grid, EYES[:, None, None])
    torch.testing.assert_close(found.exp()[:, at], depth(ray_x, ray_y)[:, at])


def test_what_the_memory_does_not_show_between_what_it_does_is_as_deep_as_around_it() -> None:
    shown = torch.full((1, CELLS, CELLS), 3.0)
    shown[0, 1, 1], shown[0, 1, 4:] = 0.0, 0.0
    shown[0, :, 6:] = 2 * SKY_M  # the sky, which is behind all else
    shown[0, 2, 6] = 0.0
    grid = turned(torch.zeros(1)).resized((CELLS, CELLS))
    features, _ = draw_features(wall(1), shown == 0, shown, grid, 1.2)
    told = dict(zip(FEATURES, features.unbind(1), strict=True))
    found = middles(remembered(shown), told, grid, EYES[:, None, None])[0, : CELLS // 2].exp()
    assert found[:, :6].allclose(torch.tensor(3.0)) and found[:, 6:].isinf().all()


def test_what_the_given_picture_does_not_show_is_made_up() -> None:
    """Looking the way of the picture: all that is not hidden in it is given. Looking aside: nothing is."""
    ahead, aside = (turned(torch.tensor([yaw])).resized((CELLS, CELLS)) for yaw in (0.0, math.pi))
    given = torch.full((1, CELLS, CELLS), 4.0)
    given[0, :, 0] = math.nan  # nobody knows what hides there
    for depth_m, hidden in ((3.0, False), (4.5, False), (6.0, True)):
        found = made_up(torch.full((1, CELLS, CELLS), math.log(depth_m)), ahead, given, ahead)
        assert found[..., 1:].eq(hidden).all() and not found[..., 0].any()
        assert made_up(torch.full((1, CELLS, CELLS), math.log(depth_m)), aside, given, ahead).all()


def test_what_was_made_up_is_as_deep_as_remembered_whatever_the_eyes_think_of_its_picture() -> None:
    """A wall that the memory shows 6 m away, where the picture had one at 0.4 m; the eyes see rubble."""
    rubble = 1.0 + torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    seen, shown = replace(wall(1), depth_m=rubble), torch.full((1, CELLS, CELLS), 6.0)
    shown[0, 2, 2] = 0.0
    never = torch.zeros(1, CELLS, CELLS)
    found = draw(seen, shown, never, given_m=0.4, cells=never > 0).depth_m
    assert found[:, : SIDE // 2].allclose(torch.tensor(6.0))
    below = backproject(found, turned(torch.zeros(1)))[0, SIDE // 2 + SIDE // CELLS :, :, 1]
    assert below.allclose(torch.tensor(1.2))  # before the wall there is the floor
    assert torch.equal(draw(seen, shown, never, given_m=6.0, cells=never > 0).depth_m, rubble)


def test_what_moves_before_what_was_made_up_is_seen_and_still_moves() -> None:
    seen, shown = wall(1), torch.full((1, CELLS, CELLS), 6.0)
    mover = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mover[:, 4:12, 4:12] = True
    never = torch.zeros(1, CELLS, CELLS)
    found = draw(replace(seen, dynamic=mover), shown, never, given_m=0.4, cells=never > 0)
    assert torch.equal(found.dynamic, mover) and found.depth_m[mover].eq(2.0).all()
    assert found.depth_m[:, : SIDE // 2][~mover[:, : SIDE // 2]].allclose(torch.tensor(6.0))


def test_the_foot_of_a_wall_that_the_picture_shows_is_no_floor_behind_it() -> None:
    """The cell's middle looks at the floor 3.2 m away; the wall's foot in it, 2.7 m away, was given."""
    shown, never = torch.full((1, CELLS, CELLS), 2.7), torch.zeros(1, CELLS, CELLS)
    seen = wall(1, 2.7)
    found = draw(seen, shown, never, given_m=2.6, cells=never > 0).depth_m
    assert torch.equal(found, seen.depth_m)


def test_another_thing_in_the_same_column_stays_where_it_is_remembered() -> None:
    """A box before a wall: only what is nearly upright was upright."""
    shown, never = torch.full((1, CELLS, CELLS), 2.9), torch.zeros(1, CELLS, CELLS)
    shown[:, 3:] = 1.6
    found = of_cells(draw(wall(1), shown, never, given_m=0.4, cells=never > 0).depth_m[0])
    assert found[:3].allclose(torch.tensor(2.9)) and found[3:5].allclose(torch.tensor(1.6))


def test_depth_is_finite_and_positive_wherever_points_and_cameras_are() -> None:
    generator = torch.Generator().manual_seed(0)
    shown = 5 * torch.rand(1, CELLS, CELLS, generator=generator) + 0.1
    offset = torch.rand(1, 2, CELLS, CELLS, generator=generator) - 0.5
    cameras, never = turned(torch.zeros(1)), torch.zeros(1, CELLS, CELLS)
    grid = cameras.resized((CELLS, CELLS))
    for height_m in (1.2, 0.05, 0.0, -0.1):
        for cells in (never > 0, never == 0):
            features, _ = draw_features(wall(1), cells, shown, cameras, height_m)
            given, eyes = (torch.full((1, CELLS, CELLS), 0.01), grid), torch.tensor([height_m])
            found = drawn(wall(1), features, never, remembered(shown, offset), grid, given, eyes, 50.0).depth_m
            assert found.isfinite().all() and (found > 0).all()
    told = dict(zip(FEATURES, features.unbind(1), strict=True))
    ratio = (middles(remembered(shown, offset), told, grid, EYES[:, None, None]).exp() / shown)[:, : CELLS // 2]
    assert (ratio > 0.5).all() and (ratio < 2.8).all()  # half a cell along the steepest slope, and that twice


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
