import math
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib import import_module
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import project
from mirage_env.memory.reference import splat_by_loops
from mirage_env.memory.splat import Cloud, frontmost, landed, splat, splat_many
from mirage_env.types import Cameras, Readout

SPLAT = import_module("mirage_env.memory.splat")  # the package's own name for it is the function
FIELDS = ("tokens", "visible", "depth_m", "offset", "index")


@pytest.fixture(scope="module", params=["torch", "numba"], autouse=True)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test of this file holds for every kernel."""
    patch = pytest.MonkeyPatch()
    numba = SPLAT._load_numba()
    assert numba is not None
    patch.setattr(SPLAT, "_numba", lambda pairs=0: numba if request.param == "numba" else None)
    yield request.param
    patch.undo()


def straight_ahead(size: tuple[int, int] = (4, 4), focal: float = 4.0) -> Cameras:
    """At the origin, along z; a power of two for a focal length keeps positions exact."""
    k = torch.tensor([[focal, 0.0, size[1] / 2], [0.0, focal, size[0] / 2], [0.0, 0.0, 1.0]])
    return Cameras(torch.eye(4)[None], k[None], size)


def looking_around(views: int, size: tuple[int, int]) -> Cameras:
    angles = torch.randn(3, views) * torch.tensor([[3.0], [0.5], [0.2]])
    pose = rigid(rotation_from_yaw_pitch_roll(*angles), torch.randn(views, 3))
    return Cameras(pose, intrinsics_from_fov(1.2, size).repeat(views, 1, 1), size)


def assert_same(one: Readout, other: Readout) -> None:
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=0, atol=0, msg=lambda m, n=name: n + m
        )


def show(points: list[list[float]], cameras: Cameras, ids: list[int] | None = None) -> Readout:
    """Points whose only token is their own number plus one."""
    count = len(points)
    tokens = torch.arange(1.0, count + 1)[:, None]
    return splat(torch.tensor(points).reshape(count, 3), tokens, torch.tensor(ids or list(range(count))), cameras)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_random_clouds_equal_the_loops(seed: int, count: int, views: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    points, tokens, ids = torch.randn(count, 3) * 3, torch.randn(count, 5), torch.randperm(2 * count)[:count]
    cameras = looking_around(views, (height, width))
    assert_same(splat(points, tokens, ids, cameras), splat_by_loops(points, tokens, ids, cameras))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_lattice_clouds_equal_the_loops(seed: int, count: int) -> None:
    """A coarse lattice is full of ties, of cell borders, and of z = 0."""
    torch.manual_seed(seed)
    points, tokens, ids = torch.randint(-3, 4, (count, 3)) / 2.0, torch.randn(count, 2), torch.randperm(count)
    cameras = straight_ahead()
    assert_same(splat(points, tokens, ids, cameras), splat_by_loops(points, tokens, ids, cameras))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([0.02, 0.5]), st.booleans())
def test_fitting_footprints_equal_the_loops(seed: int, count: int, share: float, lattice: bool) -> None:
    """A lattice of places and of footprints is full of ties; among the footprints are some that are none."""
    torch.manual_seed(seed)
    points, footprint = torch.randn(count, 3) * 3, torch.rand(count)
    if lattice:
        points, footprint = points.round() / 2, (footprint * 3).round() / 3
    footprint[: count // 4] = torch.tensor([math.nan, -1.0, 0.0, math.inf, 1e-30]).repeat(3)[: count // 4]
    tokens, ids, cameras = torch.randn(count, 2), torch.randperm(count), looking_around(2, (3, 4))
    one = splat(points, tokens, ids, cameras, footprint, share)
    assert_same(one, splat_by_loops(points, tokens, ids, cameras, footprint, share))


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_many_points_equal_the_loops(share: float) -> None:
    """More than two of the compiled kernel's blocks, on a few surfaces: cells hold many rivals of one."""
    torch.manual_seed(1)
    points, footprint = torch.randn(5000, 3), torch.rand(5000) + 0.01
    points[:, 2] = (points[:, 2] * 2).round() + 0.01 * torch.rand(5000)
    tokens, ids, cameras = torch.randn(5000, 2), torch.randperm(5000), looking_around(2, (5, 6))
    assert_same(
        splat(points, tokens, ids, cameras, footprint, share),
        splat_by_loops(points, tokens, ids, cameras, footprint, share),
    )


