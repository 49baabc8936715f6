from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mirage_env.errors import InvalidValueError, MirageError, WeightsError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.perception import ComposedPerception
from mirage_env.perception.composed import ComposedConfig, OutsideModel
from mirage_env.perception.depth_anything3 import DepthAnything3, DepthAnything3Config, load_network, pose_scale
from mirage_env.types import Cameras

SIZE = (56, 84)


def rigid(count: int, generator: torch.Generator) -> torch.Tensor:
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))[0]
    poses[:, :3, :3] *= torch.linalg.det(poses[:, :3, :3])[:, None, None]
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator)
    return poses


def line(count: int, step_m: float = 0.25) -> torch.Tensor:
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 2, 3] = -step_m * torch.arange(count)
    return poses


def shrunk(known: torch.Tensor, by: float, generator: torch.Generator) -> torch.Tensor:
    """The same cameras in a world that is turned and `by` times smaller."""
    turn = torch.eye(4)
    turn[:3, :3] = rigid(1, generator)[0, :3, :3]
    turned = known @ torch.linalg.inv(turn)
    turned[:, :3, 3] /= by
    return turned


@pytest.mark.parametrize("cameras", ["anyhow", "on a straight line", "two"])
def test_scale_from_poses_survives_what_environments_do(cameras):
    generator = torch.Generator().manual_seed(0)
    known = {"anyhow": rigid(6, generator), "on a straight line": line(5), "two": line(2)}[cameras]
    assert pose_scale(shrunk(known, 2.5, generator), known) == pytest.approx(2.5, rel=1e-4)


def test_cameras_that_stay_give_no_scale():
    turning = rigid(4, torch.Generator().manual_seed(1))
    turning[:, :3, 3] = 0.0
    assert pose_scale(turning, turning) is None
    assert pose_scale(turning, line(4)) is None and pose_scale(line(1), line(1)) is None


