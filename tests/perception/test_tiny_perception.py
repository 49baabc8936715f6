from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import backproject
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception, perception_inputs
from mirage_env.types import Cameras

SMALL = PerceptionConfig(widths=(8, 16), blocks=1)


def camera(pitch: float = 0.0) -> Cameras:
    rotation = rotation_from_yaw_pitch_roll(torch.tensor([0.4]), torch.tensor([pitch]), torch.tensor([0.0]))
    return Cameras(rigid(rotation, torch.tensor([[1.0, 0.3, 2.0]])), intrinsics_from_fov(1.2, (16, 24))[None], (16, 24))


@pytest.mark.parametrize("pitch", [0.0, -0.5, 0.3])
def test_nearness_of_the_floor_is_that_of_the_plane(pitch):
    """Where the channel says 1 / d, the point at depth d lies on the floor."""
    inputs = perception_inputs(torch.zeros(1, 3, 16, 24), camera(pitch), torch.zeros(1, 2, 3), 1.5)
    nearness = inputs[:, 5]
    below = nearness > 1e-3
    assert below.any() and (pitch < 0 or not below.all())
    points = backproject(torch.where(below, 1.0 / nearness.clamp_min(1e-3), 1.0), camera(pitch))
    torch.testing.assert_close(points[..., 1][below], torch.full_like(points[..., 1][below], 1.5), atol=1e-4, rtol=1e-4)


def test_memory_channels_say_what_is_known():
    memory = torch.zeros(1, 2, 3)
    memory[0, 1, 2] = 2.0
    inputs = perception_inputs(torch.zeros(1, 3, 16, 24), camera(), memory, 1.5)
    assert inputs[0, 6, 15, 23] == 0.5 and inputs[0, 7, 15, 23] == 1.0
    assert inputs[0, 6:, 0, 0].tolist() == [0.0, 0.0]


def test_shapes_and_ranges():
    model = TinyPerception(SMALL).eval()
    torch.nn.init.normal_(model.head.weight, std=3.0)
    with torch.no_grad():
        seen = model(torch.rand(1, 3, 16, 24), camera(), torch.zeros(1, 2, 3), 1.5)
    assert seen.depth_m.shape == seen.sky.shape == seen.dynamic.shape == (1, 16, 24)
    assert bool((seen.depth_m > 0).all()) and float(seen.depth_m.max()) <= SMALL.max_depth_m


def test_mirrored_eyes_see_a_mirrored_scene_mirrored():
    """The mean of a picture's and its mirror's answers knows no left and right."""
    model = TinyPerception(replace(SMALL, mirrored=True)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    level = Cameras(rigid(torch.eye(3)[None], torch.zeros(1, 3)), camera().intrinsics_px, (16, 24))
    image, memory = torch.rand(1, 3, 16, 24), torch.rand(1, 2, 3)
    with torch.no_grad():
        seen = model(image, level, memory, 1.5)
        mirrored = model(image.flip(-1), level, memory.flip(-1), 1.5)
    torch.testing.assert_close(mirrored.depth_m.flip(-1), seen.depth_m)
    assert not torch.allclose(seen.depth_m.flip(-1), seen.depth_m)
    assert torch.equal(mirrored.sky.flip(-1), seen.sky)


def test_a_glance_is_a_look_without_the_mirror():
    model = TinyPerception(replace(SMALL, mirrored=True)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    once = TinyPerception(SMALL).eval()
    once.load_state_dict(model.state_dict())
    inputs = torch.rand(1, 3, 16, 24), camera(), torch.rand(1, 2, 3), 1.5
    with torch.no_grad():
        assert torch.equal(model.glance(*inputs).depth_m, once(*inputs).depth_m)
        assert not torch.equal(model.glance(*inputs).depth_m, model(*inputs).depth_m)


def test_widths_are_checked():
    with pytest.raises(InvalidValueError, match=r"multiples of 8, got \(10,\)"):
        PerceptionConfig(widths=(10,))
