"""Walking to a goal in a room whose distances are known, and sums of tasks."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mirage_env.envs.tasks import Explore, Sum, make_task
from mirage_env.errors import InvalidValueError, UnknownNameError

FORWARD, STOP, BACK, TURN_RIGHT = 1, 0, 2, 6


@pytest.fixture
def env(box_room: Callable[..., Any]) -> Any:
    return box_room(task="point_goal", obs=("rgb", "goal"), action_mode="discrete")


def test_the_shortest_walk_succeeds_with_spl_one(env: Any) -> None:
    obs, _ = env.reset(seed=0, options={"goal": (0.0, 2.0)})
    np.testing.assert_allclose(obs["goal"], [2.0, 1.0, 0.0], atol=1e-6)
    for _ in range(6):
        obs, reward, terminated, _, info = env.step(FORWARD)
        assert reward == pytest.approx(0.25 - 0.01) and not terminated
    assert obs["goal"][0] == pytest.approx(0.5)
    _, reward, terminated, _, info = env.step(STOP)
    assert terminated and reward == pytest.approx(2.5 - 0.01)
    terms = info["reward_terms"]
    assert terms == {"progress_m": 0.0, "distance_m": pytest.approx(0.5), "success": 1.0, "spl": 1.0}


def test_detours_cost_spl_and_a_stop_elsewhere_costs_a_step(env: Any) -> None:
    env.reset(seed=0, options={"goal": (0.0, 1.0)})
    _, reward, terminated, _, _ = env.step(STOP)
    assert reward == pytest.approx(-0.01) and not terminated
    for action in [BACK, BACK, *[FORWARD] * 6]:
        _, _, terminated, _, info = env.step(action)
        assert not terminated and info["reward_terms"]["spl"] == 0.0
    assert env.step(STOP)[4]["reward_terms"]["spl"] == pytest.approx(1.0 / 2.0)


def test_the_bearing_turns_with_the_camera(env: Any) -> None:
    obs, _ = env.reset(seed=0, options={"goal": (1.0, 1.0)})
    np.testing.assert_allclose(obs["goal"], [math.sqrt(2), math.sqrt(0.5), math.sqrt(0.5)], atol=1e-6)
    for _ in range(9):
        obs = env.step(TURN_RIGHT)[0]
    np.testing.assert_allclose(obs["goal"], [math.sqrt(2), math.sqrt(0.5), -math.sqrt(0.5)], atol=1e-6)


def test_goals_are_drawn_where_the_first_frame_shows_free_floor(env: Any) -> None:
    goals = []
    for seed in range(12):
        obs, _ = env.reset(seed=seed)
        task = env.snapshot()[0].task
        assert 1.0 <= task.shortest_m <= 5.0
        assert task.shortest_m == pytest.approx(obs["goal"][0], abs=1e-6)  # nothing stands in this room
        assert abs(task.x) < 3 and -1 < task.z < 5 and obs["goal"][1] > 0.7  # in view: 70 degrees
        goals.append((task.x, task.z))
    assert len(set(goals)) > 8
    env.reset(seed=3)
    assert env.snapshot()[0].task[:2] == goals[3]


def test_after_a_look_around_goals_lie_in_every_direction(box_room: Callable[..., Any]) -> None:
    env = box_room(task="point_goal", obs=("rgb", "goal"), look_around=8, task_kwargs={"least_m": 0.5})
    ahead = [env.reset(seed=seed)[0]["goal"][1] for seed in range(12)]
    assert min(ahead) < -0.5 and max(ahead) > 0.5


def test_a_narrow_range_falls_back_to_the_farthest_floor(box_room: Callable[..., Any]) -> None:
    env = box_room(task="point_goal", task_kwargs={"least_m": 50.0, "most_m": 60.0})
    env.reset(seed=0)
    assert 4.0 < env.snapshot()[0].task.shortest_m < 6.0


def test_an_unreachable_goal_is_refused_and_the_episode_goes_on(env: Any) -> None:
    env.reset(seed=0)
    env.step(FORWARD)
    before = env.pose
    with pytest.raises(
        InvalidValueError, match=r"the goal \(0, 5\) cannot be reached from \(0, 0\); give a free place"
    ):
        env.reset(options={"goal": (0.0, 5.0)})  # in the wall
    with pytest.raises(InvalidValueError, match=r"the goal \(99, 0\) cannot be reached"):
        env.reset(options={"goal": (99.0, 0.0)})
    with pytest.raises(InvalidValueError, match=r"goal must have shape \(2,\)"):
        env.reset(options={"goal": (1.0, 2.0, 3.0)})
    assert env.pose == before
    env.step(FORWARD)


def test_only_this_task_takes_a_goal(box_room: Callable[..., Any]) -> None:
    with pytest.raises(UnknownNameError, match='unknown reset option "goal"; known are world, world_from_camera'):
        box_room().reset(options={"goal": (0.0, 1.0)})


@pytest.mark.parametrize(("kwargs", "text"), [({"radius_m": 0.0}, "radius_m must be"), ({"least_m": 9.0}, "least_m")])
def test_bad_arguments(kwargs: dict[str, float], text: str) -> None:
    with pytest.raises(InvalidValueError, match=text):
        make_task("point_goal", **kwargs)


def test_without_must_stop_to_arrive_is_enough(box_room: Callable[..., Any]) -> None:
    env = box_room(task="point_goal", task_kwargs={"must_stop": False}, chunk=4)
    env.reset(seed=0, options={"goal": (0.0, 1.0)})
    ended = [env.step([1.0, 0.0, 0.0])[2] for _ in range(2)]
    assert ended == [False, True]


def test_a_continuous_action_near_zero_stops(box_room: Callable[..., Any]) -> None:
    env = box_room(task="point_goal")
    env.reset(seed=0, options={"goal": (0.0, 0.4)})
    assert not env.step([0.0, 0.0, 0.2])[2]
    assert env.step([0.05, -0.05, 0.09])[2]


def test_a_sum_adds_up_and_names_its_terms(box_room: Callable[..., Any]) -> None:
    env = box_room(
        task={"point_goal": 1.0, "mine": (Explore(), 0.1)},
        task_kwargs={"point_goal": {"time_cost": 0.0}},
        obs=("rgb", "goal"),
        action_mode="discrete",
        render_mode="rgb_array",
        render_map=True,
    )
    env.reset(seed=0, options={"goal": (0.0, 1.0)})
    for _ in range(3):
        _, reward, _, _, info = env.step(FORWARD)
        terms = info["reward_terms"]
        assert reward == pytest.approx(terms["point_goal/progress_m"] + 0.1 * terms["mine/new_m3"])
    assert env.render().shape == (384, 480 + 384, 3)
    assert env.step(STOP)[2]
    again = pickle.loads(pickle.dumps(Sum({"a": (Explore(), 1.0)})))
    assert not hasattr(again, "goal")


def test_bad_sums() -> None:
    with pytest.raises(UnknownNameError, match='unknown task "explorer"'):
        make_task({"explorer": 1.0})
    with pytest.raises(UnknownNameError, match='unknown task in task_kwargs "explore"'):
        make_task({"free": 1.0}, explore={})
    with pytest.raises(InvalidValueError, match='the weight of task "free" must be a number'):
        make_task({"free": "much"})
    with pytest.raises(InvalidValueError, match="at least one"):
        make_task({})
