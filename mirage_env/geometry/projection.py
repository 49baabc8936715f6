"""Back-projection and projection of pixel or latent grids (paper, Appendix A)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mirage_env.types import Cameras


def camera_rays(cameras: Cameras) -> Float[Tensor, "V h w 3"]:
    """K^-1 [u + 1/2, v + 1/2, 1] of every cell of `cameras.size`, in camera coordinates.

    Its z is 1, so that ray * z-depth is the point.
    """
    height, width = cameras.size
    k = cameras.intrinsics_px
    u = torch.arange(width, device=k.device, dtype=k.dtype) + 0.5
    v = torch.arange(height, device=k.device, dtype=k.dtype) + 0.5
    y = (v[None] - k[:, 1, 2, None]) / k[:, 1, 1, None]
    x = (u[None, None] - k[:, 0, 2, None, None] - k[:, 0, 1, None, None] * y[..., None]) / k[:, 0, 0, None, None]
    y = y[..., None].expand_as(x)
    return torch.stack([x, y, torch.ones_like(x)], -1)


def backproject(depth_m: Float[Tensor, "V h w"], cameras: Cameras) -> Float[Tensor, "V h w 3"]:
    """World point of every cell centre (Eq. 8); the cameras must already be at the depth map's resolution."""
    camera_points = camera_rays(cameras) * depth_m[..., None]
    rotation, centre = cameras.world_from_camera[:, :3, :3], cameras.world_from_camera[:, :3, 3]
    return torch.einsum("vij,vhwj->vhwi", rotation, camera_points) + centre[:, None, None]


def project(points: Float[Tensor, "N 3"], cameras: Cameras) -> tuple[Float[Tensor, "V N 2"], Float[Tensor, "V N"]]:
    """Continuous grid position (x, y) and z-depth of every point in every view (Eq. 9, before the floor).

    Positions are only meaningful where the depth is positive.
    """
    extrinsics = cameras.camera_from_world
    camera_points = torch.einsum("vij,nj->vni", extrinsics[:, :3, :3], points) + extrinsics[:, None, :3, 3]
    depth = camera_points[..., 2]
    homogeneous = torch.einsum("vij,vnj->vni", cameras.intrinsics_px, camera_points)
    safe = torch.where(depth > 0, depth, torch.ones_like(depth))
    return homogeneous[..., :2] / safe[..., None], depth
