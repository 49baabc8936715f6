import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import camera_rays
from mirage_env.memory import ChunkRecord, LatentMemory, MemoryConfig, MemoryState
from mirage_env.memory.latent import Points
from mirage_env.types import Cameras, Readout

PIXELS, GRID = (32, 48), (4, 6)
PAPER = MemoryConfig(write_rule="paper", depth_edges="keep")


def at(positions: Any, yaw_deg: Any = 0.0) -> Cameras:
    """Level cameras with a right angle of view."""
    centre = torch.as_tensor(positions, dtype=torch.float32).reshape(-1, 3)
    yaw = torch.deg2rad(torch.as_tensor(yaw_deg, dtype=torch.float32).expand(len(centre)))
    pose = rigid(rotation_from_yaw_pitch_roll(yaw, yaw * 0, yaw * 0), centre)
    return Cameras(pose, intrinsics_from_fov(math.pi / 2, PIXELS).repeat(len(centre), 1, 1), PIXELS)


def room_depth(cameras: Cameras, half: tuple[float, float, float] = (4.0, 1.5, 4.0)) -> torch.Tensor:
    """Exact z-depth inside a box around the origin."""
    direction = torch.einsum("vij,vhwj->vhwi", cameras.world_from_camera[:, :3, :3], camera_rays(cameras))
    centre = cameras.world_from_camera[:, None, None, :3, 3]
    return ((torch.sign(direction) * torch.tensor(half) - centre) / direction).amin(-1)


def wall(cameras: Cameras, depth: float) -> torch.Tensor:
    return torch.full((len(cameras), *PIXELS), depth)


def latents_for(cameras: Cameras, channels: int = 5) -> torch.Tensor:
    return torch.randn(len(cameras), channels, *GRID)


def write(
    memory: LatentMemory, state: MemoryState, cameras: Cameras, depth: torch.Tensor, latents: torch.Tensor | None = None
) -> MemoryState:
    latents = latents_for(cameras, state.channels) if latents is None else latents
    return memory.write(state, record(latents, depth, cameras))


def record(
    latents: torch.Tensor, depth: torch.Tensor, cameras: Cameras, dynamic: torch.Tensor | None = None
) -> ChunkRecord:
    nothing = torch.zeros_like(depth, dtype=torch.bool)
    return ChunkRecord(latents, depth, nothing, nothing if dynamic is None else dynamic, cameras)


def read(memory: LatentMemory, state: MemoryState, cameras: Cameras) -> Readout:
    grid = memory.read(state, cameras).grid
    assert grid is not None
    return grid


