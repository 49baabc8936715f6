"""The map of a room whose walls are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mirage_env.envs.actions import Pose, world_from_camera
from mirage_env.envs.occupancy import (
    AROUND_CELL_M,
    AROUND_CELLS,
    EXTENT_M,
    FREE,
    RANGE_M,
    SOLID,
    UNKNOWN,
    VOXEL_M,
    Occupancy,
)
from mirage_env.errors import UnknownNameError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.types import Cameras, Frames, SceneSpec

FLOOR_Y = 1.2


def look(world: Any, *poses: Pose) -> Frames:
    """What the box room shows to these poses."""
    intrinsics = intrinsics_from_fov(math.radians(90), world.size)
    _, state = world.begin(SceneSpec(torch.eye(4), intrinsics, FLOOR_Y), 0)
    cameras = Cameras(world_from_camera(poses), intrinsics.expand(len(poses), 3, 3), world.size)
    return world.advance(state, cameras)[0]


def all_round() -> list[Pose]:
    return [Pose(z=2.0, yaw=math.radians(angle)) for angle in range(-180, 180, 15)]


def value_at(top_down: np.ndarray, x: float, z: float) -> int:
    side = top_down.shape[0]
    return int(top_down[side - 1 - int((z + EXTENT_M) / VOXEL_M), int((x + EXTENT_M) / VOXEL_M)])


@pytest.fixture
def room(box_world: Callable[..., Any]) -> Occupancy:
    return Occupancy.empty(FLOOR_Y).seen(look(box_world((64, 64)), *all_round(), *all_round()))


def test_the_map_around_a_body_turns_and_moves_with_it(room: Occupancy) -> None:
    for yaw, ahead_m, right_m in [
        (0.0, 2.0, 2.5),
        (math.pi / 2, 2.5, 4.0),
        (math.pi, 4.0, 3.5),
        (-math.pi / 2, 3.5, 2.0),
    ]:
        # At (0.5, 3) walls are 2 m to +z, 2.5 m to +x, 4 m to -z, 3.5 m to -x.
        around = room.map_around(0.5, 3.0, yaw)
        assert around.dtype == np.uint8 and around.shape == (AROUND_CELLS, AROUND_CELLS)
        middle = AROUND_CELLS // 2
        assert (around[middle - 1 : middle + 1, middle - 1 : middle + 1] == FREE).all()
        up = int(np.argmax(around[middle - 1 :: -1, middle] == SOLID))
        assert (up + 0.5) * AROUND_CELL_M == pytest.approx(ahead_m, abs=0.26)
        if right_m < 4.0:
            right = int(np.argmax(around[middle, middle:] == SOLID))
            assert (right + 0.5) * AROUND_CELL_M == pytest.approx(right_m, abs=0.26)
    assert (room.map_around(100.0, 0.0, 0.3) == UNKNOWN).all()


def test_free_inside_solid_at_the_walls_unknown_beyond(room: Occupancy) -> None:
    top_down = room.top_down_map()
    assert top_down.dtype == np.uint8
    for x, z in [(0.0, 2.0), (2.5, 4.5), (-2.5, -0.5), (1.0, 0.0)]:
        assert value_at(top_down, x, z) == FREE
    for along in np.arange(-2.5, 2.5, 0.1):
        for x, z in [(along, 5.05), (along, -1.05), (3.05, 2 + along), (-3.05, 2 + along)]:
            neighbours = [value_at(top_down, x + dx, z + dz) for dx in (-0.1, 0, 0.1) for dz in (-0.1, 0, 0.1)]
            assert SOLID in neighbours, (x, z)
    for x, z in [(0.0, 6.0), (5.0, 2.0), (0.0, -3.0), (-12.0, -12.0)]:
        assert value_at(top_down, x, z) == UNKNOWN


def test_the_floor_is_no_obstacle_and_unseen_is_not_solid() -> None:
    empty = Occupancy.empty(FLOOR_Y)
    assert empty.move((0.0, 0.0), (3.0, 4.0), "stop") == (3.0, 4.0)
    assert empty.overlap(99.0, 0.0) == 0 and empty.overlap(-EXTENT_M, EXTENT_M) == 0


def test_every_free_voxel_is_inside_and_every_solid_one_at_a_surface(room: Occupancy) -> None:
    from mirage_env.envs.occupancy import _MEANING

    x, z, y = (np.argwhere(_MEANING[room.voxels] == FREE).T + 0.5) * VOXEL_M + room.corner_m[:, None]
    assert y.max() < FLOOR_Y + 0.1
    below_the_sky = y > FLOOR_Y - 2.3
    x, z = x[below_the_sky], z[below_the_sky]
    assert abs(x).max() < 3.1 and z.max() < 5.1 and z.min() > -1.1
    x, z, y = (np.argwhere(_MEANING[room.voxels] == SOLID).T + 0.5) * VOXEL_M + room.corner_m[:, None]
    from_surface = np.minimum.reduce([abs(abs(x) - 3), abs(z - 5), abs(z + 1), abs(y - FLOOR_Y)])
    assert from_surface.max() < 0.1


def test_collisions(room: Occupancy) -> None:
    x, z = room.move((0.0, 2.0), (0.0, 9.0), "stop")
    assert x == 0.0 and 4.5 < z < 4.9  # a body of 0.2 m before the wall at 5 m
    x, z = room.move((0.0, 4.0), (2.0, 6.0), "slide")
    assert x == pytest.approx(2.0) and 4.5 < z < 4.9
    x, z = room.move((0.0, 4.0), (2.0, 6.0), "stop")
    assert x == pytest.approx(z - 4.0) and 4.5 < z < 4.9
    assert room.move((0.0, 2.0), (0.0, 9.0), "none") == (0.0, 9.0)
    assert room.move((0.0, 2.0), (0.5, 2.5), "slide") == (0.5, 2.5)  # exactly, when nothing is in the way
    assert room.move((1.0, 1.0), (1.0, 1.0), "slide") == (1.0, 1.0)
    with pytest.raises(UnknownNameError, match='unknown collision mode "bounce"; known are none, seen, slide, stop'):
        room.move((0.0, 0.0), (1.0, 0.0), "bounce")


def test_nobody_enters_what_was_never_seen(box_world: Callable[..., Any]) -> None:
    ahead = Occupancy.empty(FLOOR_Y).seen(look(box_world((64, 64)), Pose()))  # a look along +z from the origin
    assert ahead.move((0.0, 0.0), (0.0, 1.5), "seen") == (0.0, 1.5)
    assert ahead.move((0.0, 1.5), (0.0, 1.0), "seen") == pytest.approx((0.0, 1.0))  # back to what it saw
    x, z = ahead.move((0.0, 0.0), (0.0, -0.9), "seen")
    assert x == 0.0 and z > -0.2
    assert ahead.move((0.0, 0.0), (0.0, -0.9), "slide") == (0.0, -0.9)  # what is not generated yet is not solid


def test_whoever_stands_in_a_wall_can_leave_but_not_go_deeper(room: Occupancy) -> None:
    stuck = (0.0, 4.95)
    assert room.overlap(*stuck) > 0
    assert room.move(stuck, (0.0, 3.0), "stop") == (0.0, 3.0)


def test_it_is_a_value(box_world: Callable[..., Any]) -> None:
    empty = Occupancy.empty(FLOOR_Y)
    frames = look(box_world(), Pose())
    first, again = empty.seen(frames), empty.seen(frames)
    assert not any(tile is not None for tile in empty.tiles)
    np.testing.assert_array_equal(first.voxels, again.voxels)
    together, apart = empty.seen(Frames.cat([frames, frames])), first.seen(frames)
    np.testing.assert_array_equal(together.voxels, apart.voxels)
    assert together.known_voxels == apart.known_voxels


def test_known_is_what_was_seen_twice_and_never_falls(box_world: Callable[..., Any]) -> None:
    world = box_world()
    here, there = look(world, Pose()), look(world, Pose(yaw=math.pi))
    once = Occupancy.empty(FLOOR_Y).seen(here)
    assert once.known_voxels == 0
    twice = once.seen(here)
    assert twice.known_voxels == np.count_nonzero(once.voxels) > 100
    assert twice.known_m3 == pytest.approx(twice.known_voxels * VOXEL_M**3)
    assert twice.seen(here).known_voxels == twice.known_voxels
    both = twice.seen(there).seen(there)
    assert both.known_voxels > 1.1 * twice.known_voxels
    contradicted = both.seen(replace(here, depth_m=here.depth_m * 0.5))
    assert contradicted.known_voxels >= both.known_voxels


def test_space_that_is_carved_again_stops_being_solid(box_world: Callable[..., Any]) -> None:
    frames = look(box_world(), Pose())
    near = replace(frames, depth_m=torch.full_like(frames.depth_m, 1.0))
    wrong = Occupancy.empty(FLOOR_Y).seen(near)
    assert wrong.move((0.0, 0.0), (0.0, 2.0), "stop")[1] < 1.0
    right = wrong
    for _ in range(3):
        right = right.seen(frames)
    assert right.move((0.0, 0.0), (0.0, 2.0), "stop") == (0.0, 2.0)


def test_sky_moving_things_and_bad_depth_leave_no_surface(box_world: Callable[..., Any]) -> None:
    frames = look(box_world(), Pose())
    everywhere = torch.ones_like(frames.sky)
    empty = Occupancy.empty(FLOOR_Y)

    sky = empty.seen(replace(frames, sky=everywhere, depth_m=torch.zeros_like(frames.depth_m)))
    assert (sky.top_down_map() != SOLID).all()
    ahead = (np.nonzero((sky.top_down_map() == FREE).any(1))[0][0] - len(sky.top_down_map()) / 2) * -VOXEL_M
    assert ahead == pytest.approx(RANGE_M, abs=0.3)

    moving = empty.seen(replace(frames, dynamic=everywhere))
    assert (moving.top_down_map() != SOLID).all() and (moving.top_down_map() == FREE).any()

    for bad in (0.0, -1.0, math.nan, math.inf):
        nothing = empty.seen(replace(frames, sky=~everywhere, depth_m=torch.full_like(frames.depth_m, bad)))
        assert not nothing.voxels.any()


def test_outside_the_grid_is_ignored(box_world: Callable[..., Any]) -> None:
    frames = look(box_world(), Pose())
    far_away = frames.cameras.world_from_camera.clone()
    far_away[:, 0, 3] = 1e6
    moved = replace(frames, cameras=replace(frames.cameras, world_from_camera=far_away))
    assert not Occupancy.empty(FLOOR_Y).seen(moved).voxels.any()


def test_a_new_map_shares_the_tiles_that_it_did_not_change(box_world: Callable[..., Any]) -> None:
    world = box_world()
    first = Occupancy.empty(FLOOR_Y).seen(look(world, Pose(z=2.0)))
    after = first.seen(look(world, Pose(x=1.0, z=2.0, yaw=math.pi / 2)))
    shared = [a is b for a, b in zip(first.tiles, after.tiles, strict=True) if a is not None]
    assert any(shared) and not all(shared)
    assert after.nbytes == sum(32**3 for tile in after.tiles if tile is not None) < 2**20


def test_the_plan_keeps_a_body_from_walls(room: Occupancy) -> None:
    known, any_way = room.plan(through_unknown=False), room.plan(through_unknown=True)
    assert known.cell((0.0, 2.0)) and any_way.cell((0.0, 8.0)) and not known.cell((0.0, 8.0))
    for plan in (known, any_way):
        assert plan.cell((0.0, 4.95)) is None and plan.cell((0.0, 4.65)) is not None
        assert plan.walk_m((0.0, 0.0), (2.0, 4.0)) == pytest.approx(math.hypot(2.0, 4.0), abs=0.01)
    assert any_way.walk_m((0.0, 0.0), (0.0, 8.0)) == math.inf  # walls all round
