"""A moment of a walk is a value: kept, gone back to, continued many times over, written to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence

from mirage_env.envs.env import WalkEnv
from mirage_env.envs.tasks import Verdict
from mirage_env.errors import InvalidValueError, SavedWorldError
from mirage_env.values import StoredValues

MakeEnv = Callable[..., WalkEnv]
MODEL: dict[str, Any] = {
    "size": (48, 48),
    "obs": ("rgb", "depth", "last_action"),
    "task": {"explore": 1.0, "point_goal": 0.5},
}


class Lottery:
    """Pays by chance, so that a replay needs the random numbers, too."""

    def begin(self, moment: Any, np_random: np.random.Generator) -> Any:
        return np_random

    def judge(self, state: Any, moment: Any) -> Verdict:
        return Verdict(float(moment.pose.z), state=state)


def actions(env: Any, count: int) -> list[Any]:
    env.action_space.seed(5)
    return [env.action_space.sample() for _ in range(count)]


def walk(env: Any, given: list[Any]) -> list[Any]:
    return [env.step(action) for action in given]


@pytest.mark.parametrize(("env_id", "chunk"), [("Mirage-v0", 1), ("MirageSim-v0", 3), ("MirageTwin-v0", 2)])
def test_restored_saved_and_forked_runs_repeat_bit_for_bit(env_id: str, chunk: int, tmp_path: Path) -> None:
    scene = {} if env_id == "Mirage-v0" else {"family": "room", "scene_seed": 3}
    steps = 19 if env_id == "Mirage-v0" else 8  # 16 chunks after the third step
    kwargs = {**MODEL, **scene, "chunk": chunk, "max_episode_steps": steps}
    env = gym.make(env_id, **kwargs)
    env.reset(seed=0)
    given = actions(env, steps)
    walk(env, given[:3])
    here, path = env.unwrapped.snapshot(), env.unwrapped.save(tmp_path / "here.world")
    (fork,) = env.unwrapped.fork(1)
    ahead = walk(env, given[3:])
    assert ahead[-1][3] is True

    again = env.unwrapped.restore(here)
    assert again[0] in env.observation_space and again[1]["generated"] is (chunk != 2)
    assert data_equivalence(walk(env, given[3:]), ahead, exact=True)
    assert data_equivalence(walk(fork, given[3:]), ahead, exact=True)
    other = gym.make(env_id, **kwargs)
    other.reset(seed=9)
    other.unwrapped.restore(path)
    assert data_equivalence(walk(other, given[3:]), ahead, exact=True)
    draws = [one.unwrapped.np_random.random() for one in (env, fork, other)]
    assert len(set(draws)) == 1


def test_forks_go_their_own_ways_and_share_their_past() -> None:
    env = gym.make("Mirage-v0", size=(48, 48)).unwrapped
    env.reset(seed=0)
    walk(env, actions(env, 3))
    before = env.snapshot()
    forks = env.fork(3)
    for index, fork in enumerate(forks):
        walk(fork, [np.array([0.5, 0.0, turn], np.float32) for turn in (index - 1.0,) * 2])
    poses = {tuple(fork.pose) for fork in forks}
    assert len(poses) == 3 and env.snapshot().episode is before.episode
    past = [frame.latents.data_ptr() for frame in before.episode.world.keyframes]
    for fork in forks:
        world = fork.snapshot().episode.world
        assert [frame.latents.data_ptr() for frame in world.keyframes][: len(past)] == past
        assert all(frame.latents.untyped_storage().nbytes() == frame.latents.nbytes for frame in world.keyframes)
        tiles, kept = fork.occupancy.tiles, before.episode.occupancy.tiles
        assert sum(tile is old for tile, old in zip(tiles, kept, strict=True)) > len(tiles) // 2
        assert fork.world is env.world and fork.action_space is not env.action_space
    with pytest.raises(InvalidValueError, match="the number of forks must be a whole number of at least 1, got 0"):
        env.fork(0)


def test_a_saved_world_is_where_episodes_begin(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {**MODEL, "size": (40, 40), "family": "room", "scene_seed": 3}
    env = gym.make("MirageSim-v0", **kwargs, chunk=2)
    env.reset(seed=0)
    walk(env, actions(env, 3))  # one step is pending
    path = env.unwrapped.save(tmp_path / "room.world")
    there, known_m3 = env.unwrapped.pose, env.unwrapped.occupancy.known_m3

    for made, options in [
        (gym.make("MirageSim-v0", **{**kwargs, "task": "free"}, world=path), None),
        (gym.make("MirageSim-v0", **kwargs), {"world": str(path)}),
        (gym.make("MirageSim-v0", **kwargs), {"world": env.unwrapped.snapshot()}),
    ]:
        obs, info = made.reset(seed=4, options=options)
        assert obs in made.observation_space and info["generated"] is True and info["collisions"] == 0
        assert made.unwrapped.pose == there and made.unwrapped.steps == 0
        assert info["known_m3"] >= known_m3
        made.step(made.action_space.sample())
    env.unwrapped.restore(path)
    moved = np.eye(4, dtype=np.float32)
    _, info = made.reset(options={"world": path, "world_from_camera": moved})
    np.testing.assert_array_equal(info["world_from_camera"], moved)
    with pytest.raises(InvalidValueError, match="leave out either world or scene_seed"):
        made.reset(options={"world": path, "scene_seed": 2})
    with pytest.raises(InvalidValueError, match="a saved world is a path or a snapshot, got int"):
        made.reset(options={"world": 3})
    with pytest.raises(InvalidValueError, match="give one of image, images and world"):
        gym.make("Mirage-v0", image="room", world=path)


def test_what_does_not_fit_is_told(box_room: MakeEnv, tmp_path: Path) -> None:
    env = gym.make("MirageSim-v0", size=(40, 40), family="room", scene_seed=3, task="point_goal").unwrapped
    env.reset(seed=0)
    path, here = env.save(tmp_path / "a.world"), env.snapshot()
    task = gym.make("MirageSim-v0", size=(40, 40), task="explore").unwrapped
    world = gym.make("Mirage-v0", size=(48, 48), task="point_goal").unwrapped
    small = gym.make("MirageSim-v0", size=(32, 32), task="point_goal").unwrapped
    for saved in (path, here):
        with pytest.raises(SavedWorldError, match="taken in the task PointGoal, and this one is Explore; begin a new"):
            task.restore(saved)
        with pytest.raises(SavedWorldError, match="kind SimulatorWorld, but here kind is WorldModel; make the env"):
            world.restore(saved)
        with pytest.raises(SavedWorldError, match="size 40 x 40, but here size is 32 x 32"):
            small.restore(saved)
    with pytest.raises(SavedWorldError, match="no saved world at"):
        env.restore(tmp_path / "none.world")
    world.reset(seed=0)
    dreamt = world.snapshot()
    foreign = dreamt._replace(world={**dreamt.world, "preset": "another"})
    with pytest.raises(SavedWorldError, match="with preset another, but here preset is mirage-tiny"):
        world.restore(foreign)

    half = box_room(chunk=3)
    half.reset(seed=0)
    walk(half, actions(half, 2))
    short = box_room(chunk=2)
    short.reset(seed=0)
    before = short.snapshot().episode
    with pytest.raises(SavedWorldError, match=r"2 steps into a chunk, but here chunk is 2; make .* at least 3"):
        short.restore(half.snapshot())
    with pytest.raises(SavedWorldError, match="the random numbers of this snapshot are none that can go on here"):
        half.restore(half.snapshot()._replace(np_random={}))
    assert short.snapshot().episode is before

    mine = box_room(task=Lottery())
    mine.reset(seed=0)
    with pytest.raises(InvalidValueError, match=r"a Generator cannot be saved; a state is made of"):
        mine.save(tmp_path / "b.world")
    assert not (tmp_path / "b.world").exists()


@pytest.mark.parametrize(
    ("made", "other", "message"),
    [
        (
            {"task": "point_goal", "task_kwargs": {"radius_m": 0.4}},
            {"task": "point_goal"},
            "in the task PointGoal with radius_m 0.4, but here radius_m is 0.5; make the environment as it was made",
        ),
        (
            {"task": {"explore": 1.0}},
            {"task": {"explore": 2.0}},
            "in the task Explore with explore/weight 1.0, but here explore/weight is 2.0; make the environment",
        ),
        (
            {"task": {"explore": 1, "point_goal": 1}, "task_kwargs": {"point_goal": {"must_stop": False}}},
            {"task": {"explore": 1, "point_goal": 1}},
            "with point_goal/must_stop False, but here point_goal/must_stop is True; make the environment",
        ),
    ],
)
def test_a_task_with_other_parameters_is_another(
    box_room: MakeEnv, tmp_path: Path, made: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    env, another = box_room(**made), box_room(**other)
    env.reset(seed=0)
    here, path = env.snapshot(), env.save(tmp_path / "a.world")
    box_room(**made).restore(path)
    for saved in (here, path):
        with pytest.raises(SavedWorldError, match=message):
            another.restore(saved)
        another.reset(options={"world": saved})
    another.restore(here._replace(task_parameters={}))  # as in a file from before they were noted


def test_state_is_immutable_under_restored_walks() -> None:
    env = gym.make("Mirage-v0", size=(48, 48)).unwrapped
    env.reset(seed=0)
    walk(env, actions(env, 2))
    here = env.snapshot()
    points = here.episode.world.memory.points.clone()
    walk(env, actions(env, 3))
    env.restore(here)
    walk(env, actions(env, 3))
    assert torch.equal(here.episode.world.memory.points, points) and here.episode.steps == 2


@pytest.mark.parametrize("broken", ["about", "world", "episode", "pose", "scene", "x"])
def test_a_file_whose_metadata_has_the_wrong_types_is_told(
    box_room: MakeEnv, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = box_room()
    env.reset(seed=0)
    path = env.save(tmp_path / "a.world")
    init = StoredValues.__init__

    def damaged(self: Any, path: Any) -> None:
        init(self, path)
        if broken in ("about", "world"):
            self.about = 5 if broken == "about" else {**self.about, "world": 5}
        elif broken == "episode":
            self._packed["episode"] = 5
        else:
            fields = self._packed["episode"]["fields"]
            if broken == "x":  # deep inside
                fields["pose"]["fields"]["x"] = "left"
            elif broken == "scene":
                fields["scene"]["fields"]["intrinsics_px"] = fields["scene"]["fields"]["world_from_camera"]
            else:
                fields["pose"] = None

    monkeypatch.setattr(StoredValues, "__init__", damaged)
    with pytest.raises(SavedWorldError, match="is damaged or none"):
        env.restore(path)
