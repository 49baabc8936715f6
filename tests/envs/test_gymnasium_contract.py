"""What Gymnasium's and Stable-Baselines3's own checkers and tests ask of an environment, pointed at our ids.

The functions named `upstream` follow `tests/envs/test_envs.py`, `tests/vector/test_vector_env.py` and
`tests/wrappers/vector/test_vector_wrappers.py` of Gymnasium, and `tests/test_envs.py` of Stable-Baselines3, which their
wheels do not carry. Warnings are errors here as everywhere.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode

import mirage_env
from mirage_env.envs.registration import register_all

assert mirage_env.__version__
OURS = ("Mirage-v0", "MirageSim-v0", "MirageTwin-v0")
SCENE = {"family": "room", "scene_seed": 3}
"""One scene, so that it is built once; where in it an episode begins still follows from the seed."""
IDS: dict[str, dict[str, Any]] = {
    "BoxRoom-v0": {"size": (40, 40)},
    "MirageSim-v0": {"size": (40, 40), **SCENE},
    "Mirage-v0": {"size": (48, 48)},
    "MirageTwin-v0": {"size": (48, 48), **SCENE},
}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"action_mode": "discrete", "chunk": 3, "obs": ["rgb", "depth_u8", "chunk_phase", "world_from_camera"]},
    {"action_mode": "free", "task": "explore", "obs": "rgb", "chunk": 2, "feedback": "hold"},
)
CASES = [
    (env_id, variant)
    for env_id in IDS
    for variant in range(len(VARIANTS))
    if env_id in ("BoxRoom-v0", "MirageSim-v0") or variant == 1  # the model costs time and adds nothing to a variant
]


@pytest.fixture(autouse=True)
def room_id(box_room: Callable[..., Any]) -> Iterator[None]:
    """The box room registered as our ids are: the contract without the price of a world."""
    limit = WrapperSpec("InnerTimeLimit", "mirage_env.envs.time_limit:InnerTimeLimit", kwargs={})
    gym.register("BoxRoom-v0", box_room, max_episode_steps=50, kwargs={"size": (40, 40)}, additional_wrappers=(limit,))
    yield
    del gym.registry["BoxRoom-v0"]


@pytest.fixture(params=CASES, ids=lambda p: f"{p[0]}-{p[1]}")
def spec(request: pytest.FixtureRequest) -> EnvSpec:
    name, index = request.param
    spec = deepcopy(gym.spec(name))  # the registry hands out its own
    spec.kwargs = {**spec.kwargs, **IDS[name], **VARIANTS[index]}
    return spec


@pytest.mark.parametrize("env_id", OURS)
def test_both_checkers_find_nothing_in_what_make_gives(env_id: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    kwargs = {} if env_id == "Mirage-v0" else SCENE
    check_env(gym.make(env_id, **kwargs).unwrapped, skip_render_check=True)
    sb3.check_env(gym.make(env_id, render_mode="rgb_array", **kwargs), warn=True, skip_render_check=False)


def test_upstream_all_env_api(spec: EnvSpec) -> None:
    check_env(spec.make(disable_env_checker=True).unwrapped, skip_render_check=True)


def test_check_env_with_rendering() -> None:
    check_env(gym.make("BoxRoom-v0", disable_env_checker=True, render_mode="rgb_array").unwrapped)


def test_upstream_passive_env_checker(spec: EnvSpec) -> None:
    env = spec.make(disable_env_checker=False)
    env.reset()
    env.step(env.action_space.sample())
    env.close()


def test_upstream_determinism_rollout(spec: EnvSpec) -> None:
    one, two = spec.make(disable_env_checker=True), spec.make(disable_env_checker=True)
    assert data_equivalence(one.reset(seed=0), two.reset(seed=0), exact=True)
    one.action_space.seed(0)
    for _ in range(25 if spec.id == "BoxRoom-v0" else 7):
        action = one.action_space.sample()
        first, second = one.step(action), two.step(action)
        assert data_equivalence(first, second, exact=True)
        assert first[0] in one.observation_space
        if first[2] or first[3]:
            one.reset(seed=1)
            two.reset(seed=1)
    one.close()
    two.close()


def test_upstream_pickle_env(spec: EnvSpec) -> None:
    env = spec.make()
    env.reset(seed=0)
    pickled = pickle.loads(pickle.dumps(env))
    action = env.action_space.sample()
    assert data_equivalence(env.step(action), pickled.step(action), exact=True)
    assert data_equivalence(env.reset(), pickled.reset(), exact=True)
    env.close()
    pickled.close()


def test_upstream_render_modes(spec: EnvSpec) -> None:
    for mode in ("rgb_array", "depth_array", "rgb_array_list"):
        env = gym.make(spec, render_mode=mode)
        env.reset(seed=0)
        picture = env.render()
        assert env.render_mode == mode and len(picture) == (1 if mode.endswith("list") else spec.kwargs["size"][0])
    assert env.metadata["render_fps"] > 0


def test_specs_survive_json_and_pickle(spec: EnvSpec) -> None:
    env = gym.make(spec)
    if "BoxRoom" not in spec.id:  # its entry point is a class, ours are strings
        assert EnvSpec.from_json(env.spec.to_json()) == EnvSpec.from_json(env.spec.to_json())
        again = gym.make(EnvSpec.from_json(env.spec.to_json()))
        assert again.unwrapped.observation_space == env.unwrapped.observation_space
    assert pickle.loads(pickle.dumps(env.spec)) == env.spec


@pytest.mark.parametrize("obs", ["rgb", "depth_u8", ("rgb", "depth_u8", "chunk_phase")])
@pytest.mark.parametrize("action_mode", ["planar", "discrete"])
def test_stable_baselines3_checker(obs: Any, action_mode: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gym.make("BoxRoom-v0", obs=obs, action_mode=action_mode, render_mode="rgb_array")
    checker.check_env(env, warn=True, skip_render_check=False)


def test_wrappers_that_people_use() -> None:
    env = gym.make("BoxRoom-v0", chunk=2)
    stacked = gym.wrappers.FrameStackObservation(gym.wrappers.TransformReward(env, lambda reward: reward - 1.0), 3)
    obs, _ = stacked.reset(seed=0)
    assert obs["rgb"].shape == (3, 40, 40, 3)
    assert stacked.step(env.action_space.sample())[1] == -1.0
    flat = gym.wrappers.FlattenObservation(gym.make("BoxRoom-v0"))
    assert flat.reset(seed=0)[0] in flat.observation_space


def test_vector_env_equals_single_ones() -> None:
    vector = gym.make_vec("BoxRoom-v0", num_envs=2, vectorization_mode="sync", vector_kwargs={"copy": True}, chunk=2)
    singles = [gym.make("BoxRoom-v0", chunk=2) for _ in range(2)]
    batch, _ = vector.reset(seed=7)
    for i, env in enumerate(singles):
        np.testing.assert_array_equal(batch["rgb"][i], env.reset(seed=7 + i)[0]["rgb"])
    vector.action_space.seed(0)
    for _ in range(4):
        actions = vector.action_space.sample()
        batch, *_, info = vector.step(actions)
        for i, env in enumerate(singles):
            obs, *_, single = env.step(actions[i])
            np.testing.assert_array_equal(batch["rgb"][i], obs["rgb"])
            assert info["generated"][i] == single["generated"]
    vector.close()


def vector_pair(env_id: str, num_envs: int, mode: AutoresetMode, wrapper: str, **kwargs: Any) -> list[Any]:
    """The wrapper around our vector environment, and Gymnasium's vector environment of wrapped single ones."""
    make = {"num_envs": num_envs, "max_episode_steps": 2, **IDS[env_id]}
    obs = {"obs": "rgb"} if wrapper == "GrayscaleObservation" else {}
    ours = gym.make_vec(env_id, autoreset_mode=mode, **make, **obs)
    single = getattr(wrappers, wrapper)
    theirs = gym.make_vec(
        env_id,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        wrappers=[lambda env: single(env, **kwargs)],
        **make,
        **obs,
    )
    return [getattr(wrappers.vector, wrapper)(ours, **kwargs), theirs]


