import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import backproject, camera_rays, project
from mirage_env.types import Cameras


def some_cameras(count: int, size: tuple[int, int]) -> Cameras:
    rotation = rotation_from_yaw_pitch_roll(*(torch.randn(3, count)))
    k = intrinsics_from_fov(1.1, size).repeat(count, 1, 1)
    return Cameras(rigid(rotation, torch.randn(count, 3)), k, size)


def straight_ahead(size: tuple[int, int], fov: float = math.pi / 2) -> Cameras:
    return Cameras(torch.eye(4)[None], intrinsics_from_fov(fov, size)[None], size)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_what_is_lifted_projects_back_to_its_centre(seed: int, views: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    cameras = some_cameras(views, (height, width))
    depth = torch.rand(views, height, width) * 9 + 0.5
    points = backproject(depth, cameras)
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    for view in range(views):
        position, seen = project(points[view].reshape(-1, 3), cameras[view : view + 1])
        torch.testing.assert_close(position[0], torch.stack([u, v], -1).reshape(-1, 2), atol=1e-3, rtol=0)
        torch.testing.assert_close(seen[0], depth[view].flatten(), atol=1e-4, rtol=1e-5)


def test_lifting_by_hand() -> None:
    """A camera at (1, 2, 3) turned right by 90 degrees, four pixels, f = 1: its upper left ray is (-.5, -.5, 1)."""
    yaw = torch.tensor(math.pi / 2)
    pose = rigid(rotation_from_yaw_pitch_roll(yaw, yaw * 0, yaw * 0), torch.tensor([1.0, 2.0, 3.0]))
    cameras = Cameras(pose[None], intrinsics_from_fov(math.pi / 2, (2, 2))[None], (2, 2))
    point = backproject(torch.full((1, 2, 2), 4.0), cameras)[0, 0, 0]
    # camera (-2, -2, 4): its x axis is the world's -z, its z axis the world's x
    torch.testing.assert_close(point, torch.tensor([1.0 + 4.0, 2.0 - 2.0, 3.0 + 2.0]), atol=1e-5, rtol=0)


def test_skewed_intrinsics_are_inverted() -> None:
    k = torch.tensor([[[7.0, 0.9, 3.0], [0.0, 6.0, 2.5], [0.0, 0.0, 1.0]]])
    cameras = Cameras(torch.eye(4)[None], k, (5, 6))
    centres = camera_rays(cameras) @ k[0].T
    v, u = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(6) + 0.5, indexing="ij")
    torch.testing.assert_close(centres[0], torch.stack([u, v, torch.ones_like(u)], -1), atol=1e-5, rtol=0)


def test_the_optical_axis_meets_the_middle_of_every_grid() -> None:
    """Eq. 7 scales the principal point too; with centres at integers it would drift by half a latent cell."""
    cameras = straight_ahead((128, 192))
    for size in ((128, 192), (16, 24), (8, 12), (4, 6)):
        position, _ = project(torch.tensor([[0.0, 0.0, 2.0]]), cameras.resized(size))
        assert position[0, 0].tolist() == [size[1] / 2, size[0] / 2]


def test_a_cell_centre_is_the_middle_of_its_pixels() -> None:
    """Cell (u, v) of stride 8 is the point ((u + .5) * 8, (v + .5) * 8) of the picture, between pixels 3 and 4."""
    cameras = straight_ahead((32, 48))
    latent = cameras.resized((4, 6))
    centre = backproject(torch.full((1, 4, 6), 3.0), latent).reshape(-1, 3)
    position, _ = project(centre, cameras)
    v, u = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(6) + 0.5, indexing="ij")
    torch.testing.assert_close(position[0], torch.stack([u, v], -1).reshape(-1, 2) * 8, atol=1e-4, rtol=0)


def test_resizing_keeps_rays_under_unequal_strides() -> None:
    cameras = straight_ahead((32, 48))
    corner = torch.tensor([[-1.5, -1.0, 1.5]])
    wide, _ = project(corner, cameras)
    narrow, _ = project(corner, cameras.resized((4, 24)))
    torch.testing.assert_close(narrow, wide * torch.tensor([24 / 48, 4 / 32]))


def test_depth_is_z_not_distance_and_signed() -> None:
    _, depth = project(torch.tensor([[3.0, 4.0, 12.0], [1.0, 1.0, -2.0], [1.0, 1.0, 0.0]]), straight_ahead((4, 4)))
    assert depth.tolist() == [[12.0, -2.0, 0.0]]


def test_behind_the_camera_nothing_divides_by_zero() -> None:
    position, _ = project(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, -1.0]]), straight_ahead((4, 4)))
    assert bool(torch.isfinite(position).all())
