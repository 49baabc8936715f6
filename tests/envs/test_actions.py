"""Actions against trigonometry done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirage_env.envs.actions import (
    ACTION_MODES,
    DISCRETE_ACTIONS,
    PITCH_LIMIT,
    Motion,
    Pose,
    action_space,
    between,
    motion_from_action,
    moved,
    pose_from_matrix,
    pose_from_up,
    world_from_camera,
)
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.geometry.poses import rotation_from_yaw_pitch_roll

angles = st.floats(-3.1, 3.1)
tilts = st.floats(-1.4, 1.4)


def test_spaces() -> None:
    assert action_space("planar").shape == (3,)
    assert action_space("free").shape == (6,)
    assert action_space("discrete").n == len(DISCRETE_ACTIONS) == 9
    assert action_space("navigation").n == 4
    with pytest.raises(UnknownNameError, match=r'unknown action mode "planer".*did you mean "planar"'):
        action_space("planer")


def test_forward_follows_the_heading_and_not_the_tilt() -> None:
    turned_right = Pose(yaw=math.pi / 2, pitch=-0.7, roll=0.3)
    assert moved(turned_right, Motion(forward=2.0)) == pytest.approx((2.0, 0.0, 0.0, math.pi / 2, -0.7, 0.3))
    assert moved(turned_right, Motion(right=2.0)) == pytest.approx((0.0, 0.0, -2.0, math.pi / 2, -0.7, 0.3))
    assert moved(turned_right, Motion(down=1.0)).y == 1.0


def test_navigation_is_four_of_the_discrete_actions() -> None:
    four = [motion_from_action(i, "navigation", 0.25, 0.2) for i in range(4)]
    assert four == [Motion(), Motion(forward=0.25), Motion(yaw=-0.2), Motion(yaw=0.2)]


def test_each_discrete_action_does_what_its_name_says() -> None:
    after = {
        name: moved(Pose(), motion_from_action(i, "discrete", 0.25, math.radians(10)))
        for i, name in enumerate(DISCRETE_ACTIONS)
    }
    ten = math.radians(10)
    assert after["stop"] == Pose()
    assert after["forward"] == Pose(z=0.25) and after["back"] == Pose(z=-0.25)
    assert after["right"] == Pose(x=0.25) and after["left"] == Pose(x=-0.25)
    assert after["turn_right"].yaw == pytest.approx(ten) and after["turn_left"].yaw == pytest.approx(-ten)
    assert after["look_up"].pitch == pytest.approx(ten) and after["look_down"].pitch == pytest.approx(-ten)


def test_positive_pitch_looks_up_and_positive_yaw_looks_right() -> None:
    ahead = world_from_camera([Pose(pitch=0.5), Pose(yaw=0.5)])[:, :3, 2]
    assert ahead[0, 1] < 0 < ahead[1, 0]  # +y is down


def test_continuous_actions_scale_and_clip() -> None:
    assert motion_from_action([1.0, -0.5, 2.0], "planar", 0.25, 0.2) == Motion(right=-0.125, forward=0.25, yaw=0.2)
    numbers = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert motion_from_action(numbers, "free", 1.0, 10.0) == pytest.approx((0.1, 0.2, 0.3, 4.0, 5.0, 6.0))


def test_a_full_turn_comes_home() -> None:
    pose = Pose()
    for _ in range(36):
        pose = moved(pose, motion_from_action(6, "discrete", 0.25, math.radians(10)))
    torch.testing.assert_close(world_from_camera([pose])[0], torch.eye(4))


def test_pitch_is_limited_but_a_steep_photograph_may_stay() -> None:
    pose, limit = Pose(), PITCH_LIMIT["discrete"]
    for _ in range(10):
        pose = moved(pose, motion_from_action(7, "discrete", 0.25, math.radians(10)), limit)
    assert math.degrees(pose.pitch) == pytest.approx(60)
    steep = moved(Pose(pitch=-1.3), Motion(forward=1.0, pitch=-0.2), limit)
    assert steep.pitch == -1.3
    assert moved(steep, Motion(pitch=0.2), limit).pitch == pytest.approx(-1.1)


def test_sub_frames_are_even_and_end_exactly() -> None:
    start, end = Pose(yaw=math.radians(175)), Pose(x=1.0, yaw=math.radians(-175))
    way = between(start, end, 4)
    assert way[-1] == end and len(way) == 4
    assert [pose.x for pose in way] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert math.degrees(way[1].yaw) == pytest.approx(180)  # the short way round, not through zero
    assert between(start, end, 1) == (end,)


@given(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9), angles, tilts, angles))
def test_matrices_and_poses_agree(numbers: tuple[float, ...]) -> None:
    pose = Pose(*numbers)
    matrix = world_from_camera([pose])[0]
    assert matrix.dtype == torch.float32
    turned = rotation_from_yaw_pitch_roll(*torch.tensor(numbers[3:], dtype=torch.float64))
    torch.testing.assert_close(matrix[:3, :3], turned.float(), rtol=0, atol=1e-7)
    assert pose_from_matrix(matrix) == pytest.approx(pose, abs=1e-5)


@given(angles, tilts)
def test_up_tilts_the_first_camera(roll: float, pitch: float) -> None:
    """The given direction must come out as -y, and the heading as +z."""
    up = np.array([-math.sin(roll) * math.cos(pitch), -math.cos(roll) * math.cos(pitch), math.sin(pitch)])
    pose = pose_from_up(3 * up)
    rotation = world_from_camera([pose])[0, :3, :3].numpy()
    np.testing.assert_allclose(rotation @ up, [0, -1, 0], atol=1e-6)
    assert pose.yaw == pytest.approx(0, abs=1e-9)
    assert rotation[2, 2] > 0


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, 0), (0, math.nan, 0), (1, 2)])
def test_bad_up_vectors(up: tuple[float, ...]) -> None:
    with pytest.raises(InvalidValueError, match="up must"):
        pose_from_up(up)


@pytest.mark.parametrize(
    ("mode", "action", "text"),
    [
        ("planar", [0.0, 0.0], r"must have shape \(3,\), got \(2,\)"),
        ("free", [0.0] * 5 + [math.nan], "must be finite"),
        ("planar", [math.inf, 0.0, 0.0], "must be finite"),
        ("discrete", 9, "one of 0 stop, 1 forward"),
        ("discrete", -1, "one of 0 stop"),
        ("discrete", 1.5, "one of 0 stop"),
        ("discrete", math.nan, "one of 0 stop"),
        ("discrete", [1, 2], "one of 0 stop"),
        ("navigation", 4, "one of 0 stop, 1 forward, 2 turn_left, 3 turn_right; got 4"),
        ("planar", "forward", "must be made of numbers"),
        ("planar", None, "planar action must"),
    ],
)
def test_bad_actions(mode: str, action: object, text: str) -> None:
    with pytest.raises(InvalidValueError, match=text):
        motion_from_action(action, mode, 0.25, 0.2)


@pytest.mark.parametrize("mode", ACTION_MODES)
def test_samples_are_valid(mode: str) -> None:
    space = action_space(mode)
    space.seed(0)
    assert all(math.isfinite(v) for _ in range(20) for v in motion_from_action(space.sample(), mode, 0.25, 0.2))
