from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mirage_env.geometry.poses import intrinsics_from_fov, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import camera_rays
from mirage_env.rollout.certificate import MAX_KEYFRAMES, Certifier
from mirage_env.types import Cameras

SIZE = (48, 64)
LENS = intrinsics_from_fov(1.2, SIZE)
Pose = tuple[float, float, float]


def frame(pose: Pose, stretch: float = 1.0, tint: float = 0.0) -> tuple[np.ndarray, ...]:
    """What a camera at (x, z, yaw) sees of a wall at z = 4, its depth stretched; half of the cells remembered."""
    x, z, yaw = pose
    matrix = torch.eye(4)
    zero = torch.zeros(())
    matrix[:3, :3] = rotation_from_yaw_pitch_roll(torch.tensor(yaw), zero, zero)
    matrix[0, 3], matrix[2, 3] = x, z
    rays = (camera_rays(Cameras(matrix[None], LENS[None], SIZE))[0] @ matrix[:3, :3].T).numpy()
    depth = (4.0 - z) / rays[..., 2]
    point = matrix[:3, 3].numpy() + depth[..., None] * rays
    rgb = (127 + 60 * np.sin(point) + tint).astype(np.uint8)
    depth = np.where(rays[..., 2] > 0, depth * stretch, 0.0).astype(np.float32)
    remembered = np.zeros((6, 8), bool)
    remembered[:, :4] = True
    return rgb, depth, matrix.numpy().astype(float), LENS.numpy().astype(float), remembered


def certificate(
    poses: list[Pose], stretches: list[float] | None = None, collisions: int = 0, together: int = 4
) -> dict:
    certifier = Certifier()
    frames = [frame(pose, stretch) for pose, stretch in zip(poses, stretches or [1.0] * len(poses), strict=True)]
    for first in range(0, len(frames), together):
        certifier.frames(*map(np.stack, zip(*frames[first : first + together], strict=True)))
    return certifier.certificate(collisions)


def test_a_true_wall_has_no_residual() -> None:
    found = certificate([(0.05 * i, 0.1 * i, 0.02 * i) for i in range(12)], collisions=3)
    assert found["reprojection_rel"] < 0.003  # what the nearest pixel of a slanted wall leaves
    assert found["reprojection_rgb"] < 0.02
    assert (found["revisits"], found["revisit_rel"], found["revisit_rgb"]) == (0, None, None)
    assert found["remembered_share"] == found["invented_share"] == 0.5
    assert found["collisions"] == 3


def test_depth_that_breathes_is_told_by_how_much() -> None:
    """Every second frame is 10 % too deep, seen from the same place: |z - d| / z is 0.1 / 1 or 0.1 / 1.1."""
    found = certificate([(0.0, 0.0, 0.0)] * 9, [1.0, 1.1] * 4 + [1.0])
    assert found["reprojection_rel"] == pytest.approx((0.1 + 0.1 / 1.1) / 2, abs=1e-4)


def test_drift_is_measured_where_the_camera_comes_back() -> None:
    away = [(0.2 * i, 0.0, 0.0) for i in range(8)]
    there_and_back = [*away, *away[::-1]]
    honest = certificate(there_and_back)
    assert honest["revisits"] > 0
    assert honest["revisit_rel"] < 0.003
    drifted = certificate(there_and_back, [1.0 + 0.02 * i for i in range(16)])
    assert drifted["revisits"] == honest["revisits"]
    assert drifted["revisit_rel"] > 0.15  # each way back is 14 to 30 % deeper
    assert drifted["reprojection_rel"] < 0.03  # from frame to frame it is hard to see


def test_staying_is_not_coming_back() -> None:
    assert certificate([(0.0, 0.0, 0.0)] * 20)["revisits"] == 0


def test_turning_away_and_back_is_a_revisit() -> None:
    turn = [math.radians(8 * i) for i in range(6)]
    found = certificate([(0.0, 0.0, yaw) for yaw in [*turn, *turn[::-1]]])
    assert found["revisits"] > 0


def test_nothing_to_compare_is_none_and_one_frame_is_enough() -> None:
    assert certificate([(0.0, 0.0, 0.0)])["remembered_share"] is None
    rgb, depth, *rest = (part[None] for part in frame((0.0, 0.0, 0.0)))
    certifier = Certifier()
    for _ in range(3):
        certifier.frames(rgb, np.zeros_like(depth), *rest)
    assert certifier.certificate(0)["reprojection_rel"] is None


def test_memory_is_bounded() -> None:
    certifier = Certifier()
    seen = [np.stack([part] * 64) for part in frame((0.0, 0.0, 0.0))]
    for _ in range(4 * 4 * MAX_KEYFRAMES // 64):
        certifier.frames(*seen)
    assert certifier._keyframes is not None and len(certifier._keyframes.points) <= MAX_KEYFRAMES


@pytest.mark.parametrize("together", [2, 7, 20])
def test_it_does_not_matter_how_many_frames_come_at_once(together: int) -> None:
    turn = [math.radians(8 * i) for i in range(6)]
    poses = [(0.1 * i, 0.0, yaw) for i, yaw in enumerate([*turn, *turn[::-1]])] + [
        (0.2 * i, 0.0, 0.0) for i in range(8)
    ]
    stretches = [1.0 + 0.01 * i for i in range(20)]
    alone = certificate(poses, stretches, together=1)
    assert alone["revisits"] > 0
    assert certificate(poses, stretches, together=together) == alone
