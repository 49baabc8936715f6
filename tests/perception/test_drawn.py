from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.perception.drawn import drawn
from mirage_env.perception.tiny import Perceived
from mirage_env.types import Cameras

SIDE, CELLS = 64, 8


def turned(yaw: torch.Tensor) -> Cameras:
    """Cameras at the origin that look along `yaw` (radians), a quarter turn wide."""
    nothing = torch.zeros_like(yaw)
    poses = rigid(rotation_from_yaw_pitch_roll(yaw, nothing, nothing), torch.zeros(len(yaw), 3))
    k = intrinsics_from_fov(math.pi / 2, (SIDE, SIDE)).repeat(len(yaw), 1, 1)
    return Cameras(poses, k, (SIDE, SIDE))


def wall(frames: int, doubt: float | None = 0.4) -> Perceived:
    """Depth 2 m everywhere."""
    nothing = torch.zeros(frames, SIDE, SIDE, dtype=torch.bool)
    depth = torch.full((frames, SIDE, SIDE), 2.0)
    return Perceived(depth, nothing, nothing, None if doubt is None else torch.full_like(depth, doubt))


def test_what_is_drawn_is_off_by_the_doubt_on_average() -> None:
    cameras = turned(torch.arange(4) * math.pi / 2)
    unseen = torch.ones(4, CELLS, CELLS, dtype=torch.bool)
    errors = torch.stack([(drawn(wall(4), unseen, cameras, seed, 50.0).depth_m / 2).log() for seed in range(200)])
    assert errors.abs().mean() == pytest.approx(0.4, rel=0.1)
    assert errors.mean() == pytest.approx(0.0, abs=0.05)
    assert errors.abs().max() < 0.4 * math.sqrt(math.pi / 2) * 4 + 1e-4  # the field itself has bounds


def test_draws_lean_by_so_many_deviations_where_nothing_is_remembered() -> None:
    cameras, unseen = turned(torch.zeros(1)), torch.ones(1, CELLS, CELLS, dtype=torch.bool)
    unseen[:, :, :4] = False
    even, leaning = (drawn(wall(1), unseen, cameras, 3, 50.0, lean).depth_m for lean in (0.0, 0.5))
    off = (leaning / even).log()
    assert off[:, :, : SIDE // 2].eq(0).all()
    torch.testing.assert_close(off[:, :, SIDE // 2 :], torch.full((1, SIDE, SIDE // 2), 0.2 * math.sqrt(math.pi / 2)))


def test_what_is_remembered_or_sure_stays_and_seeds_differ() -> None:
    cameras, unseen = turned(torch.zeros(1)), torch.zeros(1, CELLS, CELLS, dtype=torch.bool)
    seen = wall(1)
    assert drawn(seen, unseen, cameras, 0, 50.0) is seen
    assert drawn(wall(1, None), ~unseen, cameras, 0, 50.0).depth_m.eq(2.0).all()
    assert drawn(wall(1, 0.0), ~unseen, cameras, 0, 50.0).depth_m.eq(2.0).all()
    unseen[:, :, 4:] = True
    depth = drawn(seen, unseen, cameras, 0, 50.0).depth_m
    assert depth[:, :, :32].eq(2.0).all() and not depth[:, :, 32:].eq(2.0).any()
    holes = torch.zeros_like(unseen)
    holes[:, 2:4, 3:5] = True
    assert drawn(seen, holes, cameras, 0, 50.0) is seen
    cells = depth.unflatten(2, (CELLS, -1)).unflatten(1, (CELLS, -1))
    assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))  # an even surface in every cell
    assert not torch.equal(depth, drawn(seen, unseen, cameras, 1, 50.0).depth_m)
    assert torch.equal(depth, drawn(seen, unseen, cameras, 0, 50.0).depth_m)
    far = replace(seen, depth_m=torch.full((1, SIDE, SIDE), 49.0))
    assert drawn(far, unseen, cameras, 0, 50.0).depth_m.max() <= 50.0


def test_frames_that_see_one_place_draw_the_same_for_it() -> None:
    """Round walls: every camera at their centre sees them at one distance, whatever it looks along."""
    cameras = turned(torch.tensor([0.0, math.pi / 4]))
    across = (torch.arange(SIDE) + 0.5) / (SIDE / 2) - 1
    depth = (3.0 / (1 + across.square()).sqrt()).expand(2, SIDE, SIDE)
    found = drawn(replace(wall(2), depth_m=depth), torch.ones(2, SIDE, SIDE, dtype=torch.bool), cameras, 5, 50.0)
    off = (found.depth_m / depth).log()[:, SIDE // 2]
    angle = torch.atan(across)
    first = torch.stack([off[0, int((angle - a).abs().argmin())] for a in (0.3, 0.4, 0.5, 0.6)])
    second = torch.stack([off[1, int((angle - a + math.pi / 4).abs().argmin())] for a in (0.3, 0.4, 0.5, 0.6)])
    torch.testing.assert_close(first, second, atol=0.06, rtol=0.0)
    assert off.abs().max() > 0.2
