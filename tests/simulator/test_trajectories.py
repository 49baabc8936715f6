import numpy as np
import pytest
import torch

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.simulator import (
    FAMILIES,
    HELD_OUT_FAMILY,
    KINDS,
    free,
    make_scene,
    sample_clip,
    sample_clips,
    sample_trajectory,
)


@pytest.mark.parametrize("family", [*FAMILIES, HELD_OUT_FAMILY])
def test_paths_stay_free_and_within_the_action_space(family):
    scene = make_scene(21, family)
    for number, kind in enumerate((*KINDS, "bounce")):
        pose = sample_trajectory(scene, np.random.default_rng(number), kind, 20)
        assert pose.shape == (20, 4, 4) and pose.dtype == torch.float32
        position = pose[:, :3, 3]
        assert free(scene, position[:, [0, 2]], 0.199 if kind == "bounce" else 0.249).all()
        assert (position[:, 1] >= -1.7).all() and (position[:, 1] <= -0.9).all()
        step = torch.einsum("tji,tj->ti", pose[:-1, :3, :3], position[1:] - position[:-1])
        assert step[:, [0, 2]].abs().max() < 0.25 * 1.05  # a pitched camera sees a level step under a small angle
        ahead = pose[:, :3, 2]
        heading = torch.atan2(ahead[:, 0], ahead[:, 2])
        turn = (heading[1:] - heading[:-1] + np.pi) % (2 * np.pi) - np.pi
        assert turn.abs().max() < np.deg2rad(10) + 1e-4


def test_a_loop_returns_to_its_start():
    scene = make_scene(22, "apartment")
    pose = sample_trajectory(scene, np.random.default_rng(0), "loop", 17)
    assert torch.equal(pose[0], pose[-1])
    assert not torch.equal(pose[0], pose[8])


def test_a_body_that_bounces_goes_straight_up_to_things_and_turns_there():
    scene = make_scene(23, "room")
    pose = sample_trajectory(scene, np.random.default_rng(0), "bounce", 120)
    moved = (pose[1:, :3, 3] - pose[:-1, :3, 3]).norm(dim=1) > 1e-4
    turned = (pose[1:, :3, 2] - pose[:-1, :3, 2]).norm(dim=1) > 1e-4
    assert moved.any() and turned.any() and not (moved & turned).any()
    begins = (turned[1:] & ~turned[:-1]).nonzero()[:, 0] + 1
    assert len(begins) > 1
    assert not free(scene, pose[begins][:, [0, 2], 3], 0.2 + 0.25).any()  # no room for a whole step


def test_clips_follow_from_their_seed_and_do_not_depend_on_company():
    together = sample_clips([31, 32, 33], 3, (32, 32))
    alone = sample_clip(32, 3, (32, 32))
    for name in ("rgb", "depth_m", "sky", "dynamic"):
        assert torch.equal(getattr(together[1], name), getattr(alone, name))
    assert torch.equal(together[1].cameras.world_from_camera, alone.cameras.world_from_camera)
    assert len(together) == 3 and len(alone) == 3


def test_the_field_of_view_stays_in_its_range():
    for clip in sample_clips([41, 42], 1, (16, 16), family="room", fov_deg=(60.0, 70.0)):
        k = clip.cameras.intrinsics_px[0]
        assert 60.0 <= float(torch.rad2deg(2 * torch.atan(8 / k[0, 0]))) <= 70.0


def test_views_are_seldom_held_before_a_wall():
    clips = sample_clips(list(range(100, 112)), 1, (32, 32))
    assert np.median([float(c.depth_m[~c.sky].median()) for c in clips]) > 1.3


def test_bad_requests_are_refused():
    scene = make_scene(1, "room")
    with pytest.raises(UnknownNameError, match=r'unknown trajectory kind "wlk".*did you mean "walk"'):
        sample_trajectory(scene, np.random.default_rng(0), "wlk", 4)
    with pytest.raises(InvalidValueError, match="at least 1 frame, got 0"):
        sample_trajectory(scene, np.random.default_rng(0), "walk", 0)
