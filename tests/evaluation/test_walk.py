from __future__ import annotations

import math
from dataclasses import replace

import torch

from mirage_env.evaluation.walk import seen_from, seen_in_first_frame
from mirage_env.geometry.poses import rigid, rotation_from_yaw_pitch_roll


def test_what_the_first_frame_saw_of_a_wall(make_walk):
    """Moving right by d brings a wall at z into view from the right, f d / z pixels wide."""
    walk = make_walk([0.0, 0.5, -0.5])
    shift = float(walk.truth.cameras.intrinsics_px[0, 0, 0]) * 0.5 / 3.0
    columns = torch.arange(48) + 0.5
    right, left = seen_in_first_frame(walk.truth)
    assert torch.equal(right, (columns + shift < 48).expand(32, 48))
    assert torch.equal(left, (columns - shift >= 0).expand(32, 48))
    assert 0 < int((~right[0]).sum()) < 48


def test_what_stood_behind_something_was_not_seen(make_walk):
    walk = make_walk([0.0, 0.0])
    walk.truth.depth_m[0, :, :24] = 1.0
    (seen,) = seen_in_first_frame(walk.truth)
    assert not seen[:, :23].any() and seen[:, 24:].all()


def test_sky_is_seen_by_direction(make_walk):
    walk = make_walk([0.0, 0.5])
    sky = torch.ones_like(walk.truth.sky)
    truth = replace(walk.truth, sky=sky, depth_m=torch.zeros_like(walk.truth.depth_m))
    assert seen_in_first_frame(truth).all()
    turn = torch.tensor([[0.0, math.pi], [0.0, 0.0], [0.0, 0.0]])
    poses = rigid(rotation_from_yaw_pitch_roll(*turn), torch.zeros(2, 3))
    assert not seen_in_first_frame(replace(truth, cameras=replace(truth.cameras, world_from_camera=poses))).any()


def test_half_of_a_view_of_a_wall_is_seen_after_half_its_width(make_walk):
    walk = make_walk([0.0, 0.0])
    width_m = 48 / float(walk.truth.cameras.intrinsics_px[0, 0, 0]) * 3.0
    moved = make_walk([0.0, width_m / 2])
    cameras, depth = moved.truth.cameras, moved.truth.depth_m
    there = seen_from(depth[:1], cameras[:1], depth[1:], cameras[1:])
    back = seen_from(depth[1:], cameras[1:], depth[:1], cameras[:1])
    assert there.float().mean().item() == back.float().mean().item() == 0.5