class FakeMetric(nn.Module):
    """A wall at output 1, with sky above the middle."""

    def forward(self, x):
        depth = torch.ones(x.shape[0], 1, *x.shape[3:])
        sky = torch.zeros_like(depth)
        sky[..., : x.shape[3] // 2, :] = 0.9
        return {"depth": depth, "sky": sky}


class FakeAnyView(nn.Module):
    """Sees everything four times too small, and knows that."""

    cam_enc = nn.Identity()

    def forward(self, x, extrinsics, intrinsics):
        self.told = extrinsics
        moved = extrinsics.clone()
        moved[..., :3, 3] /= 4.0
        self.shrink = float(extrinsics[0, -1, :3, 3].norm())
        return {"depth": torch.ones(1, x.shape[1], *x.shape[3:]), "extrinsics": moved[:, :, :3]}


def cameras(world_from_camera: torch.Tensor) -> Cameras:
    return Cameras(world_from_camera, intrinsics_from_fov(1.0, SIZE).expand(len(world_from_camera), 3, 3), SIZE)


def eyes(**changes) -> DepthAnything3:
    return DepthAnything3(FakeMetric(), FakeAnyView(), DepthAnything3Config(longer_side_px=42, **changes))


def test_a_single_view_is_metric_by_its_focal_length():
    one = cameras(torch.eye(4)[None])
    depth, sky = eyes()(torch.zeros(1, 3, *SIZE), one)
    assert depth.shape == (1, *SIZE)
    focal_seen = float(one.resized((28, 42)).intrinsics_px[0].diagonal()[:2].mean())
    torch.testing.assert_close(depth, torch.full_like(depth, focal_seen / 300.0))
    assert bool(sky[0, 0].all()) and not bool(sky[0, -1].any())


def test_turning_on_the_spot_is_seen_view_by_view():
    turning = rigid(3, torch.Generator().manual_seed(2))
    turning[:, :3, 3] = 1.0
    _, sky = eyes()(torch.zeros(3, 3, *SIZE), cameras(turning))
    assert sky is not None  # only the metric network tells the sky


def test_travelling_cameras_are_seen_together_in_metres():
    model = eyes()
    path = cameras(torch.linalg.inv(line(5)))
    depth, sky = model(torch.zeros(5, 3, *SIZE), path)
    assert sky is None
    # it was told positions over their median distance, 0.5 m, and saw a quarter of that: 1 output is 2 m
    torch.testing.assert_close(depth, torch.full_like(depth, 2.0))
    torch.testing.assert_close(model.multi_view.told[0, 0], torch.eye(4))
    assert float(model.multi_view.told[0, -1, 2, 3]) == pytest.approx(-2.0)


def test_networks_in_each_others_place_are_told():
    with pytest.raises(InvalidValueError, match="weights must be a metric network"):
        DepthAnything3(FakeAnyView(), None, DepthAnything3Config())
    with pytest.raises(InvalidValueError, match="multi_view must be an any-view network"):
        DepthAnything3(FakeMetric(), FakeMetric(), DepthAnything3Config())


def test_a_missing_package_names_the_command(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("depth_anything_3"):
            raise ImportError("No module named 'depth_anything_3'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MirageError, match=r'run: pip install "mirage-env\[da3\]" && pip install --no-deps depth-any'):
        load_network(tmp_path)


def test_composed_eyes_join_depth_and_masks():
    images, view = torch.zeros(1, 3, *SIZE), cameras(torch.eye(4)[None])
    memory = torch.zeros(1, 4, 6)

    def depth(images, cameras):
        far = torch.full((1, *SIZE), 500.0)
        far[:, 0] = torch.nan
        return far, None

    def masks(images):
        moving = torch.zeros(1, *SIZE, dtype=torch.bool)
        moving[:, :, 0] = True
        return moving, ~moving

    seen = ComposedPerception(depth, masks, max_depth_m=80.0)(images, view, memory, 1.2)
    assert bool(torch.isinf(seen.depth_m[:, 0]).all()) and bool((seen.depth_m[:, 1:] == 80.0).all())
    assert torch.equal(seen.dynamic, ~seen.sky)
    blind = ComposedPerception()(images, view, memory, 1.2)
    assert bool(torch.isinf(blind.depth_m).all()) and not bool((blind.sky | blind.dynamic).any())


def test_an_unknown_model_names_those_that_there_are(monkeypatch):
    config = ComposedConfig(depth=OutsideModel("depth-anythin-3", "."))
    with pytest.raises(MirageError, match=r'unknown depth model "depth-anythin-3"; .* you mean "depth-anything-3"'):
        config.load(torch.device("cpu"), torch.float32)
    entry = SimpleNamespace(name="map-anything", load=lambda: lambda weights, options, device, dtype: FakeMetric())
    monkeypatch.setattr("mirage_env.perception.composed.entry_points", lambda group: [entry])
    loaded = ComposedConfig(depth=OutsideModel("map-anything", ".")).load(torch.device("cpu"), torch.float32)
    assert isinstance(loaded.depth, FakeMetric)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    pytest.importorskip("depth_anything_3", reason="depth-anything-3 is installed by hand, see docs/full-size.md")
    from benchmarks.tiny_checkpoints import depth_anything

    folder = tmp_path_factory.mktemp("da3")
    return depth_anything(folder / "metric", metric=True), depth_anything(folder / "any-view", metric=False)


def test_the_real_networks_load_and_see(released):
    metric, any_view = released
    choice = OutsideModel("depth-anything-3", str(metric), {"multi_view": str(any_view), "longer_side_px": 84})
    perception = ComposedConfig(depth=choice).load(torch.device("cpu"), torch.float32)
    images = torch.rand(5, 3, *SIZE) * 2 - 1
    for poses in (torch.eye(4).repeat(5, 1, 1), torch.linalg.inv(line(5))):
        before = torch.random.get_rng_state()
        seen = perception(images, cameras(poses), torch.zeros(5, 4, 6), 1.2)
        assert torch.equal(before, torch.random.get_rng_state())
        again = perception(images, cameras(poses), torch.zeros(5, 4, 6), 1.2)
        assert seen.depth_m.shape == (5, *SIZE) and torch.equal(seen.depth_m[~seen.sky], again.depth_m[~seen.sky])


def test_weights_that_do_not_fit_are_told(released, tmp_path):
    metric, any_view = released
    (tmp_path / "config.json").write_text((metric / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((any_view / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"does not fit tiny-metric \(.*\); fetch it again"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_text('{"model_name": "da4"}')
    with pytest.raises(WeightsError, match="holds 'da4', expected one of da3-base"):
        load_network(tmp_path)
    assert "torchvision" not in sys.modules