def test_many_views_and_blocks_equal_the_loops() -> None:
    """Enough pairs of views and points that the projection is done in several blocks."""
    cameras = looking_around(97, (2, 3))
    points, tokens, ids = torch.randn(700, 3) * 3, torch.randn(700, 3), torch.arange(700)
    few = cameras[:2]  # the loops are slow
    assert_same(splat(points, tokens, ids, few), splat_by_loops(points, tokens, ids, few))
    together = splat(points, tokens, ids, cameras)
    for view in range(97):
        alone = splat(points, tokens, ids, cameras[view : view + 1])
        for name in FIELDS:
            assert torch.equal(getattr(together, name)[view], getattr(alone, name)[0])


def test_winners_agree_with_double_precision() -> None:
    """Independent of our arithmetic: where float64 leaves no doubt about cell and order, we say the same."""
    torch.manual_seed(3)
    points, cameras = torch.randn(3000, 3) * 4, looking_around(6, (12, 10))
    exact = Cameras(cameras.world_from_camera.double(), cameras.intrinsics_px.double(), cameras.size)
    position, depth = project(points.double(), exact)
    index, _, _ = frontmost(points, torch.arange(3000), cameras)
    compared = 0
    for view in range(6):
        for v in range(12):
            for u in range(10):
                low = position[view] - torch.tensor([u, v])
                margin = torch.minimum(low, 1 - low).amin(1)
                ahead = depth[view] > 0
                if bool((ahead & (margin.abs() < 1e-4)).any()):
                    continue
                inside = (ahead & (margin > 0)).nonzero()[:, 0]
                winner = int(inside[depth[view][inside].argmin()]) if len(inside) else -1
                assert int(index[view, v, u]) == winner
                compared += 1
    assert compared > 500


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_the_order_of_points_does_not_matter(seed: int) -> None:
    torch.manual_seed(seed)
    points = torch.randint(-4, 5, (80, 3)) / 2.0
    tokens, ids, cameras = torch.randn(80, 3), torch.randperm(500)[:80], looking_around(3, (5, 5))
    order = torch.randperm(80)
    one, other = splat(points, tokens, ids, cameras), splat(points[order], tokens[order], ids[order], cameras)
    for name in ("tokens", "visible", "depth_m", "offset"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(one.index >= 0, other.index >= 0)
    hit = one.visible
    assert torch.equal(ids[one.index[hit]], ids[order][other.index[hit]])


@pytest.mark.parametrize("far_first", [True, False])
def test_the_frontmost_point_wins(far_first: bool) -> None:
    near, far = [0.1, 0.1, 1.0], [0.2, 0.2, 2.0]
    readout = show([far, near] if far_first else [near, far], straight_ahead())
    assert float(readout.depth_m[0, 2, 2]) == 1.0
    assert int(readout.index[0, 2, 2]) == int(far_first)


@pytest.mark.parametrize(
    ("depths", "footprints", "winner"),
    [
        ((1.0, 1.01), (0.25, 0.25), 0),  # a cell of a focal length of 4 is a quarter of its depth wide
        ((1.0, 1.01), (0.5, 0.25), 1),
        ((1.0, 1.01), (0.5, 0.125), 0),  # twice too large and half too large are as bad: the older one
        ((1.0, 1.01), (0.5, 0.13), 1),
        ((1.0, 1.03), (9.0, 0.25), 0),  # 3 % behind is another surface
        ((1.03, 1.0), (0.25, 9.0), 1),
        ((1.01, 1.0, 1.02), (9.0, 9.0, 0.25), 2),  # what counts is the distance to the frontmost
    ],
)
def test_on_one_surface_the_best_fitting_footprint_wins(
    depths: tuple[float, ...], footprints: tuple[float, ...], winner: int
) -> None:
    points, count = torch.tensor([[0.1 * z, 0.1 * z, z] for z in depths]), len(depths)
    tokens, ids = torch.arange(1.0, count + 1)[:, None], torch.arange(count)
    shown = splat(points, tokens, ids, straight_ahead(), torch.tensor(footprints), 0.02)
    assert int(shown.index[0, 2, 2]) == winner
    assert float(shown.depth_m[0, 2, 2]) == points[winner, 2] and float(shown.tokens[0, 0, 2, 2]) == winner + 1


def test_one_surface_needs_footprints() -> None:
    with pytest.raises(InvalidValueError, match="told apart by their footprints; pass footprint_m"):
        splat(torch.ones(2, 3), torch.ones(2, 1), torch.arange(2), straight_ahead(), same_surface=0.02)


@pytest.mark.parametrize(("ids", "winner"), [([0, 1], 0), ([7, 3], 1), ([3, 7], 0)])
def test_ties_go_to_the_smallest_id(ids: list[int], winner: int) -> None:
    readout = show([[0.1, 0.1, 1.0], [0.15, 0.1, 1.0]], straight_ahead(), ids)
    assert int(readout.index[0, 2, 2]) == winner
    assert float(readout.tokens[0, 0, 2, 2]) == winner + 1


def test_depths_one_bit_apart_are_no_tie() -> None:
    nearer = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    readout = show([[0.1, 0.1, 1.0], [0.1, 0.1, nearer]], straight_ahead())
    assert int(readout.index[0, 2, 2]) == 1


def test_borders_belong_to_the_cell_on_their_right_and_below() -> None:
    """Eq. 9 floors: x = 0 is in cell 0, x = 1 in cell 1, x = w in none."""
    positions = torch.arange(5.0)
    points = [[(float(x) - 2) / 4, (2.5 - 2) / 4, 1.0] for x in positions]
    readout = show(points, straight_ahead())
    assert readout.tokens[0, 0, 2].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert readout.visible.sum() == 4
    assert readout.offset[0, 0, 2].tolist() == [-0.5] * 4
    assert readout.offset[0, 1, 2].tolist() == [0.0] * 4


def test_offsets_say_where_in_the_cell_the_point_fell() -> None:
    readout = show([[(1.75 - 2) / 4, (3.25 - 2) / 4, 1.0]], straight_ahead())
    assert readout.offset[0, :, 3, 1].tolist() == [0.25, -0.25]


@pytest.mark.parametrize("z", [0.0, -0.0, -1e-30, -1.0, -math.inf, math.nan])
def test_points_at_or_behind_the_camera_are_not_seen(z: float) -> None:
    """Through a pinhole (0.1, 0.1, -1) would land in the middle of the picture, mirrored."""
    readout = show([[0.1, 0.1, z], [0.0, 0.0, z], [-0.1, 0.1, z]], straight_ahead())
    assert not bool(readout.visible.any())


def test_points_just_ahead_are_seen() -> None:
    readout = show([[0.0, 0.0, 1e-30]], straight_ahead())
    assert int(readout.index[0, 2, 2]) == 0


@pytest.mark.parametrize("huge", [1e20, 3e38, -3e38])
def test_huge_coordinates_overflow_into_no_cell(huge: float) -> None:
    cameras = looking_around(4, (4, 4))
    points, tokens, ids = torch.tensor([[huge, huge, huge], [huge, 0.0, huge]]), torch.ones(2, 1), torch.arange(2)
    readout = splat(points, tokens, ids, cameras)
    assert_same(readout, splat_by_loops(points, tokens, ids, cameras))
    assert bool(torch.isfinite(readout.depth_m).all() and torch.isfinite(readout.offset).all())


def test_a_distant_origin_costs_no_precision() -> None:
    """A view and its points keep their readout when both stand a kilometre away."""
    cameras = straight_ahead((8, 8), 8.0)
    v, u = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    points = torch.stack([(u - 4) / 8, (v - 4) / 8, torch.ones(8, 8)], -1).reshape(-1, 3)
    away = torch.tensor([1024.0, 0.0, -2048.0])
    moved = Cameras(rigid(torch.eye(3), away)[None], cameras.intrinsics_px, cameras.size)
    tokens, ids = torch.randn(64, 4), torch.arange(64)
    assert torch.equal(splat(points + away, tokens, ids, moved).index, splat(points, tokens, ids, cameras).index)


def test_empty_cells_are_zero() -> None:
    readout = show([[0.1, 0.1, 1.0]], straight_ahead())
    empty = ~readout.visible
    assert int(empty.sum()) == 15
    assert not readout.tokens[:, 0][empty].any()
    assert not readout.depth_m[empty].any()
    assert not readout.offset[:, 0][empty].any()
    assert bool((readout.index[empty] == -1).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_points(dtype: torch.dtype) -> None:
    cameras = looking_around(3, (4, 5))
    readout = splat(torch.zeros(0, 3), torch.zeros(0, 7, dtype=dtype), torch.zeros(0, dtype=torch.int64), cameras)
    assert readout.tokens.shape == (3, 7, 4, 5)
    assert readout.tokens.dtype == torch.float32
    assert not bool(readout.visible.any()) and not bool(readout.tokens.any())
    assert bool((readout.index == -1).all())


def test_no_views() -> None:
    readout = splat(torch.ones(2, 3), torch.ones(2, 7), torch.arange(2), looking_around(3, (4, 5))[:0])
    assert readout.tokens.shape == (0, 7, 4, 5)


def test_half_precision_tokens_come_back_exactly() -> None:
    token = torch.tensor([[0.1, -65504.0]], dtype=torch.float16)
    readout = splat(torch.tensor([[0.1, 0.1, 1.0]]), token, torch.arange(1), straight_ahead())
    assert torch.equal(readout.tokens[0, :, 2, 2], token[0].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tokens_of_any_kind(dtype: torch.dtype) -> None:
    tokens = torch.randint(-100, 100, (40, 3)).to(dtype)
    points, ids, cameras = torch.randn(40, 3), torch.arange(40), looking_around(2, (5, 7))
    assert_same(splat(points, tokens, ids, cameras), splat(points, tokens.float(), ids, cameras))


def test_tokens_that_are_learned_get_their_gradient() -> None:
    tokens = torch.randn(60, 3, requires_grad=True)
    readout = splat(torch.randn(60, 3), tokens, torch.arange(60), looking_around(2, (4, 4)))
    readout.tokens.sum().backward()
    assert tokens.grad is not None
    shown = torch.bincount(readout.index[readout.visible], minlength=60)
    assert torch.equal(tokens.grad, shown[:, None].expand(60, 3).float())


def test_tensors_that_are_not_contiguous() -> None:
    points, tokens, ids = torch.randn(3, 50).T, torch.randn(4, 50).T, torch.arange(100)[::2]
    cameras = looking_around(4, (5, 6))
    assert_same(splat(points, tokens, ids, cameras[::2]), splat_by_loops(points, tokens, ids, cameras[::2]))


class Helpful:
    """A pool whose threads have always done so many runs of the work before its owner comes to it."""

    def __init__(self, runs: int) -> None:
        self.runs = runs

    def submit(self, task: Callable[[Iterator[slice]], object], left: Iterator[slice]) -> Future[object]:
        future: Future[object] = Future()
        future.set_result(task(islice(left, self.runs)))
        return future


def test_who_does_how_much_of_the_work_does_not_matter(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "torch":
        pytest.skip("torch shares out its work by itself")
    torch.manual_seed(5)
    points, tokens, ids, footprint = torch.randn(9000, 3), torch.randn(9000, 5), torch.arange(9000), torch.rand(9000)
    cameras, group = looking_around(7, (9, 8)), torch.arange(9000) % 3

    def read() -> tuple[Readout, Readout, torch.Tensor]:
        one, other = (splat(points, tokens, ids, cameras, footprint, share) for share in (0.0, 0.1))
        return one, other, landed(points, group, 3, cameras)

    with monkeypatch.context() as patch:
        patch.setattr(SPLAT, "_numba", lambda pairs=0: None)
        nearest, fitting, marks = read()
    monkeypatch.setattr("mirage_env.memory.splat_cpu._PAIRS_A_RUN", 1)
    monkeypatch.setattr("mirage_env.memory.splat_cpu._PAIRS_NOTED", 18000)  # two views at a time
    splat_cpu = SPLAT._load_numba()
    pool = splat_cpu._pool
    for threads, runs in [(1, None), (2, None), (3, None), (2, 0), (2, 1), (3, 2), (2, 99)]:
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(splat_cpu, "_pool", pool if runs is None else lambda process, runs=runs: Helpful(runs))
        one, other, marked = read()
        assert_same(one, nearest)
        assert_same(other, fitting)
        assert torch.equal(marked, marks)


def test_ragged_worlds_are_read_together() -> None:
    clouds = [Cloud(torch.randn(n, 3), torch.randn(n, 4), torch.randperm(n), torch.rand(n)) for n in (50, 0, 7, 300)]
    cameras = [looking_around(views, (5, 6)) for views in (2, 3, 0, 5)]
    for share in (0.0, 0.3):
        for readout, cloud, views in zip(splat_many(clouds, cameras, share), clouds, cameras, strict=True):
            alone = splat(cloud.points, cloud.tokens, cloud.ids, views, cloud.footprint_m, share)
            assert_same(readout, alone)
    assert splat_many([], []) == []
    with pytest.raises(InvalidValueError, match="4 clouds need as many lists of cameras, got 3"):
        splat_many(clouds, cameras[:3])


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_read_keeps_nothing(share: float) -> None:
    """Compiled code counts references by itself, and a walk reads for a week."""
    array = np.tile(np.float32([0.1, 0.1, 1.0]), (3000, 1))
    kept = weakref.ref(array)
    points, group = torch.from_numpy(array), torch.zeros(3000, dtype=torch.int64)
    shown = splat(points, torch.ones(3000, 2), torch.arange(3000), straight_ahead(), torch.ones(3000), share)
    marks = landed(points, group, 1, straight_ahead())
    assert bool(shown.visible.any()) and bool(marks.any())
    del array, points
    assert kept() is None


def test_mixed_devices_and_dtypes_are_refused(unchecked: None) -> None:
    points, tokens, ids, cameras = torch.randn(4, 3), torch.randn(4, 2), torch.arange(4), straight_ahead()
    with pytest.raises(InvalidValueError, match=r"must share a device, got \['cpu', 'meta'\]"):
        splat(points, tokens.to("meta"), ids, cameras)
    with pytest.raises(InvalidValueError, match=r"must be float32, got \['float32', 'float64'\]; call \.float\(\)"):
        splat(points.double(), tokens, ids, cameras)


def test_blocks_out_of_view_are_culled_without_a_trace(kernel: str) -> None:
    """A long corridor of coherent blocks, some of them of nothing: most are skipped, and no bit changes."""
    torch.manual_seed(0)
    along = torch.arange(16000) * 0.01 - 80
    points = torch.stack([torch.randn(16000) * 2, torch.randn(16000), along], 1)
    points[2048:4096] = torch.nan
    points[9000:9003, 0] = torch.tensor([math.nan, 3e38, -math.inf])
    tokens, ids, cameras = torch.randn(16000, 3), torch.arange(16000), looking_around(12, (6, 8))
    culled = splat(points, tokens, ids, cameras)
    order = torch.randperm(16000)  # in no order no block can be skipped
    shuffled = splat(points[order], tokens[order], ids[order], cameras)
    for name in ("tokens", "visible", "depth_m", "offset"):
        assert torch.equal(getattr(culled, name), getattr(shuffled, name))
    assert int(culled.visible.sum()) > 100
