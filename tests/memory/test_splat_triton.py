"""The CUDA kernel through Triton's interpreter; it has never run on a GPU."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with torch for CUDA; pip install triton runs this on a CPU")
if torch.cuda.is_available():
    pytest.skip("a GPU is at hand, which the interpreter would replace", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined

from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.memory import splat_torch
from mirage_env.memory.splat import view_axes
from mirage_env.memory.splat_torch import Scene
from mirage_env.memory.splat_triton import frontmost_many
from mirage_env.types import Cameras

SIZE = (5, 7)


def looking_around(views: int) -> Cameras:
    angles = torch.randn(3, views) * torch.tensor([[3.0], [0.5], [0.2]])
    pose = rigid(rotation_from_yaw_pitch_roll(*angles), torch.randn(views, 3))
    return Cameras(pose, intrinsics_from_fov(1.2, SIZE).repeat(views, 1, 1), SIZE)


def scene(points: torch.Tensor, ids: torch.Tensor, views: int, share: float) -> Scene:
    cameras = looking_around(views)
    scene = Scene(points, ids, *view_axes(cameras), SIZE)
    if not share:
        return scene
    return scene._replace(footprint_m=torch.rand(len(points)), focal=cameras.intrinsics_px[:, 0, 0], same_surface=share)


def assert_equal_torch(scenes: list[Scene]) -> None:
    results = frontmost_many(scenes)
    assert len(results) == len(scenes)
    for one, result in zip(scenes, results, strict=True):
        for mine, other in zip(result, splat_torch.frontmost(one), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("share", [0.0, 0.3], ids=["frontmost", "best-fitting"])
@pytest.mark.parametrize("lattice", [False, True], ids=["scattered", "full of ties and borders"])
def test_ragged_worlds_equal_the_torch_kernel(lattice: bool, share: float) -> None:
    counts, views = (600, 0, 5, 300), (3, 2, 0, 4)
    clouds = [(torch.randn(n, 3) * 3, torch.randperm(n) if n == 300 else torch.arange(n)) for n in counts]
    if lattice:
        clouds = [((points * 2).round() / 2, ids) for points, ids in clouds]
    scenes = [scene(*cloud, v, share) for cloud, v in zip(clouds, views, strict=True)]
    assert int((frontmost_many(scenes)[0][0] >= 0).sum()) > 10
    assert_equal_torch(scenes)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy, and says when numbers overflow
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 0.0, 1e-30])
def test_points_where_none_should_be_seen(bad: float, share: float) -> None:
    points = torch.tensor([[bad, bad, bad], [0.0, bad, 1.0], [0.0, 0.0, bad], [0.0, 0.0, -1.0]])
    one = scene(points, torch.arange(4), 6, share)._replace(centres=torch.zeros(6, 3))
    if share:
        one = one._replace(footprint_m=torch.tensor([bad, 1.0, bad, bad]))
    assert_equal_torch([one])


def test_nothing_to_see() -> None:
    ((index, _, _),) = frontmost_many([scene(torch.zeros(0, 3), torch.arange(0), 2, 0.3)])
    assert index.shape == (2, *SIZE) and bool((index == -1).all())
