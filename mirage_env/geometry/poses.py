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


def check_cameras(cameras: Cameras) -> Cameras:
    """The cameras themselves, or an error that names the first one that is not a finite rigid transform."""
    finite = torch.isfinite(cameras.world_from_camera).flatten(1).all(1) & torch.isfinite(
        cameras.intrinsics_px
    ).flatten(1).all(1)
    if not bool(finite.all()):
        raise InvalidValueError(f"camera {int((~finite).nonzero()[0])} has a pose or intrinsics that are not finite")
    rotation = cameras.world_from_camera[:, :3, :3]
    error = (rotation @ rotation.transpose(1, 2) - torch.eye(3, device=rotation.device)).abs().flatten(1).amax(1)
    if bool((error > 1e-3).any()):
        worst = int((error > 1e-3).nonzero()[0])
        raise InvalidValueError(
            f"world_from_camera of camera {worst} is not rigid (R R^T differs from identity by "
            f"{float(error[worst]):.2g}); pass a rotation and a translation in metres, without scale"
        )
    return cameras
