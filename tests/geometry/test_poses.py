import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import (
    camera_motion,
    check_cameras,
    intrinsics_from_fov,
    rigid,
    rotation_from_yaw_pitch_roll,
    yaw_pitch_roll,
)
from mirage_env.types import Cameras

ANGLES = st.floats(-3.25, 3.25)


def turned(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> torch.Tensor:
    return rotation_from_yaw_pitch_roll(*(torch.tensor(a) for a in (yaw, pitch, roll)))


def test_positive_yaw_turns_right() -> None:
    forward = turned(yaw=math.pi / 2)[:, 2]
    torch.testing.assert_close(forward, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_positive_pitch_looks_up() -> None:
    forward = turned(pitch=math.pi / 2)[:, 2]
    torch.testing.assert_close(forward, torch.tensor([0.0, -1.0, 0.0]), atol=1e-6, rtol=0)


def test_positive_roll_leans_clockwise() -> None:
    right = turned(roll=math.pi / 2)[:, 0]
    torch.testing.assert_close(right, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_pitch_follows_yaw() -> None:
    """Looking up after turning right: still to the right, and up."""
    forward = turned(yaw=math.pi / 2, pitch=math.pi / 4)[:, 2]
    torch.testing.assert_close(forward, torch.tensor([0.5**0.5, -(0.5**0.5), 0.0]), atol=1e-6, rtol=0)


@given(ANGLES, ANGLES, ANGLES)
def test_rotations_are_rotations(yaw: float, pitch: float, roll: float) -> None:
    rotation = turned(yaw, pitch, roll)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-6, rtol=0)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-5)


def test_rigid_transforms_chain_and_invert() -> None:
    world_from_body = rigid(turned(0.3, -0.2, 0.1), torch.tensor([1.0, 2.0, 3.0]))
    body_from_camera = rigid(turned(-1.0, 0.5, 2.0), torch.tensor([-4.0, 0.5, 0.25]))
    point = torch.tensor([0.3, 0.2, 0.1, 1.0])
    world_from_camera = world_from_body @ body_from_camera
    torch.testing.assert_close(world_from_camera @ point, world_from_body @ (body_from_camera @ point))
    cameras = Cameras(world_from_camera[None], torch.eye(3)[None], (4, 4))
    torch.testing.assert_close(cameras.camera_from_world[0], torch.linalg.inv(world_from_camera), atol=1e-6, rtol=1e-5)


def test_intrinsics_see_the_field_of_view() -> None:
    k = intrinsics_from_fov(math.pi / 2, (48, 64))
    torch.testing.assert_close(k, torch.tensor([[32.0, 0.0, 32.0], [0.0, 32.0, 24.0], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("fov", [0.0, -1.0, math.pi, math.nan])
def test_impossible_field_of_view(fov: float) -> None:
    with pytest.raises(InvalidValueError, match="between 0 and 180 degrees"):
        intrinsics_from_fov(fov, (8, 8))


@pytest.mark.parametrize("field", ["world_from_camera", "intrinsics_px"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_camera_that_is_not_finite_is_named(field: str, value: float) -> None:
    tensors = {"world_from_camera": torch.eye(4).repeat(4, 1, 1), "intrinsics_px": torch.eye(3).repeat(4, 1, 1)}
    tensors[field][2:, 0, 2] = value
    with pytest.raises(InvalidValueError, match="camera 2 "):
        check_cameras(Cameras(**tensors, size=(2, 2)))


def test_a_scaled_pose_is_refused() -> None:
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, :3, :3] *= 2.0
    with pytest.raises(InvalidValueError, match=r"camera 1 has a pose that is not rigid.*without scale"):
        check_cameras(Cameras(poses, torch.eye(3).repeat(2, 1, 1), (2, 2)))


def test_good_cameras_pass() -> None:
    cameras = Cameras(rigid(turned(0.3, 0.2, 0.1), torch.ones(3))[None], torch.eye(3)[None], (2, 2))
    assert check_cameras(cameras) is cameras


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (0, 0, -1.0, "camera 1 mirrors space"),
        (3, 0, 1.0, "camera 1 has a last row that is not 0 0 0 1"),
        (0, 3, 1e30, r"camera 1 is farther than 1e\+06 m"),
    ],
)
def test_poses_that_no_camera_has_are_refused(row: int, column: int, value: float, message: str) -> None:
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, row, column] = value
    with pytest.raises(InvalidValueError, match=message):
        check_cameras(Cameras(poses, torch.eye(3).repeat(2, 1, 1), (8, 8)))


def test_a_focal_length_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="camera 0 has a focal length that is not positive"):
        check_cameras(Cameras(torch.eye(4)[None], -torch.eye(3)[None], (8, 8)))


@given(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(-3.1, 3.1))
def test_angles_come_back(yaw: float, pitch: float, roll: float) -> None:
    angles = yaw_pitch_roll(turned(yaw, pitch, roll))
    torch.testing.assert_close(angles, torch.tensor([yaw, pitch, roll]), atol=2e-3, rtol=0)


def test_motion_is_told_in_the_axes_of_the_camera_before() -> None:
    """It turns right by a right angle, and then goes two metres forward, which is to the right of where it began."""
    poses = torch.stack(
        [
            rigid(turned(), torch.zeros(3)),
            rigid(turned(yaw=math.pi / 2), torch.zeros(3)),
            rigid(turned(yaw=math.pi / 2), torch.tensor([2.0, 0.0, 0.0])),
        ]
    )
    cameras = Cameras(poses, intrinsics_from_fov(1.0, (4, 4)).repeat(3, 1, 1), (4, 4))
    expected = torch.zeros(3, 6)
    expected[1, 3], expected[2, 2] = math.pi / 2, 2.0
    torch.testing.assert_close(camera_motion(cameras), expected, atol=1e-6, rtol=0)
    assert camera_motion(cameras[:1]).tolist() == [[0.0] * 6] and camera_motion(cameras[:0]).shape == (0, 6)
