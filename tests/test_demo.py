from __future__ import annotations

import numpy as np
import pytest

from mirage_env import demo
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.geometry.poses import check_cameras, intrinsics_from_fov, rotation_from_yaw_pitch_roll


@pytest.mark.parametrize("num_frames", [1, 8, 64, 200])
@pytest.mark.parametrize("name", demo.trajectory_names())
def test_paths_are_rigid_gentle_and_come_back(name: str, num_frames: int) -> None:
    import torch

    from mirage_env.types import Cameras

    poses = demo.trajectory(name, num_frames)
    assert poses.shape == (num_frames, 4, 4)
    intrinsics = intrinsics_from_fov(1.0, (8, 8)).expand(num_frames, 3, 3)
    check_cameras(Cameras(torch.from_numpy(poses).float(), intrinsics, (8, 8)))
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-9)
    np.testing.assert_allclose(poses[:, 1, 3], 0.0)  # level ground

    path = np.concatenate([np.eye(4)[None], poses])
    moved_m = np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1)
    turns = path[:-1, :3, :3].transpose(0, 2, 1) @ path[1:, :3, :3]
    turned_deg = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert moved_m.max() <= demo.MAX_STEP_M + 1e-9
    assert turned_deg.max() <= demo.MAX_TURN_DEG + 1e-6
    if num_frames >= 64:
        assert moved_m.sum() > 1.0 or turned_deg.sum() > 90.0


def test_rotations_are_those_of_the_package() -> None:
    import torch

    angles = np.array([[0.0, 0.0, 25.0, 10.0]])
    yaw, pitch = torch.tensor(np.radians(25.0)), torch.tensor(np.radians(10.0))
    expected = rotation_from_yaw_pitch_roll(yaw, pitch, torch.zeros_like(yaw)).numpy()
    np.testing.assert_allclose(demo._poses(angles)[0, :3, :3], expected, atol=1e-12)


def test_errors_name_what_exists() -> None:
    with pytest.raises(
        UnknownNameError, match=r'unknown trajectory "wlak"; known are look-around, loop, walk; did you mean "walk"'
    ):
        demo.trajectory("wlak", 8)
    with pytest.raises(InvalidValueError, match=r"at least 1 frame, got 0"):
        demo.trajectory("walk", 0)
