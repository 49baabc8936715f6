import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.projection import backproject, camera_rays, project
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY, make_scene, render, visible_depth
from mirage_env.simulator.trajectories import sample_trajectory
from mirage_env.types import Cameras


def show(scene, cameras, time=0.0):
    views = len(cameras)
    return render([scene], torch.zeros(views, dtype=torch.int64), cameras, torch.full((views,), time))


def test_depth_of_a_box_room_is_the_analytic_one(box_room, cameras_at):
    width, height, depth = 4.0, 2.5, 6.0
    cameras = cameras_at([[0.3, -1.2, -0.7]] * 4, [0.0, 0.5, 2.0, -1.3], pitch=0.1)
    frames = show(box_room, cameras)
    rays = torch.einsum("vij,vhwj->vhwi", cameras.world_from_camera[:, :3, :3].double(), camera_rays(cameras).double())
    eye = torch.tensor([0.3, -1.2, -0.7], dtype=torch.float64)
    low, high = torch.tensor([-width / 2, -height, -depth / 2]), torch.tensor([width / 2, 0.0, depth / 2])
    expected = (torch.where(rays > 0, high - eye, low - eye) / rays).amin(-1)
    assert torch.allclose(frames.depth_m.double(), expected, rtol=2e-6, atol=2e-6)
    assert not frames.sky.any() and not frames.dynamic.any() and frames.remembered.shape == (4, 8, 8)


def test_a_turned_box_and_an_ellipsoid_match_a_slow_search_along_each_ray(box_room, only, cameras_at):
    for ellipsoid in (False, True):
        scene = only(
            box_room,
            torch.tensor([[0.2, -1.0, 1.5]]),
            torch.tensor([[0.6, 0.4, 0.3]]),
            [[-5.0, -5.0, 5.0, 5.0]],
            0.7,
            ellipsoid,
        )
        cameras = cameras_at([[0.0, -1.4, -0.5]], [0.1], size=(32, 32))
        frames = show(scene, cameras)
        t = torch.linspace(0.0, 4.0, 2001, dtype=torch.float64)
        rays = (camera_rays(cameras)[0].double() @ cameras.world_from_camera[0, :3, :3].double().T).reshape(-1, 1, 3)
        at = cameras.world_from_camera[0, :3, 3].double() + rays * t[:, None] - scene.centre[0].double()
        cos, sin = scene.yaw[0].double().cos(), scene.yaw[0].double().sin()
        local = torch.stack([cos * at[..., 0] - sin * at[..., 2], at[..., 1], sin * at[..., 0] + cos * at[..., 2]], -1)
        unit = local / scene.half[0].double()
        inside = (unit.square().sum(-1) if ellipsoid else unit.abs().amax(-1)) <= 1
        hit = inside.any(1).reshape(32, 32)
        assert 20 < int(hit.sum()) < 800
        assert int((hit == frames.sky[0]).sum()) <= 2  # grazing rays may fall between the search's steps
        both = hit & ~frames.sky[0]
        expected = t[inside.to(torch.uint8).argmax(1)].reshape(32, 32)
        assert (frames.depth_m[0][both] - expected[both]).abs().max() < 4e-3


def test_sky_is_what_no_object_covers_and_has_no_depth(cameras_at):
    scene = make_scene(4, "courtyard")
    frames = show(scene, cameras_at([[0.0, -1.5, 0.0]], [0.3], pitch=1.2))
    assert frames.sky.float().mean() > 0.5
    assert (frames.depth_m[frames.sky] == 0).all() and (frames.depth_m[~frames.sky] > 0).all()


def test_the_dynamic_mask_is_exactly_what_differs_without_the_walkers(cameras_at):
    scene = next(s for s in (make_scene(seed, "room") for seed in range(40)) if len(s.period_s))
    still = scene.mover < 0
    names = (
        "centre",
        "half",
        "yaw",
        "ellipsoid",
        "mover",
        "texture",
        "tint",
        "uv_scale",
        "uv_offset",
        "uv_turned",
        "glow",
    )
    alone = replace(scene, **{n: getattr(scene, n)[still] for n in names})
    middle = 0.5 * (scene.path_from[0] + scene.path_to[0])
    start = [float(middle[0]) - 1.2, -1.3, float(middle[2])]
    seen = 0
    for time in (0.0, 1.0, 2.0, 3.0):
        cameras = cameras_at([start] * 2, [1.57, 1.2])
        with_walkers, without = show(scene, cameras, time), show(alone, cameras, time)
        assert torch.equal(with_walkers.dynamic, with_walkers.depth_m != without.depth_m)
        seen += int(with_walkers.dynamic.sum())
    assert seen > 100


