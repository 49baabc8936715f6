"""Rigid transforms, named by both ends so that they chain."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mirage_env.errors import InvalidValueError
from mirage_env.types import Cameras

DEFAULT_FOV_DEG = 70.0
"""Horizontal field of view where nobody gives one and the picture does not tell."""


def rotation_from_yaw_pitch_roll(
    yaw: Float[Tensor, "*b"], pitch: Float[Tensor, "*b"], roll: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 3 3"]:
    """Camera axes after turning right by `yaw`, then up by `pitch`, then clockwise by `roll` (radians).

    R = R_y(yaw) R_x(pitch) R_z(roll) under OpenCV axes, where y points down.
    """
    (cy, sy), (cp, sp), (cr, sr) = ((torch.cos(a), torch.sin(a)) for a in (yaw, pitch, roll))
    zero, one = torch.zeros_like(cy), torch.ones_like(cy)
    about_y = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], -1).unflatten(-1, (3, 3))
    about_x = torch.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], -1).unflatten(-1, (3, 3))
    about_z = torch.stack([cr, -sr, zero, sr, cr, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
    return about_y @ about_x @ about_z


def yaw_pitch_roll(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """The inverse of `rotation_from_yaw_pitch_roll`, in radians."""
    yaw = torch.atan2(rotation[..., 0, 2], rotation[..., 2, 2])
    pitch = torch.asin((-rotation[..., 1, 2]).clamp(-1.0, 1.0))
    return torch.stack([yaw, pitch, torch.atan2(rotation[..., 1, 0], rotation[..., 1, 1])], -1)


def camera_motion(cameras: Cameras) -> Float[Tensor, "V 6"]:
    """How each camera came from the one before: metres right, down, forward in its axes, then yaw, pitch, roll.

    Zero for the first.
    """
    poses = cameras.world_from_camera
    before_from_now = rigid(
        poses[:-1, :3, :3].transpose(1, 2) @ poses[1:, :3, :3],
        (poses[:-1, :3, :3].transpose(1, 2) @ (poses[1:, :3, 3] - poses[:-1, :3, 3])[..., None])[..., 0],
    )
    moves = torch.cat([before_from_now[:, :3, 3], yaw_pitch_roll(before_from_now[:, :3, :3])], 1)
    return torch.cat([moves.new_zeros(min(1, len(poses)), 6), moves])


def rigid(rotation: Float[Tensor, "*b 3 3"], translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4 4"]:
    """The homogeneous transform x -> rotation @ x + translation."""
    transform = torch.zeros(*rotation.shape[:-2], 4, 4, dtype=rotation.dtype, device=rotation.device)
    transform[..., :3, :3] = rotation
    transform[..., :3, 3] = translation
    transform[..., 3, 3] = 1.0
    return transform


def intrinsics_from_fov(fov_x: float, size: tuple[int, int]) -> Float[Tensor, "3 3"]:
    """Square pixels, centred principal point; `fov_x` is the horizontal field of view in radians, size is (H, W)."""
    if not 0.0 < fov_x < torch.pi:
        raise InvalidValueError(f"the field of view must lie between 0 and 180 degrees, got {fov_x * 57.29578:.1f}")
    height, width = size
    focal = 0.5 * width / float(torch.tan(torch.tensor(0.5 * fov_x, dtype=torch.float64)))
    return torch.tensor([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])


FARTHEST_M = 1e6
"""Beyond this, float32 metres can no longer tell a step."""


def check_cameras(cameras: Cameras) -> Cameras:
    """The cameras themselves, or an error that names the first that no camera can have."""
    poses, k = cameras.world_from_camera, cameras.intrinsics_px
    rotation = poses[:, :3, :3]
    error = (rotation @ rotation.transpose(1, 2) - torch.eye(3, device=poses.device)).abs().flatten(1).amax(1)
    last = poses.new_tensor([0.0, 0.0, 0.0, 1.0])
    for wrong, why in (
        (~(torch.isfinite(poses).flatten(1).all(1) & torch.isfinite(k).flatten(1).all(1)), _NOT_FINITE),
        (~(error <= 1e-3), _NOT_RIGID),
        (torch.linalg.det(rotation) < 0, "mirrors space (its determinant is negative); flip one axis"),
        ((poses[:, 3] != last).any(1), "has a last row that is not 0 0 0 1; pass world_from_camera, not transposed"),
        (poses[:, :3, 3].abs().amax(1) > FARTHEST_M, f"is farther than {FARTHEST_M:g} m from the origin; use metres"),
        ((k[:, 0, 0] <= 0) | (k[:, 1, 1] <= 0), "has a focal length that is not positive; pass K in pixels"),
    ):
        if bool(wrong.any()):
            raise InvalidValueError(f"camera {int(wrong.nonzero()[0])} {why}")
    return cameras


_NOT_FINITE = "has a pose or intrinsics that are not finite"
_NOT_RIGID = "has a pose that is not rigid; pass a rotation and a translation in metres, without scale"
