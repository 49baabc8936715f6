"""Observations lie in their spaces and say what the frame says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from mirage_env.envs.actions import Pose
from mirage_env.envs.observations import (
    OBSERVATIONS,
    Layout,
    View,
    check_depth_range,
    depth_m,
    observation_space,
    observe,
    parse_names,
)
from mirage_env.envs.occupancy import Occupancy
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.types import Cameras, Frames

LAYOUT = Layout(size=(16, 24), latent_size=(2, 3), depth_range_m=(0.1, 20.0), latent_channels=5)


@pytest.fixture
def view() -> View:
    depth = torch.linspace(0.0, 30.0, 16 * 24).reshape(1, 16, 24)
    depth[0, 0, :3] = torch.tensor([math.nan, math.inf, -1.0])
    sky = torch.zeros(1, 16, 24, dtype=torch.bool)
    sky[0, 5] = True
    rgb = torch.randint(0, 256, (1, 16, 24, 3), dtype=torch.uint8)
    remembered = torch.tensor([[[True, False, True], [False, False, True]]])
    frame = Frames(rgb, depth, sky, ~sky, remembered, Cameras(torch.eye(4)[None], torch.eye(3)[None], (16, 24)))
    goal = np.array([2.0, 0.0, 1.0])
    place, lens, known = Pose(x=1.0, yaw=0.5), np.eye(3, dtype=np.float32), Occupancy.empty(1.2)
    last_action, latent = (0.0, 0.0, 1.0, -0.5, 0.0, 0.0, 1.0), np.full((5, 2, 3), -3e4, np.float32)
    return View(frame, place, lens, LAYOUT.depth_range_m, 0.75, goal, known, last_action, latent)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_each_lies_in_its_space_and_is_fresh(name: str, view: View) -> None:
    space, value = observation_space(name, LAYOUT), observe(name, view)
    assert isinstance(space, spaces.Box)
    assert value in space and value.dtype == space.dtype
    assert not np.shares_memory(value, observe(name, view))


def test_what_they_say(view: View) -> None:
    names = ("rgb", "sky", "remembered", "chunk_phase", "world_from_camera", "goal")
    seen = observe(names, view)
    assert tuple(seen) == names and seen in observation_space(names, LAYOUT)
    np.testing.assert_array_equal(seen["rgb"], view.frame.rgb[0].numpy())
    np.testing.assert_array_equal(seen["sky"][..., 0], 255 * (np.arange(16) == 5)[:, None].repeat(24, 1))
    np.testing.assert_array_equal(seen["remembered"], [[1, 0, 1], [0, 0, 1]])
    assert seen["chunk_phase"] == 0.75
    assert seen["world_from_camera"][0] == pytest.approx([math.cos(0.5), 0.0, math.sin(0.5), 1.0])


def test_depth_is_finite_and_clipped_and_sky_is_far(view: View) -> None:
    depth = depth_m(view.frame, (0.1, 20.0))
    assert np.isfinite(depth).all() and depth.min() >= np.float32(0.1) and depth.max() == 20.0
    assert (depth[0, :3] == 20.0).all() and (depth[5] == 20.0).all()
    assert depth[2, 0] == pytest.approx(float(view.frame.depth_m[0, 2, 0]))
    grey = observe("depth_u8", view)[..., 0]
    np.testing.assert_allclose(grey / 255 * 19.9 + 0.1, depth, atol=19.9 / 255 / 2 + 1e-4)


@pytest.mark.parametrize(
    ("obs", "error", "text"),
    [
        ("rbg", UnknownNameError, 'unknown observation "rbg"; known are chunk_phase, depth.*did you mean "rgb"'),
        (("rgb", "latents"), UnknownNameError, 'unknown observation "latents"; .*did you mean "latent"'),
        ((), InvalidValueError, "at least one observation"),
        (("rgb", "rgb"), InvalidValueError, "each once"),
    ],
)
def test_bad_names(obs: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        observation_space(obs, LAYOUT)


@pytest.mark.parametrize("bad", [(2.0, 1.0), (-1.0, 1.0), (0.0, math.inf), (math.nan, 1.0), (1.0,)])
def test_bad_depth_ranges(bad: tuple[float, ...]) -> None:
    with pytest.raises(InvalidValueError, match="depth_range_m must be"):
        check_depth_range(bad)
    assert check_depth_range([0, 5]) == (0.0, 5.0)


@pytest.mark.parametrize("bad", [None, 5, [["rgb"]]])
def test_names_of_the_wrong_type_are_told(bad: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"obs must be one name or several|at least one"):
        parse_names(bad)


@pytest.mark.parametrize("bad", [None, 5, ("a", "b"), (1, 2, 3)])
def test_ranges_of_the_wrong_type_are_told(bad: Any) -> None:
    with pytest.raises(InvalidValueError, match="depth_range_m must be"):
        check_depth_range(bad)
