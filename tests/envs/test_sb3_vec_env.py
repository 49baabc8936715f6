"""The bridge to Stable-Baselines3 is a `DummyVecEnv`, only faster. Functions named `upstream` follow its own
`tests/test_vec_envs.py`, with the bridge as one more class of vector environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

pytest.importorskip("stable_baselines3")
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from mirage_env.agents.vec_env import SB3VecEnv
from mirage_env.envs.env import WalkEnv
from mirage_env.envs.vector import WalkVectorEnv
from mirage_env.errors import InvalidValueError

MakeEnv = Callable[..., WalkEnv]
N = 3


def bridge(makers: Sequence[Callable[[], gym.Env[Any, Any]]]) -> SB3VecEnv:
    return SB3VecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))


@pytest.mark.parametrize("walk", [{"obs": "rgb", "action_mode": "discrete"}, {"task": "point_goal", "chunk": 2}])
def test_equals_a_dummy_vec_env(box_room: MakeEnv, walk: dict[str, Any]) -> None:
    limits = [3, 4, 5] if walk.get("chunk", 1) == 1 else [4] * N  # early resets shorten chunks
    makers = [
        lambda limit=limit: box_room(max_episode_steps=limit, render_mode="rgb_array", **walk) for limit in limits
    ]
    ours = SB3VecEnv(WalkVectorEnv([make() for make in makers], AutoresetMode.SAME_STEP))
    theirs = DummyVecEnv(makers)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    start = np.eye(4, dtype=np.float32)
    start[0, 3] = 0.5
    for env in (ours, theirs):
        env.seed(3)
        env.set_options([{"world_from_camera": start}, {}, {"world_from_camera": np.eye(4)}])
    assert data_equivalence(ours.reset(), dict_or_array(theirs.reset()), exact=True)
    assert data_equivalence(ours.reset_infos, theirs.reset_infos, exact=True)
    ours.action_space.seed(0)
    ends = 0
    for _ in range(10):
        actions = np.array([ours.action_space.sample() for _ in range(N)])
        (obs, rewards, dones, infos), (obs_, rewards_, dones_, infos_) = ours.step(actions), theirs.step(actions)
        assert data_equivalence(obs, dict_or_array(obs_), exact=True)
        assert rewards.dtype == np.float32 and np.array_equal(rewards, rewards_) and np.array_equal(dones, dones_)
        assert data_equivalence(infos, infos_, exact=True)
        assert data_equivalence(ours.reset_infos, theirs.reset_infos, exact=True)
        ends += dones.sum()
    assert ends > N
    assert np.array_equal(ours.render(), theirs.render())
    ours.close()


def dict_or_array(observations: Any) -> Any:
    return dict(observations) if isinstance(observations, dict) else observations


def test_other_autoreset_modes_are_refused(box_room: MakeEnv) -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        with pytest.raises(InvalidValueError, match='make the vector environment with autoreset_mode="SameStep"'):
            SB3VecEnv(WalkVectorEnv([box_room()], mode))


class Counter(gym.Env[Any, Any]):
    """Upstream's `StepEnv` and `CustomGymEnv` in one: shows how often it stepped, ends after `limit` steps."""

    def __init__(self, limit: int = 4):
        self.action_space, self.observation_space = spaces.Discrete(2), spaces.Box(0, 999, (1,), np.float32)
        self.limit, self.current_step, self.render_mode = limit, 0, "rgb_array"

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.current_step = 0
        return np.zeros(1, np.float32), {"seeded": seed is not None, "options": str(options)}

    def step(self, action: Any) -> Any:
        self.current_step += 1
        done = self.current_step >= self.limit
        return np.array([self.current_step], np.float32), 0.0, done, done, {}

    def render(self) -> Any:
        return np.zeros((4, 4, 3), np.uint8)

    def custom_method(self, dim_0: int = 1, dim_1: int = 1) -> np.ndarray:
        return np.ones((dim_0, dim_1))


WRAPPERS = [lambda env: env, VecNormalize, lambda env: VecFrameStack(env, n_stack=2)]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_upstream_vecenv_custom_calls(wrapper: Any) -> None:
    vec_env = wrapper(bridge([Counter] * N))
    vec_env.seed(0)
    assert np.array_equal(vec_env.render(), vec_env.render(mode="rgb_array"))
    with pytest.warns(UserWarning):
        vec_env.render(mode="something_else")
    results = vec_env.env_method("custom_method", 1, indices=None, dim_1=2)
    assert len(results) == N and all((result == np.ones((1, 2))).all() for result in results)
    assert [vec_env.set_attr("current_step", i, indices=i) for i in range(N)] == [None] * N
    assert vec_env.get_attr("current_step") == list(range(N))
    assert len(vec_env.env_method("custom_method", 1, indices=[0, 2], dim_1=3)) == 2
    vec_env.set_attr("current_step", 42, indices=None)
    assert vec_env.get_attr("current_step") == [42] * N
    vec_env.reset()
    vec_env.set_attr("current_step", 12, indices=[0, -1])
    assert vec_env.get_attr("current_step") == [12, 0, 12] and vec_env.get_attr("current_step", indices=[-1]) == [12]
    assert vec_env.has_attr("current_step") and not vec_env.has_attr("nothing")
    vec_env.close()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_upstream_vecenv_terminal_obs(wrapper: Any) -> None:
    limits = [i + 5 for i in range(N)]
    vec_env = wrapper(bridge([lambda limit=limit: Counter(limit) for limit in limits]))
    before = vec_env.reset()
    for step in range(1, max(limits) + 1):
        observations, _, dones, infos = vec_env.step(np.zeros(N, int))
        for i, limit in enumerate(limits):
            assert dones[i] == (step == limit)
            assert ("terminal_observation" in infos[i]) == dones[i] and infos[i]["TimeLimit.truncated"] is False
            if dones[i]:
                assert np.all(before[i] < infos[i]["terminal_observation"]) and np.all(observations[i] < before[i])
        before = observations


def test_upstream_vec_seeding_options_and_wrapping() -> None:
    vec_env = bridge([lambda: Monitor(Counter()), Counter, Counter])
    assert vec_env.env_is_wrapped(Monitor) == [True, False, False]
    assert vec_env.env_is_wrapped(Monitor, indices=[1]) == [False]
    vec_env.seed(5)
    vec_env.set_options({"a": 1})
    vec_env.reset()
    assert [info["seeded"] for info in vec_env.reset_infos] == [True] * N
    assert all("'a'" in info["options"] for info in vec_env.reset_infos)
    vec_env.reset()
    assert [info["seeded"] for info in vec_env.reset_infos] == [False] * N
    assert not any("'a'" in info["options"] for info in vec_env.reset_infos)
