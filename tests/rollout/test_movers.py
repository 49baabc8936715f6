from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirage_env.demo import trajectory
from mirage_env.envs.env import WalkEnv
from mirage_env.envs.mirage import MirageEnv
from mirage_env.errors import InvalidValueError
from mirage_env.rollout import movers

SIZE = (32, 48)


def env_for(mover: str, **kwargs: Any) -> WalkEnv:
    needed = {**kwargs, **movers.env_kwargs(mover)}
    return MirageEnv("room", size=SIZE, feedback="hold", **needed)


def drive(env: WalkEnv, mover: movers.Mover, steps: int) -> tuple[np.ndarray, int]:
    """Poses from the start on, and the collisions."""
    observation, info = env.reset(seed=0)
    poses = [info["world_from_camera"]]
    for _ in range(steps):
        action = mover.act(observation, info)
        assert env.action_space.contains(action)
        observation, *_, info = env.step(action)
        poses.append(info["world_from_camera"])
    return np.stack(poses), info["collisions"]


def test_a_walk_is_smooth_repeats_by_seed_and_differs_by_seed() -> None:
    def walk(seed: int) -> np.ndarray:
        env = env_for("walk", collision="none")
        return drive(env, movers.make_mover("walk", env, np.random.default_rng(seed)), 40)[0]

    first, again, other = walk(1), walk(1), walk(2)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    headings = np.unwrap(np.arctan2(first[:, 0, 2], first[:, 2, 2]))
    turns = np.diff(headings)
    assert np.abs(turns).max() <= np.radians(10) + 1e-5
    assert np.abs(np.diff(turns)).mean() < np.abs(turns).mean()  # it keeps turning the way it turns
    assert np.linalg.norm(np.diff(first[:, :3, 3], axis=0), axis=1).min() > 0.05


def test_a_walk_turns_away_from_a_wall() -> None:
    env = env_for("walk")
    poses, collisions = drive(env, movers.make_mover("walk", env, np.random.default_rng(0)), 120)
    assert 0 < collisions < 60  # the wall is 3 m ahead; without turning nearly every step would hit it
    assert np.ptp(np.unwrap(np.arctan2(poses[:, 0, 2], poses[:, 2, 2]))) > np.radians(45)


@pytest.mark.parametrize("steps", [2, 20, 21])
def test_a_loop_comes_back_over_the_same_places(steps: int) -> None:
    env = env_for("loop", collision="none", max_episode_steps=steps)
    poses, _ = drive(env, movers.make_mover("loop", env, np.random.default_rng(3)), steps)
    half = steps // 2
    np.testing.assert_allclose(poses[half : 2 * half + 1], poses[half::-1], atol=1e-4)
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-4)


def test_a_camera_file_is_followed_exactly(tmp_path: Path) -> None:
    path = np.concatenate([np.eye(4)[None], trajectory("walk", 30)])
    tilted = np.eye(4)
    tilted[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    tilted[:3, 3] = (5, -2, 7)
    (tmp_path / "way.json").write_text(
        json.dumps((tilted @ path).tolist())
    )  # where the file's world is does not matter
    env = env_for("cameras")
    poses, _ = drive(env, movers.Follow(env, movers.follow_path(str(tmp_path / "way.json"))), 30)
    np.testing.assert_allclose(poses, path, atol=2e-5)


def test_a_jump_is_told(tmp_path: Path) -> None:
    far = np.eye(4)
    far[0, 3] = 20.0
    (tmp_path / "way.json").write_text(json.dumps([np.eye(4).tolist(), far.tolist()]))
    env = env_for("cameras")
    with pytest.raises(InvalidValueError, match=r"camera 1 is 20.00 m and 0 degrees from the one before"):
        drive(env, movers.Follow(env, movers.follow_path(str(tmp_path / "way.json"))), 2)


def test_bad_movers_are_one_sentence(tmp_path: Path) -> None:
    env, rng = env_for("walk"), np.random.default_rng(0)
    with pytest.raises(InvalidValueError, match='the mover "no:where" cannot be loaded'):
        movers.make_mover("no:where", env, rng)
    with pytest.raises(InvalidValueError, match=r"does not take mover_kwargs \{'speed': 3\}"):
        movers.make_mover("walk", env, rng, speed=3)
    with pytest.raises(InvalidValueError, match="the mover cameras needs"):
        movers.camera_files(None)
    with pytest.raises(InvalidValueError, match="no camera files at"):
        movers.camera_files(str(tmp_path))


def test_movers_are_checked_without_an_environment(tmp_path: Path) -> None:
    still = tmp_path / "still.json"
    still.write_text(json.dumps([np.eye(4).tolist()]))
    for name, kwargs, message in (
        ("no:where", {}, 'the mover "no:where" cannot be loaded'),
        ("walk", {"speed": 3}, r"does not take mover_kwargs \{'speed': 3\}"),
        ("explorer", {"path": "x"}, "does not take mover_kwargs"),
        ("policy", {"config": "explore"}, "missing a required argument: 'path'"),
        ("policy", {"path": str(tmp_path / "gone"), "config": "explore"}, "nothing is at .*gone"),
        ("cameras", {}, "the mover cameras needs"),
        ("cameras", {"path": str(tmp_path / "gone.txt")}, "no camera files at .*gone.txt"),
        ("cameras", {"path": str(still), "speed": 3}, "takes mover_kwargs.path alone, got speed too"),
        ("cameras", {"path": str(still)}, "has one camera"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            movers.check_mover(name, kwargs)
    movers.check_mover("loop", {"bend": 0.1})
    movers.check_mover("policy", {"path": str(tmp_path), "config": "explore"})
