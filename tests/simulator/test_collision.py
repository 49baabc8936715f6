import numpy as np
import pytest
import torch

from mirage_env.errors import UnknownNameError
from mirage_env.simulator import free, make_scene, move

FLOOR = [[-3.0, -3.0, 3.0, 3.0]]


@pytest.fixture(scope="module")
def block(only):
    """One box, a metre wide and half a metre deep, turned by 30 degrees."""
    return only(
        make_scene(1, "room"), torch.tensor([[0.5, -0.5, 0.2]]), torch.tensor([[0.5, 0.5, 0.25]]), FLOOR, np.pi / 6
    )


def test_free_is_the_distance_to_the_box(block):
    at = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 5 - 2.5
    edge = torch.linspace(-1, 1, 201)
    grid = torch.stack(torch.meshgrid(edge * 0.5, edge * 0.25, indexing="ij"), -1).reshape(-1, 2)
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    filled = torch.stack([0.5 + cos * grid[:, 0] + sin * grid[:, 1], 0.2 - sin * grid[:, 0] + cos * grid[:, 1]], 1)
    distance = torch.cdist(at, filled).amin(1)
    sure = (distance - 0.25).abs() > 0.01
    assert torch.equal(free(block, at, 0.25)[sure], (distance > 0.25)[sure])


@pytest.mark.parametrize(
    ("base", "top", "expected"), [(0.0, 0.15, True), (1.9, 2.4, True), (0.0, 0.5, False), (1.5, 2.4, False)]
)
def test_only_what_stands_at_body_height_is_in_the_way(base, top, expected, only):
    centre = torch.tensor([[0.0, -(base + top) / 2, 0.0]])
    half = torch.tensor([[0.5, (top - base) / 2, 0.5]])
    scene = only(make_scene(1, "room"), centre, half, FLOOR)
    assert bool(free(scene, torch.zeros(1, 2), 0.25)[0]) is expected


def test_outside_the_floor_nothing_is_free(block):
    assert not free(block, torch.tensor([[3.1, 0.0], [0.0, -3.1]]), 0.1).any()


def test_a_stopped_disc_halts_before_the_wall_and_a_sliding_one_goes_along_it(only):
    wall = only(make_scene(1, "room"), torch.tensor([[0.0, -1.0, 1.0]]), torch.tensor([[3.0, 1.0, 0.1]]), FLOOR)
    start, end = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    stopped, slid = move(wall, start, end, 0.25, "stop")[0], move(wall, start, end, 0.25, "slide")[0]
    assert stopped[0] == pytest.approx(float(stopped[1]), abs=1e-5) and 0.58 < float(stopped[1]) <= 0.65
    assert float(slid[0]) == pytest.approx(1.0, abs=1e-5) and 0.58 < float(slid[1]) <= 0.65
    assert torch.equal(move(wall, start, end, 0.25, "none"), end)


def test_no_move_jumps_through_a_thin_wall(only):
    wall = only(make_scene(1, "room"), torch.tensor([[0.0, -1.0, 1.0]]), torch.tensor([[3.0, 1.0, 0.02]]), FLOOR)
    for mode in ("slide", "stop"):
        assert float(move(wall, torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.5]]), 0.25, mode)[0, 1]) < 0.75


def test_many_moves_are_each_the_same_as_alone(block):
    generator = torch.Generator().manual_seed(1)
    start, end = (torch.rand(16, 2, generator=generator) * 4 - 2 for _ in range(2))
    together = move(block, start, end, 0.2)
    for i in range(16):
        assert torch.equal(move(block, start[i : i + 1], end[i : i + 1], 0.2)[0], together[i])


def test_what_starts_inside_may_leave(block):
    reached = move(block, torch.tensor([[0.5, 0.2]]), torch.tensor([[0.5, 2.0]]), 0.25, "stop")
    assert torch.allclose(reached, torch.tensor([[0.5, 2.0]]), atol=1e-5)


def test_unknown_modes_are_refused(block):
    with pytest.raises(UnknownNameError, match=r'unknown collision mode "slid".*did you mean "slide"'):
        move(block, torch.zeros(1, 2), torch.zeros(1, 2), 0.25, "slid")
