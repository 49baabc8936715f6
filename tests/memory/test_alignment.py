import math

import pytest
import torch

from mirage_env.errors import InvalidValueError
from mirage_env.memory.alignment import align_log_scale, anchored
from mirage_env.types import SKY_M, Readout


def world(frames: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth depth map at 32 x 32, and the same at the centres of an 8 x 8 grid."""
    v = torch.arange(32) + 0.5
    depth = (20.0 / (4 + 0.1 * v))[None, :, None].expand(frames, 32, 32).contiguous()
    return depth, depth.view(frames, 8, 4, 8, 4)[:, :, 1:3, :, 1:3].mean((2, 4))


def everywhere(depth: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(depth, dtype=torch.bool)


@pytest.mark.parametrize("scale", [0.85, 1.0, 1.1])
def test_a_known_scale_is_recovered(scale: float) -> None:
    depth, remembered = world()
    assert align_log_scale(depth / scale, everywhere(depth), remembered) == pytest.approx(math.log(scale), abs=1e-5)


def test_at_pixel_resolution_too() -> None:
    depth, _ = world()
    assert align_log_scale(depth / 1.1, everywhere(depth), depth) == pytest.approx(math.log(1.1), abs=1e-5)


def test_a_third_of_the_cells_may_lie() -> None:
    depth, remembered = world()
    remembered[:, :, :2] = 0.3
    remembered[:, :, 2] *= 9.0
    assert align_log_scale(depth / 1.1, everywhere(depth), remembered) == pytest.approx(math.log(1.1), abs=0.02)


@pytest.mark.parametrize(("scale", "expected"), [(3.0, 0.2), (0.3, -0.2)])
def test_the_answer_is_clamped(scale: float, expected: float) -> None:
    depth, remembered = world()
    assert align_log_scale(depth / scale, everywhere(depth), remembered) == pytest.approx(expected)
    assert align_log_scale(depth / scale, everywhere(depth), remembered, limit=0.1) == pytest.approx(expected / 2)


@pytest.mark.parametrize(("cells", "changed"), [(12, False), (13, True)])
def test_too_little_overlap_changes_nothing(cells: int, changed: bool) -> None:
    """Ten percent of 2 x 8 x 8 cells are 12.8."""
    depth, remembered = world()
    remembered.view(-1)[cells:] = 0.0
    assert (align_log_scale(depth / 1.1, everywhere(depth), remembered) != 0.0) == changed


def test_masked_and_edge_cells_have_no_say() -> None:
    depth, remembered = world()
    predicted, valid = depth / 1.1, everywhere(depth)
    predicted[:, :, 12:] = 0.7  # wrong for five cells of eight: a moving thing
    valid[:, :, 12:] = False
    predicted[:, :, 10] = 0.7  # and a jump inside the third column
    assert align_log_scale(predicted, valid, remembered) == pytest.approx(math.log(1.1), abs=1e-5)


def test_nothing_remembered() -> None:
    depth, remembered = world()
    assert align_log_scale(depth, everywhere(depth), torch.zeros_like(remembered)) == 0.0
    assert align_log_scale(depth[:0], everywhere(depth[:0]), remembered[:0]) == 0.0


def test_frames_must_match() -> None:
    depth, remembered = world()
    with pytest.raises(InvalidValueError, match="2 depth maps cannot be aligned to 1 read-outs"):
        align_log_scale(depth, everywhere(depth), remembered[:1])


def shown(remembered: torch.Tensor, x: float = 0.0, y: float = 0.0) -> Readout:
    """A read-out of these depths, every point at one place in its cell; nothing where depth is 0."""
    frames, height, width = remembered.shape
    offset = torch.tensor([x, y]).view(1, 2, 1, 1).expand(frames, 2, height, width)
    visible = remembered > 0
    return Readout(torch.zeros(frames, 1, height, width), visible, remembered, offset, torch.where(visible, 0, -1))


def within(depth: torch.Tensor, limit: float = 0.6) -> torch.Tensor:
    return torch.full_like(depth, limit)


def test_depth_is_anchored_where_the_points_lie() -> None:
    """A slope, and points off the middle of their cells: a factor is undone everywhere, and nothing else changes."""
    depth, _ = world()
    at_points = depth[:, 3::4, 2::4]
    points = shown(at_points, x=0.1, y=0.3)
    assert torch.equal(anchored(depth, everywhere(depth), points, within(depth)), depth)
    torch.testing.assert_close(anchored(depth / 1.5, everywhere(depth), points, within(depth)), depth)


def test_only_cells_of_the_same_surface_are_anchors() -> None:
    depth = torch.full((1, 32, 32), 4.0)
    remembered, valid = torch.full((1, 8, 8), 5.0), everywhere(depth)
    remembered[0, :2] = 0.0  # nothing: the second row takes what is around it
    remembered[0, 3, :] = 4.0 * math.exp(0.7)  # another surface
    remembered[0, 5, :] = 2 * SKY_M
    valid[0, 28:] = False  # something that moves
    moved = anchored(depth, valid, shown(remembered), within(depth))[0].view(8, 4, 32)
    middle = moved[:, 1:3].log().mean((1, 2))  # two pixels, each an eighth of a cell from the centre
    anchors = torch.tensor([0.0, 1, 1, 0, 1, 0, 1, 0])
    blurred = 0.875 * anchors + 0.0625 * (anchors.roll(1) + anchors.roll(-1))
    torch.testing.assert_close(middle - math.log(4), math.log(1.25) * blurred)


def test_each_pixel_has_a_limit_of_its_own() -> None:
    """Eyes that are unsure on the right let the memory say what is there."""
    depth, remembered = torch.full((1, 32, 32), 4.0), torch.full((1, 8, 8), 16.0)
    limit = within(depth)
    limit[:, :, 16:] = 1.5  # ln 4 = 1.39
    moved = anchored(depth, everywhere(depth), shown(remembered), limit)
    assert moved[:, :, :12].eq(4.0).all() and moved[:, :, 20:] == pytest.approx(torch.full((1, 32, 12), 16.0))


@pytest.mark.parametrize("limit", [0.2, 0.25])
def test_the_limit(limit: float) -> None:
    depth, remembered = torch.full((1, 32, 32), 4.0), torch.full((1, 8, 8), 5.0)  # ln 1.25 = 0.223
    moved = anchored(depth, everywhere(depth), shown(remembered), within(depth, limit))
    torch.testing.assert_close(moved, torch.full_like(moved, 5.0 if limit > 0.223 else 4.0))