@pytest.mark.parametrize("family", [*FAMILIES, HELD_OUT_FAMILY])
def test_a_point_seen_by_one_view_lies_on_the_surface_that_another_sees(family, cameras_at):
    scene = make_scene(8, family)
    pose = sample_trajectory(scene, np.random.default_rng(1), "orbit", 5)[[0, 3]]
    cameras = Cameras(pose, cameras_at([[0.0] * 3], [0.0]).intrinsics_px.expand(2, 3, 3), (64, 64))
    frames = show(scene, cameras)
    usable = ~frames.sky[0] & ~frames.dynamic[0]
    points = backproject(frames.depth_m[:1], cameras[:1])[0][usable]
    position, depth = (t[0] for t in project(points, cameras[1:]))
    inside = (depth > 0.1) & (position >= 0).all(1) & (position < 64).all(1)
    cell = position[inside].long()
    there = torch.where(frames.sky[1], 1e9, frames.depth_m[1])[cell[:, 1], cell[:, 0]]
    gap = there - depth[inside]
    assert len(gap) > 500
    # Half a pixel of slope apart, unless something nearer hides the point.
    assert (gap < 0.04 + 0.08 * depth[inside]).float().mean() > 0.97
    assert (gap.abs() < 0.04 + 0.08 * depth[inside]).float().mean() > 0.7


def test_a_batch_gives_the_same_bits_as_one_view_alone(cameras_at):
    scenes = [make_scene(3, "room"), make_scene(4, HELD_OUT_FAMILY), make_scene(9, "courtyard")]
    poses = torch.cat([sample_trajectory(s, np.random.default_rng(2), "jerky", 4) for s in scenes])
    lens = cameras_at([[0.0] * 3], [0.0], (32, 48)).intrinsics_px.expand(12, 3, 3)
    cameras = Cameras(poses, lens, (32, 48))
    index = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    times = torch.arange(12.0)
    batch = render(scenes, index[mixed], Cameras(poses[mixed], lens, (32, 48)), times[mixed])
    for place, view in enumerate(mixed.tolist()):
        alone = render(
            [scenes[int(index[view])]],
            torch.zeros(1, dtype=torch.int64),
            cameras[view : view + 1],
            times[view : view + 1],
        )
        for name in ("rgb", "depth_m", "sky", "dynamic"):
            assert torch.equal(getattr(batch, name)[place], getattr(alone, name)[0]), name


def test_smoothing_edges_changes_colours_only(box_room, monkeypatch, cameras_at):
    module = sys.modules["mirage_env.simulator.render"]
    scene = make_scene(12, "room")
    cameras = cameras_at([[0.0, -1.4, 0.0]] * 2, [0.0, 1.5])
    smooth = show(scene, cameras)
    monkeypatch.setattr(module, "_edges", lambda key: torch.zeros_like(key, dtype=torch.bool))
    rough = show(scene, cameras)
    for name in ("depth_m", "sky", "dynamic"):
        assert torch.equal(getattr(smooth, name), getattr(rough, name))
    changed = (smooth.rgb != rough.rgb).any(-1).float().mean()
    assert 0.005 < changed < 0.4


def test_visible_depth_is_the_depth_of_the_picture(cameras_at):
    scene = make_scene(5, "apartment")
    cameras = cameras_at([[-1.0, -1.4, -1.0]] * 2, [0.0, 2.5], size=(32, 32))
    frames = show(scene, cameras)
    depth = visible_depth(scene, cameras)
    assert torch.equal(torch.where(frames.sky, 0.0, depth), frames.depth_m)


def test_sizes_must_fit_the_tiles(box_room, cameras_at):
    with pytest.raises(InvalidValueError, match="multiples of 8, got 60 x 64"):
        show(box_room, cameras_at([[0.0, -1.0, 0.0]], [0.0], size=(60, 64)))
