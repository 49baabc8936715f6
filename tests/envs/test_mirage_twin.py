"""Dream and truth, stepped together; the dream is the box room here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mirage_env import world_model
from mirage_env.errors import UnknownNameError

SCENE = {"family": "room", "scene_seed": 3, "size": (32, 40), "action_mode": "discrete"}


@pytest.fixture(autouse=True)
def dream(monkeypatch: pytest.MonkeyPatch, box_world: Callable[..., Any]) -> None:
    monkeypatch.setattr(world_model, "load_world", lambda preset, size, *_: box_world(size))


def test_the_gap_is_the_psnr_between_both() -> None:
    twin, truth = gym.make("MirageTwin-v0", **SCENE), gym.make("MirageSim-v0", **SCENE)
    ours, info = twin.reset(seed=5)
    theirs, _ = truth.reset(seed=5)
    for action in (1, 6, 6):
        error = np.square(ours["rgb"].astype(float) - theirs["rgb"]).mean()
        assert info["gap_db"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-3)
        np.testing.assert_array_equal(twin.unwrapped._episode.world.shown.rgb[-1].numpy(), theirs["rgb"])
        ours, _, _, _, info = twin.step(action)
        theirs, _, _, _, other = truth.step(action)
        np.testing.assert_array_equal(info["world_from_camera"], other["world_from_camera"])


def test_the_dream_begins_with_the_true_picture(monkeypatch: pytest.MonkeyPatch, box_world: Any) -> None:
    pictures = []

    class Recorder(box_world().__class__):  # type: ignore[misc]
        def begin(self, scene: Any, seed: int) -> Any:
            pictures.append(scene.image)
            return super().begin(scene, seed)

    monkeypatch.setattr(world_model, "load_world", lambda preset, size, *_: Recorder(size))
    gym.make("MirageTwin-v0", **SCENE).reset(seed=1)
    first, _ = gym.make("MirageSim-v0", **SCENE).reset(seed=1)
    np.testing.assert_array_equal(pictures[0], first["rgb"])


@pytest.mark.parametrize("judge", ["truth", "dream"])
def test_the_judge_decides_map_and_collisions(judge: str) -> None:
    twin = gym.make("MirageTwin-v0", judge=judge, task="explore", render_mode="rgb_array", **SCENE)
    alone = gym.make("MirageSim-v0", task="explore", **SCENE)
    twin.reset(seed=2)
    alone.reset(seed=2)
    same = []
    for _ in range(12):
        _, reward, _, _, info = twin.step(1)
        _, true_reward, _, _, true_info = alone.step(1)
        same.append(reward == true_reward and info["collided"] == true_info["collided"])
    assert all(same) == (judge == "truth")
    assert twin.render().shape == (32, 80, 3)


def test_point_goal_is_scored_on_the_truth() -> None:
    twin = gym.make("MirageTwin-v0", task="point_goal", obs=("rgb", "goal"), **SCENE)
    alone = gym.make("MirageSim-v0", task="point_goal", obs=("rgb", "goal"), **SCENE)
    np.testing.assert_array_equal(twin.reset(seed=4)[0]["goal"], alone.reset(seed=4)[0]["goal"])
    assert twin.unwrapped._episode.task == alone.unwrapped._episode.task


def test_bad_judge() -> None:
    with pytest.raises(UnknownNameError, match='unknown judge "both"; known are dream, truth'):
        gym.make("MirageTwin-v0", judge="both", **SCENE)