def assert_equal_states(one: MemoryState, other: MemoryState) -> None:
    for name in ("points", "tokens", "footprint_m", "ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.next_id == other.next_id


# Reading what was written


@pytest.mark.parametrize("rule", ["paper", "novel"])
@pytest.mark.parametrize("method", ["bilinear", "nearest", "area", "median"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_view_reads_back_its_own_tokens_bit_for_bit(rule: Any, method: Any, dtype: Any) -> None:
    """Whatever the depth: every cell is its own ray."""
    memory = LatentMemory(MemoryConfig(write_rule=rule, depth_downsample=method, depth_edges="keep", token_dtype=dtype))
    cameras = at([[1.0, -2.0, 3.0]], 33.0)
    depth, latents = torch.rand(1, *PIXELS) * 30 + 0.05, latents_for(cameras)
    state = write(memory, memory.empty(5), cameras, depth, latents)
    readout = read(memory, state, cameras.resized(GRID))
    assert bool(readout.visible.all())
    assert torch.equal(readout.tokens, latents.to(getattr(torch, dtype)).float())
    assert float(readout.offset.abs().max()) < 1e-3
    assert torch.equal(readout.index.flatten(), torch.arange(24))


def test_what_is_stored() -> None:
    memory = LatentMemory()
    cameras = at([[0.0, 0.0, 0.0]])
    state = write(memory, memory.empty(5), cameras, wall(cameras, 3.0))
    assert len(state) == 24 and state.channels == 5 and state.next_id == 24
    assert state.ids.tolist() == list(range(24))
    torch.testing.assert_close(state.points[0], torch.tensor([-2.5, -1.5, 3.0]))  # f = 3 cells, centre (3, 2)
    torch.testing.assert_close(state.footprint_m, torch.full((24,), 1.0))  # 3 m over 3 cells
    assert state.nbytes == 24 * (12 + 20 + 4 + 8)


def test_reading_batches_views() -> None:
    memory = LatentMemory()
    cameras = at([[0.0, 0, 0], [1.0, 0, 0.5], [-1.0, 0, 0.2]], [0.0, 40.0, -70.0])
    state = write(memory, memory.empty(5), cameras, room_depth(cameras))
    views = at(torch.randn(5, 3) * 0.5, torch.randn(5) * 90).resized(GRID)
    together = read(memory, state, views)
    for view in range(5):
        alone = read(memory, state, views[view : view + 1])
        assert torch.equal(together.tokens[view], alone.tokens[0])
        assert torch.equal(together.index[view], alone.index[0])


def test_an_empty_memory_shows_nothing() -> None:
    memory = LatentMemory()
    readout = read(memory, memory.empty(5), at([[0.0, 0, 0]]).resized(GRID))
    assert readout.tokens.shape == (1, 5, *GRID) and not bool(readout.visible.any())


def test_points_lie_on_the_surfaces() -> None:
    """Bilinear depth at the cell centre is the depth of that very ray where a plane faces the camera."""
    memory = LatentMemory()
    cameras = at([[0.5, 0.2, -0.4]] * 4, [0.0, 90.0, 180.0, 270.0])
    state = write(memory, memory.empty(5), cameras, room_depth(cameras))
    assert len(state) > 40
    distance = (state.points.abs() - torch.tensor([4.0, 1.5, 4.0])).abs().amin(1)
    assert float(distance.median()) < 1e-5 and float(distance.max()) < 0.2


# What is never written


@pytest.mark.parametrize("config", [MemoryConfig(), PAPER])
@pytest.mark.parametrize("bad", [0.0, -0.0, -2.0])
def test_unknown_depth_is_never_written(config: MemoryConfig, bad: float) -> None:
    memory = LatentMemory(config)
    cameras = at([[0.0, 0, 0]])
    depth = wall(cameras, 2.0)
    depth[:, :8, :] = bad
    state = write(memory, memory.empty(5), cameras, depth)
    assert len(state) == 18
    assert bool((read(memory, state, cameras.resized(GRID)).visible[0, 1:]).all())


@pytest.mark.parametrize("config", [MemoryConfig(), PAPER])
def test_depth_too_large_for_a_finite_point_is_never_written(config: MemoryConfig) -> None:
    memory = LatentMemory(config)
    cameras = at([[0.0, 0, 0]], 30.0)
    assert len(write(memory, memory.empty(5), cameras, wall(cameras, 3.4e38))) < 24


@pytest.mark.parametrize("config", [MemoryConfig(), PAPER])
def test_sky_and_moving_things_are_never_written(config: MemoryConfig) -> None:
    memory = LatentMemory(config)
    cameras = at([[0.0, 0, 0]])
    depth = wall(cameras, 2.0)
    depth[:, :, 16:32] = 0.7
    masked = depth < 1
    good = record(latents_for(cameras), depth, cameras)
    for name in ("sky", "dynamic"):
        state = memory.write(memory.empty(5), replace(good, **{name: masked}))
        assert len(state) == 16
        torch.testing.assert_close(state.points[:, 2], torch.full((16,), 2.0))


def test_cells_at_the_border_of_a_mask() -> None:
    """One masked pixel: its cell is a blend, which only the paper's rule keeps."""
    cameras = at([[0.0, 0, 0]])
    depth = wall(cameras, 2.0)
    masked = torch.zeros_like(depth, dtype=torch.bool)
    masked[0, 0, 0] = True
    latents = latents_for(cameras)
    for config, count in ((MemoryConfig(), 23), (PAPER, 24)):
        memory = LatentMemory(config)
        assert len(memory.write(memory.empty(5), record(latents, depth, cameras, masked))) == count


def test_cells_across_a_depth_jump_are_rejected() -> None:
    cameras = at([[0.0, 0, 0]])
    depth = wall(cameras, 2.0)
    depth[:, :, 20:] = 4.0
    for config, count in ((MemoryConfig(), 20), (PAPER, 24)):
        memory = LatentMemory(config)
        assert len(write(memory, memory.empty(5), cameras, depth)) == count


def test_edges_of_the_first_frame_are_remembered_at_their_median() -> None:
    """Of every cell that holds 3 columns at 2 m and 5 at 4 m; where a pixel moves, and later, edges are left out."""
    memory = LatentMemory(MemoryConfig(depth_edges="first"))
    cameras = at([[0.0, 0, 0], [0.0, 0, 0], [0.0, 0, 50.0]])
    depth, moving = wall(cameras, 2.0), torch.zeros(3, *PIXELS, dtype=torch.bool)
    depth[:, :, 19:] = 4.0
    moving[0], moving[1, 0, 16] = True, True  # the first frame shows nothing that could be remembered
    latents = latents_for(cameras)
    state = memory.write(memory.empty(5), record(latents[:2], depth[:2], cameras[:2], moving[:2]))
    assert sorted(state.points[:, 2].tolist()) == [2.0] * 8 + [4.0] * 15
    later = memory.write(state, record(latents[2:], depth[2:], cameras[2:], moving[2:]))
    assert len(later) == 23 + 20


# Rules


def test_paper_rule_adds_every_cell_of_every_frame() -> None:
    memory = LatentMemory(PAPER)
    cameras = at([[0.0, 0, 0]] * 3)
    state = write(memory, memory.empty(5), cameras, wall(cameras, 2.0))
    assert len(state) == 72
    assert len(write(memory, state, cameras, wall(cameras, 2.0))) == 144


def test_a_still_camera_adds_nothing() -> None:
    memory = LatentMemory()
    cameras = at([[0.3, 0.1, -0.5]], 20.0)
    state = write(memory, memory.empty(5), cameras, room_depth(cameras))
    assert write(memory, state, cameras, room_depth(cameras)) is state
    many = at([[0.3, 0.1, -0.5]] * 5, 20.0)
    assert len(write(memory, memory.empty(5), many, room_depth(many))) == len(state)


@pytest.mark.parametrize("factor", [0.92, 0.99, 1.01, 1.5])
def test_slightly_nearer_or_farther_depth_does_not_rewrite(factor: float) -> None:
    memory = LatentMemory()
    cameras = at([[0.0, 0, 0]])
    state = write(memory, memory.empty(5), cameras, wall(cameras, 3.0))
    assert write(memory, state, cameras, wall(cameras, 3.0 * factor)) is state


def test_a_surface_in_front_is_added_and_wins() -> None:
    memory = LatentMemory()
    cameras = at([[0.0, 0, 0]])
    state = write(memory, memory.empty(5), cameras, wall(cameras, 3.0))
    box = wall(cameras, 3.0)
    box[:, 8:24, 16:32] = 1.5
    latents = latents_for(cameras)
    after = write(memory, state, cameras, box, latents)
    assert len(after) == 24 + 4
    assert torch.equal(after.tokens[:24], state.tokens)
    shown = read(memory, after, cameras.resized(GRID))
    assert torch.equal(shown.tokens[0, :, 1:3, 2:4], latents[0, :, 1:3, 2:4])


def test_walking_closer_refines_and_replaces() -> None:
    memory = LatentMemory()
    far, near = at([[0.0, 0, 0]]), at([[0.0, 0, 2.0]])
    first = write(memory, memory.empty(5), far, wall(far, 4.0))
    latents = latents_for(near)
    second = write(memory, first, near, wall(near, 2.0), latents)
    shown = read(memory, second, near.resized(GRID))
    assert torch.equal(shown.tokens, latents)  # every cell: those that were empty and those that were coarse
    replaced = 24 - int(torch.isin(first.ids, second.ids).sum())
    assert replaced == 6  # twice as near: a 2 x 3 block of coarse points was in view
    assert len(second) == 24 - replaced + 24
    assert float(second.footprint_m.min()) == pytest.approx(2 / 3)


def test_a_little_closer_refines_nothing() -> None:
    memory = LatentMemory()
    far, near = at([[0.0, 0, 0]]), at([[0.0, 0, 1.0]])  # 4 m, then 3 m: 1.33 times finer
    first = write(memory, memory.empty(5), far, wall(far, 4.0))
    second = write(memory, first, near, wall(near, 3.0))
    assert bool(torch.isin(first.ids, second.ids).all())


def test_walking_away_keeps_the_fine_points() -> None:
    memory = LatentMemory()
    near, far = at([[0.0, 0, 2.0]]), at([[0.0, 0, 0]])
    first = write(memory, memory.empty(5), near, wall(near, 2.0))
    second = write(memory, first, far, wall(far, 4.0))
    assert torch.equal(second.points[:24], first.points)
    assert torch.equal(read(memory, second, near.resized(GRID)).tokens, read(memory, first, near.resized(GRID)).tokens)


@pytest.mark.parametrize("config", [MemoryConfig(), MemoryConfig(depth_edges="first"), PAPER])
def test_a_chunk_equals_its_frames_one_by_one(config: MemoryConfig) -> None:
    memory = LatentMemory(config)
    cameras = at([[0.0, 0, z] for z in (-2.0, -1.0, 0.0, 1.0, 2.5)], [0.0, 15.0, 30.0, -20.0, 0.0])
    depth, latents = room_depth(cameras), latents_for(cameras)
    together, one_by_one = write(memory, memory.empty(5), cameras, depth, latents), memory.empty(5)
    for t in range(5):
        one_by_one = write(memory, one_by_one, cameras[t : t + 1], depth[t : t + 1], latents[t : t + 1])
    for name in ("points", "tokens", "footprint_m"):
        assert torch.equal(getattr(together, name), getattr(one_by_one, name)), name


def test_ids_are_never_given_twice() -> None:
    memory = LatentMemory(MemoryConfig(max_points=30))
    state, seen = memory.empty(5), set()
    for step in range(8):
        cameras = at([[0.0, 0, 0.4 * step]], 40.0 * step)
        before = set(state.ids.tolist())
        state = write(memory, state, cameras, room_depth(cameras))
        fresh = set(state.ids.tolist()) - before
        assert not fresh & seen
        seen |= before | fresh
        assert len(state) <= 30


# Growth


def walk_around(memory: LatentMemory, writes: int) -> list[int]:
    state, sizes = memory.empty(2), []
    for step in range(writes):
        angle = 2 * math.pi * step / 25
        cameras = at([[1.5 * math.sin(angle), 0.0, 1.5 * math.cos(angle)]], math.degrees(angle) + 90)
        state = write(memory, state, cameras, room_depth(cameras))
        sizes.append(len(state))
    return sizes


def test_the_memory_stays_bounded_around_a_loop() -> None:
    """Four laps: the first fills the memory, the others find it filled; the paper's rule adds 24 cells a write."""
    sizes = walk_around(LatentMemory(), 100)
    assert sizes[99] == sizes[74]
    assert sizes[99] - sizes[24] < 0.25 * sizes[24]
    assert walk_around(LatentMemory(PAPER), 100)[99] == 2400


def test_the_memory_stays_within_its_budget() -> None:
    for rule in ("novel", "paper"):
        sizes = walk_around(LatentMemory(MemoryConfig(write_rule=rule, max_points=60)), 100)
        assert max(sizes) == 60


def test_the_budget_drops_coarse_then_old_points_and_spares_the_new() -> None:
    memory = LatentMemory(replace(PAPER, max_points=60))
    cameras = at([[0.0, 0, 0]])
    state = write(memory, memory.empty(5), cameras, wall(cameras, 2.0))  # ids 0 to 23
    state = write(memory, state, cameras, wall(cameras, 8.0))  # 24 to 47, coarse
    state = write(memory, state, cameras, wall(cameras, 20.0))  # 48 to 71, coarser, but new
    assert state.ids.tolist() == [*range(24), *range(36, 48), *range(48, 72)]
    state = write(memory, state, cameras, wall(cameras, 1.0))
    assert state.ids.tolist() == [*range(24), *range(36, 48), *range(72, 96)]
    tiny = LatentMemory(replace(PAPER, max_points=10))
    assert len(write(tiny, tiny.empty(5), cameras, wall(cameras, 2.0))) == 10


# Sky


def sky_record(cameras: Cameras, latents: torch.Tensor) -> ChunkRecord:
    """A wall below, sky in the upper half of the picture."""
    good = record(latents, wall(cameras, 2.0), cameras)
    sky = torch.zeros_like(good.sky)
    sky[:, : PIXELS[0] // 2] = True
    return replace(good, sky=sky)


def test_the_sky_is_remembered_by_direction() -> None:
    """However far one walks it stays where it was; a surface in front of it wins."""
    memory = LatentMemory(MemoryConfig(sky_points=100))
    here, latents = at([[0.0, 0, 0]]), torch.randn(1, 5, *GRID)
    state = memory.write(memory.empty(5), sky_record(here, latents))
    assert len(state) == 12 and state.sky is not None and len(state.sky) == 12
    for place in ([0.0, 0, 0], [300.0, -40, 500]):
        shown = read(memory, state, at([place]).resized(GRID))
        assert torch.equal(shown.tokens[0, :, :2], latents[0, :, :2])
        assert bool((shown.depth_m[0, :2] == 1000.0).all()) and bool((shown.index[0, :2] == -1).all())
    house = memory.write(state, record(latents_for(here), wall(here, 5.0), here))
    assert torch.equal(read(memory, house, here.resized(GRID)).depth_m[0, :2], torch.full((2, 6), 5.0))
    assert house.sky is state.sky
    again = MemoryState.from_tensors(house.tensors())
    assert again.sky is not None and torch.equal(again.sky.tokens, state.sky.tokens)


def test_a_full_memory_makes_room_for_more_than_one_write() -> None:
    """Of 5,000 points a 32nd of what a block does not hold: (5,000 - 2,048) / 32 = 92."""
    memory, count = LatentMemory(MemoryConfig(write_rule="paper", max_points=5000)), 4990
    points = torch.randn(count, 3) + torch.tensor([100.0, 0.0, 0.0])
    state = MemoryState.of(points, torch.randn(count, 5), torch.rand(count) + 1.0, torch.arange(count), count)
    sizes = []
    for _ in range(6):
        camera = at([[0.0, 0, 0]])
        state = write(memory, state, camera, wall(camera, 2.0))
        sizes.append(len(state))
    assert sizes == [4908, 4932, 4956, 4980, 4908, 4932]  # 24 cells a picture
    assert int((state.ids >= count).sum()) == 6 * 24  # and none of them is forgotten


def test_the_sky_is_bounded() -> None:
    memory, sizes = LatentMemory(MemoryConfig(sky_points=40)), []
    state = memory.empty(5)
    for step in range(30):
        camera = at([[float(step), 0, 0]], 25.0 * step)
        state = memory.write(state, sky_record(camera, latents_for(camera)))
        assert state.sky is not None
        sizes.append(len(state.sky))
    assert max(sizes) == 40
    forgetful = LatentMemory()
    assert forgetful.write(forgetful.empty(5), sky_record(camera, latents_for(camera))).sky is None


# Many worlds


@pytest.mark.parametrize("sky_points", [0, 50])
@pytest.mark.parametrize("same_surface", [0.0, 0.02])
def test_many_worlds_are_read_as_each_alone(sky_points: int, same_surface: float) -> None:
    """Of any numbers of points and views, with sky and without."""
    memory = LatentMemory(replace(PAPER, sky_points=sky_points, same_surface=same_surface))
    states = [memory.empty(5)]
    for step in range(3):
        cameras = at([[0.0, 0, 0.3 * step]] * (step + 1), 20.0 * step)
        told = sky_record(cameras, latents_for(cameras)) if step else good(cameras)
        states.append(memory.write(states[-1], told))
    views = [at(torch.randn(count, 3) * 0.3, 15.0).resized(GRID) for count in (2, 0, 3, 1)]
    for state, view, reading in zip(states, views, memory.read_many(states, views), strict=True):
        together, alone = reading.grid, read(memory, state, view)
        assert together is not None
        for name in ("tokens", "visible", "depth_m", "offset", "index"):
            assert torch.equal(getattr(together, name), getattr(alone, name))


# A value


def test_writing_leaves_the_old_state_alone() -> None:
    memory = LatentMemory()
    far, near = at([[0.0, 0, 0]]), at([[0.0, 0, 2.0]])
    state = write(memory, memory.empty(5), far, wall(far, 4.0))
    copy = MemoryState.of(
        state.points.clone(), state.tokens.clone(), state.footprint_m.clone(), state.ids.clone(), state.next_id
    )
    write(memory, state, near, wall(near, 2.0))
    assert_equal_states(state, copy)
    assert_equal_states(state.to("cpu"), copy)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 40), st.sampled_from([None, 1, 30, 80]), st.sampled_from([0.0, 0.1]))
def test_in_which_blocks_points_lie_does_not_matter(seed: int, rows: int, budget: int | None, share: float) -> None:
    """A walk whose memory lies in many small blocks remembers and reads what one in a single block does."""
    memory = LatentMemory(MemoryConfig(max_points=budget, same_surface=share, sky_points=20))
    torch.manual_seed(seed)
    whole = apart = memory.empty(5)
    for _ in range(4):
        cameras = at(torch.randn(2, 3) * torch.tensor([1.5, 0.3, 1.5]), torch.randn(2) * 60.0)
        told = record(latents_for(cameras), room_depth(cameras), cameras)
        told.sky[:, :8] = torch.rand(()) < 0.5
        whole = memory.write(whole, told)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mirage_env.memory.latent._rows_a_block", lambda points: rows)
            apart = memory.write(apart, told)
        assert_equal_states(whole, apart)
        together, one = read(memory, whole, cameras.resized(GRID)), read(memory, apart, cameras.resized(GRID))
        for name in ("tokens", "visible", "depth_m", "offset", "index"):
            assert torch.equal(getattr(together, name), getattr(one, name))
    assert len(whole.blocks) == 1 and all(0 < len(block) <= max(rows, 2 * 24) for block in apart.blocks)
    assert all(len(a) + len(b) > rows for a, b in pairwise(apart.blocks))  # so that there are not many more than needed
    again = MemoryState.from_tensors(apart.tensors())
    assert_equal_states(again, apart)
    assert again.nbytes == apart.nbytes == sum(leaf.nbytes for leaf in apart.tensors().values() if leaf.dim())


def test_a_write_shares_what_it_does_not_touch() -> None:
    """Of 65,536 points, 100 m away for the most part, a fork that writes a picture copies a block or two."""
    count, memory = 65_536, LatentMemory()
    points = torch.randn(count, 3) + torch.tensor([100.0, 0.0, 0.0])
    points[-50:] = torch.randn(50, 3) + torch.tensor([0.0, 0.0, 8.0])
    state = MemoryState.of(points, torch.randn(count, 24), torch.ones(count), torch.arange(count), count)
    branches = [state] * 3
    for _ in range(5):
        camera = at(torch.randn(1, 3) * 0.3)
        branches = [write(memory, branch, camera, wall(camera, 4.0)) for branch in branches]
    past = {id(block) for block in state.blocks}
    for branch in branches:
        own = [block for block in branch.blocks if id(block) not in past]
        assert branch.next_id > count and sum(map(len, own)) < 3 * 2048
        assert all(x.untyped_storage().nbytes() == x.nbytes for block in own for x in block.tensors().values())
        assert branch.nbytes - sum(block.nbytes for block in own) > 0.9 * state.nbytes


# Errors


def good(cameras: Cameras) -> ChunkRecord:
    return record(latents_for(cameras), wall(cameras, 2.0), cameras)


def test_channels_must_match() -> None:
    memory = LatentMemory()
    with pytest.raises(InvalidValueError, match="holds tokens of 7 channels, got latents of 5"):
        memory.write(memory.empty(7), good(at([[0.0, 0, 0]])))


def test_frames_must_match() -> None:
    memory = LatentMemory()
    short = replace(good(at([[0.0, 0, 0]] * 2)), depth_m=wall(at([[0.0, 0, 0]]), 2.0))
    with pytest.raises(InvalidValueError, match=r"2 latent frames need as many depth maps.*got \[1, 2, 2, 2\]"):
        memory.write(memory.empty(5), short)


def test_pixel_sizes_must_match() -> None:
    memory = LatentMemory()
    cameras = at([[0.0, 0, 0]])
    with pytest.raises(InvalidValueError, match="cameras are given at pixel resolution"):
        memory.write(memory.empty(5), replace(good(cameras), cameras=cameras.resized(GRID)))


def test_grids_must_divide() -> None:
    memory = LatentMemory()
    with pytest.raises(InvalidValueError, match="32 x 48 pixels does not divide into a grid of 5 x 6 cells"):
        memory.write(memory.empty(5), replace(good(at([[0.0, 0, 0]])), latents=torch.randn(1, 5, 5, 6)))


def test_the_first_bad_latent_or_pose_is_named() -> None:
    memory = LatentMemory()
    bad = good(at([[0.0, 0, 0]] * 3))
    bad.latents[1:, 0, 0, 0] = math.nan
    with pytest.raises(InvalidValueError, match="latent frame 1 is not finite"):
        memory.write(memory.empty(5), bad)
    bad = good(at([[0.0, 0, 0]] * 3))
    bad.cameras.world_from_camera[2, 0, 3] = math.inf
    with pytest.raises(InvalidValueError, match="camera 2 has a pose"):
        memory.write(memory.empty(5), bad)
    with pytest.raises(InvalidValueError, match="camera 2 has a pose"):
        memory.read(memory.empty(5), bad.cameras)
    for nonsense in (math.nan, math.inf, -math.inf):
        bad = good(at([[0.0, 0, 0]] * 3))
        bad.depth_m[0, 3, 4] = bad.depth_m[1, 5, 6] = bad.depth_m[1, 5, 7] = bad.depth_m[2, 0, 0] = nonsense
        bad.sky[0, 3, 4] = True  # there depth means nothing
        with pytest.raises(InvalidValueError, match="depth map 1 is not finite at row 5, column 6; write 0 where"):
            memory.write(memory.empty(5), bad)


def state_of(**changes: Any) -> MemoryState:
    fields: dict[str, Any] = {
        "points": torch.zeros(3, 3),
        "tokens": torch.zeros(3, 2),
        "footprint_m": torch.ones(3),
        "ids": torch.tensor([1, 4, 9]),
        "next_id": 10,
    }
    return MemoryState.of(**(fields | changes))


def test_a_state_checks_itself() -> None:
    assert len(state_of()) == 3
    with pytest.raises(InvalidValueError, match="memory point 1 is not finite"):
        state_of(points=torch.tensor([[0.0, 0, 0], [0, math.nan, 0], [math.inf, 0, 0]]))
    for nothing in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidValueError, match="the footprint of memory point 2 is not positive"):
            state_of(footprint_m=torch.tensor([1.0, 2.0, nothing]))
    with pytest.raises(InvalidValueError, match=r"a memory needs blocks, .*, got none"):
        MemoryState((), 0)
    blocks = state_of().blocks
    other = Points(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1), torch.tensor([9]))
    with pytest.raises(
        InvalidValueError, match=r"channels of one number.*2 of torch.float32 on cpu; 3 of torch.float32"
    ):
        MemoryState((*blocks, other), 10)
    with pytest.raises(InvalidValueError, match="ids must increase"):
        MemoryState((*blocks, *blocks), 10)
    for ids, next_id in (([1, 1, 2], 10), ([2, 1, 3], 10), ([1, 2, 3], 3)):
        with pytest.raises(InvalidValueError, match=f"ids must increase and stay below next_id = {next_id}"):
            state_of(ids=torch.tensor(ids), next_id=next_id)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"finer": 1.0}, "finer must be above 1, got 1.0"),
        ({"finer": math.nan}, "finer must be above 1"),
        ({"occluder": 0.0}, "occluder is a share of depth between 0 and 1, got 0.0"),
        ({"depth_step": 1.5}, "depth_step is a share"),
        ({"same_surface": -0.1}, "same_surface is a share of depth from 0 to below 1, got -0.1"),
        ({"same_surface": 1.0}, "same_surface is a share of depth from 0 to below 1"),
        ({"max_points": 0}, "max_points must be at least 1, got 0"),
        ({"sky_points": -1}, "sky_points must be at least 0, got -1"),
    ],
)
def test_a_config_checks_itself(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidValueError, match=text):
        MemoryConfig(**changes)


@pytest.mark.parametrize(
    ("name", "known"),
    [("write_rule", "paper"), ("depth_downsample", "area"), ("depth_edges", "first"), ("token_dtype", "float16")],
)
@pytest.mark.usefixtures("unchecked")
def test_a_config_knows_its_names(name: str, known: str) -> None:
    with pytest.raises(UnknownNameError, match=f'unknown {name} "{known}s"; known are .*did you mean "{known}"'):
        MemoryConfig(**{name: known + "s"})  # type: ignore[arg-type]