@pytest.mark.parametrize(
    ("env_id", "wrapper", "kwargs"),
    [
        ("MirageSim-v0", "FilterObservation", {"filter_keys": ["rgb"]}),
        ("MirageSim-v0", "GrayscaleObservation", {}),
        ("MirageSim-v0", "RescaleAction", {"min_action": 1, "max_action": 2}),
        ("MirageSim-v0", "ClipReward", {"min_reward": -0.25, "max_reward": 0.75}),
        ("Mirage-v0", "ClipAction", {}),
    ],
)
def test_upstream_vector_wrapper_equivalence(env_id: str, wrapper: str, kwargs: dict[str, Any]) -> None:
    mode = AutoresetMode.NEXT_STEP if wrapper.endswith("Observation") else AutoresetMode.SAME_STEP
    ours, theirs = vector_pair(env_id, 2, mode, wrapper, **kwargs)
    for space in ("action_space", "observation_space", "single_action_space", "single_observation_space", "num_envs"):
        assert getattr(ours, space) == getattr(theirs, space)
    assert data_equivalence(ours.reset(seed=123), theirs.reset(seed=123), exact=True)
    ours.action_space.seed(1)
    for _ in range(4):
        action = ours.action_space.sample()
        assert data_equivalence(ours.step(action), theirs.step(action), exact=True)
    ours.close()
    theirs.close()


def test_registration_repeats_quietly() -> None:
    before = gym.spec("Mirage-v0"), gym.spec("MirageSim-v0")
    register_all()
    assert (gym.spec("Mirage-v0"), gym.spec("MirageSim-v0")) == before
    assert all(spec.max_episode_steps == 500 for spec in before)
