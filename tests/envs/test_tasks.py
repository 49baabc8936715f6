"""Tasks: the two that exist, one of a user's own, and how they are found."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

from mirage_env.envs import tasks
from mirage_env.envs.occupancy import VOXEL_M
from mirage_env.envs.tasks import Explore, Free, Moment, Verdict, make_task
from mirage_env.errors import InvalidValueError, UnknownNameError


class WalkAhead:
    """The ten-line task of the documentation."""

    def begin(self, moment: Moment, np_random: np.random.Generator) -> None:
        return None

    def judge(self, state: None, moment: Moment) -> Verdict:
        ahead = moment.pose.z - moment.previous.z
        return Verdict(reward=ahead, terminated=moment.pose.z > 0.6, terms={"ahead_m": ahead})


class CountsDown:
    """Ends after as many steps as it drew; its state is what is left."""

    def begin(self, moment: Moment, np_random: np.random.Generator) -> int:
        return int(np_random.integers(2, 5))

    def judge(self, state: int, moment: Moment) -> Verdict:
        return Verdict(reward=1.0, terminated=state == 1, state=state - 1)


def test_by_name_by_instance_and_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_task("free"), Free)
    assert make_task("explore", scale=2.0).scale == 2.0
    mine = WalkAhead()
    assert make_task(mine) is mine

    plugin = EntryPoint("walk", "mirage_env.envs.tasks:Free", tasks.ENTRY_POINT_GROUP)
    monkeypatch.setattr(tasks, "entry_points", lambda group: [plugin] if group == "mirage_env.tasks" else [])
    assert isinstance(make_task("walk"), Free)
    with pytest.raises(UnknownNameError, match='unknown task "wolk"; known are explore, free, point_goal, walk; did'):
        make_task("wolk")


@pytest.mark.parametrize(
    ("task", "kwargs", "text"),
    [
        ("free", {"scale": 1.0}, 'task "free" does not take task_kwargs'),
        (WalkAhead(), {"scale": 1.0}, "give them to WalkAhead itself"),
        (42, {}, "must be a name or have the methods begin and judge, got 42"),
    ],
)
def test_bad_tasks(task: Any, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidValueError, match=text):
        make_task(task, **kwargs)


def test_free_gives_nothing(box_room: Callable[..., Any]) -> None:
    env = box_room()
    env.reset(seed=0)
    assert env.step(np.zeros(3))[1:4] == (0.0, False, False)


def test_explore_pays_for_what_becomes_known_once(box_room: Callable[..., Any]) -> None:
    env = box_room(task="explore", task_kwargs={"scale": 2.0}, action_mode="discrete")
    _, info = env.reset(seed=0)
    assert info["known_m3"] == 0.0
    total = 0.0
    for action in [0, 0, 6, 6, 6, 6, 0, 0, 0, 0]:
        _, reward, _, _, info = env.step(action)
        assert reward == pytest.approx(2.0 * info["reward_terms"]["new_m3"])
        total += reward
    assert reward == 0.0  # standing still
    assert total == pytest.approx(2.0 * info["known_m3"])
    assert info["known_m3"] == pytest.approx(env.occupancy.known_voxels * VOXEL_M**3)
    assert isinstance(make_task("explore"), Explore) and total > 10


def test_explore_pays_the_same_for_a_chunk_when_it_is_generated(box_room: Callable[..., Any]) -> None:
    def rewards(chunk: int) -> list[float]:
        env = box_room(task="explore", chunk=chunk, action_mode="discrete")
        env.reset(seed=0)
        return [env.step(6)[1] for _ in range(8)]

    one, four = rewards(1), rewards(4)
    assert sum(four) == pytest.approx(sum(one))
    assert [r > 0 for r in four] == [False, False, False, True] * 2


def test_a_users_task_ends_the_episode(box_room: Callable[..., Any]) -> None:
    env = box_room(task=WalkAhead(), chunk=8)
    env.reset(seed=0)
    rewards = []
    for _ in range(3):
        _, reward, terminated, truncated, info = env.step([1.0, 0.0, 0.0])
        rewards.append(reward)
    assert terminated is True and truncated is False and info["generated"] is True
    assert rewards == pytest.approx([0.25] * 3)
    assert info["reward_terms"] == {"ahead_m": pytest.approx(0.25)}


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_second_verdict_replaces_the_first(box_room: Callable[..., Any], chunk: int) -> None:
    """A task with a state is asked twice when it ends an episode amid a chunk; nothing may be counted twice."""
    env = box_room(task=CountsDown(), chunk=chunk)
    for seed in range(4):
        env.reset(seed=seed)
        steps = env.snapshot()[0].task
        total, terminated = 0.0, False
        while not terminated:
            _, reward, terminated, _, info = env.step(np.zeros(3))
            total += reward
        assert total == steps and info["generated"]


def test_rewards_must_be_finite(box_room: Callable[..., Any]) -> None:
    class Broken(WalkAhead):
        def judge(self, state: None, moment: Moment) -> Verdict:
            return Verdict(reward=float("nan"))

    env = box_room(task=Broken())
    env.reset()
    with pytest.raises(InvalidValueError, match="the task Broken gave a reward that is not finite"):
        env.step(np.zeros(3))


def test_a_goal_is_observed_only_from_tasks_with_one(box_room: Callable[..., Any]) -> None:
    with pytest.raises(InvalidValueError, match='"goal" needs a task with a goal'):
        box_room(obs=("rgb", "goal"))

    class ToTheWall(WalkAhead):
        def goal(self, state: None, moment: Moment) -> np.ndarray:
            return np.array([5.0 - moment.pose.z, 1.0, 0.0])

    env = box_room(obs="goal", task=ToTheWall())
    obs, _ = env.reset(seed=0)
    assert obs == pytest.approx([5.0, 1.0, 0.0]) and obs in env.observation_space
    assert env.step([1.0, 0.0, 0.0])[0][0] == pytest.approx(4.75)


@pytest.mark.parametrize("bad", ["a", float("nan")])
def test_numbers_of_tasks_are_checked(bad: Any) -> None:
    with pytest.raises(InvalidValueError, match="scale must be a number"):
        Explore(bad)
