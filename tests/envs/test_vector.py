"""A native vector environment is `SyncVectorEnv`, only faster: frame for frame, in every autoreset mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mirage_env.envs import untaken
from mirage_env.envs.env import WalkEnv
from mirage_env.envs.tasks import Verdict
from mirage_env.envs.vector import WalkVectorEnv
from mirage_env.errors import InvalidValueError, MirageError, UnknownNameError

MakeEnv = Callable[..., WalkEnv]
N = 3


class Race:
    """Ends when the body is `goal_m` ahead, so that every environment ends at a time of its own."""

    def __init__(self, goal_m: float = 0.6):
        self.goal_m = goal_m

    def begin(self, moment: Any, np_random: np.random.Generator) -> float:
        return float(np_random.random())

    def judge(self, state: float, moment: Any) -> Verdict:
        ahead = moment.pose.z - moment.previous.z
        return Verdict(ahead + state, moment.pose.z > self.goal_m, state, {"ahead": ahead})


def actions(env: Any, steps: int, seed: int = 3) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def pair(box_room: MakeEnv, mode: AutoresetMode, **kwargs: Any) -> tuple[WalkVectorEnv, SyncVectorEnv]:
    make = partial(box_room, task=Race(), max_episode_steps=5, **kwargs)
    return WalkVectorEnv([make() for _ in range(N)], mode), SyncVectorEnv([make] * N, autoreset_mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    "walk", [{}, {"action_mode": "discrete", "obs": "rgb"}, {"obs": ("depth", "chunk_phase"), "look_around": 3}]
)
def test_equals_the_same_environments_in_turn(box_room: MakeEnv, mode: AutoresetMode, walk: dict[str, Any]) -> None:
    ours, theirs = pair(box_room, mode, **walk)
    assert ours.metadata["autoreset_mode"] is mode
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert data_equivalence(ours.reset(seed=7), theirs.reset(seed=7), exact=True)
    ends = 0
    for action in actions(ours, 14):
        one, two = ours.step(action), theirs.step(action)
        assert data_equivalence(one, two, exact=True)
        assert one[0] in ours.observation_space
        ends += int((one[2] | one[3]).sum())
    assert ends > N
    assert data_equivalence(ours.reset(), theirs.reset(), exact=True)
    assert ours.np_random_seed == theirs.np_random_seed


def test_without_autoreset_some_are_reset_by_mask(box_room: MakeEnv) -> None:
    ours, theirs = pair(box_room, AutoresetMode.DISABLED)
    ours.reset(seed=1)
    theirs.reset(seed=1)
    resets = 0
    for action in actions(ours, 14):
        one, two = ours.step(action), theirs.step(action)
        assert data_equivalence(one, two, exact=True)
        over = one[2] | one[3]
        if over.any():
            with pytest.raises(ResetNeeded, match="step was used after the episode ended"):
                ours.step(action)
            options = {"reset_mask": over}
            begun = ours.reset(seed=[5, None, 9], options=options)
            assert options == {"reset_mask": over}  # Gymnasium's own takes it out; ours leaves the caller's alone
            assert data_equivalence(begun, theirs.reset(seed=[5, None, 9], options=dict(options)), exact=True)
            resets += 1
    assert resets > 1


@pytest.mark.parametrize("chunk", [2, 4])
def test_chunks_equal_while_no_reset_comes_between(box_room: MakeEnv, chunk: int) -> None:
    make = partial(box_room, task="explore", chunk=chunk, max_episode_steps=6)
    ours = WalkVectorEnv([make() for _ in range(N)], AutoresetMode.SAME_STEP)
    theirs = SyncVectorEnv([make] * N, autoreset_mode=AutoresetMode.SAME_STEP)
    assert data_equivalence(ours.reset(seed=0), theirs.reset(seed=0), exact=True)
    for action in actions(ours, 6):  # the sixth step truncates all, whatever is left of a chunk
        assert data_equivalence(ours.step(action), theirs.step(action), exact=True)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_early_reset_shortens_one_chunk_so_that_worlds_stay_in_phase(box_room: MakeEnv, mode: AutoresetMode) -> None:
    chunk = 4
    env = WalkVectorEnv([box_room(task=Race(0.2), chunk=chunk) for _ in range(2)], mode)
    env.reset(seed=0)
    walks, stays = [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    ahead = [*walks, *stays]
    generated = []
    for _ in range(12):
        *_, terminated, _, info = env.step(np.array(ahead, np.float32).reshape(2, 3))
        generated.append(info["generated"].tolist())
        if terminated[0]:
            ahead = [*stays, *stays]
            if mode == AutoresetMode.DISABLED:
                env.reset(options={"reset_mask": np.array([True, False])})
    assert [i for i, (_, steady) in enumerate(generated) if steady] == [3, 7, 11]
    first = [i for i, (early, _) in enumerate(generated) if early]
    assert first[0] == 0  # ended there, so its chunk was generated at once
    assert [i for i in first if i > 1] == [3, 7, 11]


def test_worlds_that_are_due_are_asked_together(box_room: MakeEnv) -> None:
    env = WalkVectorEnv([box_room(chunk=2) for _ in range(N)])
    asked: list[tuple[str, int, bool]] = []
    for name in ("begin", "advance", "draft"):
        one = getattr(env.world, name)

        def many(*lists: list[Any], exact: bool, one: Any = one, name: str = name) -> list[Any]:
            asked.append((name, len(lists[0]), exact))
            return [one(*each) for each in zip(*lists, strict=True)]

        setattr(env.world, f"{name}_many", many)
    env.reset(seed=0)
    env.step(np.zeros((N, 3), np.float32))
    env.step(np.zeros((N, 3), np.float32))
    assert asked == [("begin", N, True), ("draft", N, True), ("advance", N, True)]


def test_options_for_all_and_for_each(box_room: MakeEnv) -> None:
    env = WalkVectorEnv([box_room() for _ in range(N)])
    start = np.eye(4, dtype=np.float32)
    start[0, 3] = 0.5
    _, info = env.reset(seed=0, options={"world_from_camera": start})
    assert info["world_from_camera"][:, 0, 3].tolist() == [0.5] * N
    _, info = env.reset(seed=0, options={"world_from_camera": [start, np.eye(4), None]})
    assert info["world_from_camera"][:, 0, 3].tolist() == [0.5, 0.0, 0.0]


def test_nothing_returned_is_shared(box_room: MakeEnv) -> None:
    env = WalkVectorEnv([box_room(chunk=3, feedback="hold") for _ in range(N)])
    first, _ = env.reset(seed=0)
    kept = first["rgb"].copy()
    first["rgb"][:] = 0
    again, *_ = env.step(np.zeros((N, 3), np.float32))
    np.testing.assert_array_equal(again["rgb"], kept)
    again["rgb"][:] = 0
    assert env.step(np.zeros((N, 3), np.float32))[0]["rgb"].any()


def test_attributes_render_and_close(box_room: MakeEnv) -> None:
    env = WalkVectorEnv([box_room(render_mode="rgb_array") for _ in range(N)])
    env.reset(seed=0)
    assert len(env.render()) == N and env.render()[0].shape == (32, 40, 3)
    assert env.get_attr("render_mode") == ("rgb_array",) * N
    assert [len(frames) for frames in env.call("take_chunk")] == [1] * N
    env.set_attr("step_m", [0.1, 0.2, 0.3])
    assert env.get_attr("step_m") == (0.1, 0.2, 0.3)
    env.close()
    with pytest.raises(ResetNeeded, match=r"step was used after close\(\)"):
        env.step(np.zeros((N, 3), np.float32))
    assert WalkVectorEnv([box_room()]).render_mode is None


def test_environments_divide_the_memory_for_frames_that_nobody_takes(
    box_room: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untaken, "KEPT_BYTES", N * 5 * (32 * 40 * 9 + 20))
    env = WalkVectorEnv([box_room() for _ in range(N)])
    env.reset(seed=0)
    for _ in range(7):
        env.step(np.zeros((N, 3), np.float32))
    with pytest.raises(MirageError, match="3 frames were dropped"):
        env.call("take_chunk")


def test_bad_input_is_told_and_changes_nothing(box_room: MakeEnv) -> None:
    env = WalkVectorEnv([box_room(feedback="hold", chunk=9) for _ in range(N)])
    with pytest.raises(ResetNeeded, match=r"before reset\(\)"):
        env.step(np.zeros((N, 3), np.float32))
    mask = np.array([True, False, False])
    with pytest.raises(InvalidValueError, match="environment 1 was never reset; reset all once"):
        env.reset(options={"reset_mask": mask})
    env.reset(seed=0)
    episodes = [env_.snapshot()[0] for env_ in env.envs]
    for bad, text in [
        (np.zeros((2, 3), np.float32), "one action for each of 3 environments, got 2"),
        (None, "one action for each of 3 environments, got None"),
        (np.array([[0, 0, 0], [0, 0, 0], [0, np.nan, 0]], np.float32), "environment 2: a planar action must be finite"),
    ]:
        with pytest.raises(InvalidValueError, match=text):
            env.step(bad)
    for options, text in [
        ({"reset_mask": mask[:2]}, r"reset_mask must be an array of 3 booleans, got bool \(2,\)"),
        ({"reset_mask": [True, False, False]}, "reset_mask must be an array of 3 booleans, got list"),
        ({"reset_mask": mask.astype(int)}, "reset_mask must be an array of 3 booleans, got int64"),
        ({"reset_mask": np.zeros(3, bool)}, "reset_mask chooses no environment"),
        ({"world_from_camera": [np.eye(4)] * 2}, "world_from_camera has 2 entries for 3 environments"),
    ]:
        with pytest.raises(InvalidValueError, match=text):
            env.reset(options=options)
    with pytest.raises(InvalidValueError, match="seed must be one whole number or 3 of them, got 2"):
        env.reset(seed=[1, 2])
    for seed, text in (
        (5.5, "seed must be one whole number or 3 of them, got 5.5"),
        (-1, "of at least 0, got -1"),
        ([1, 2, "a"], "got 'a'"),
    ):
        with pytest.raises(InvalidValueError, match=text):
            env.reset(seed=seed)
    assert [env_.snapshot()[0] for env_ in env.envs] == episodes
    with pytest.raises(UnknownNameError, match='unknown batching "fast"; known are auto, batched, exact'):
        WalkVectorEnv([box_room()], batching="fast")
    with pytest.raises(UnknownNameError, match='unknown autoreset mode "sometimes"'):
        WalkVectorEnv([box_room()], "sometimes")


# ---- through gym.make_vec -------------------------------------------------------------------------------------------


def test_the_simulator_by_its_id_equals_sync() -> None:
    kwargs: dict[str, Any] = {"size": (40, 40), "family": "room", "max_episode_steps": 3}
    ours = gym.make_vec("MirageSim-v0", num_envs=2, scene_seed=[3, 4], **kwargs)
    assert isinstance(ours, WalkVectorEnv) and ours.get_attr("max_episode_steps") == (3, 3)
    singles = [partial(gym.make, "MirageSim-v0", scene_seed=seed, **kwargs) for seed in (3, 4)]
    theirs = SyncVectorEnv(singles)
    one, two = ours.reset(seed=1), theirs.reset(seed=1)
    assert data_equivalence(one, two, exact=True)
    for action in actions(ours, 5):
        assert data_equivalence(ours.step(action), theirs.step(action), exact=True)
    ours.close()
    theirs.close()


def test_upstream_vector_env_equal_in_worker_processes() -> None:
    kwargs: dict[str, Any] = {"size": (40, 40), "family": "room", "scene_seed": 3, "max_episode_steps": 2}
    env_id = "mirage_env:MirageSim-v0"  # with the module, for a process that starts anew
    ours = gym.make_vec(env_id, num_envs=2, **kwargs)
    theirs = gym.make_vec(env_id, 2, "async", vector_kwargs={"context": "spawn"}, **kwargs)
    assert data_equivalence(ours.reset(seed=1), theirs.reset(seed=1), exact=True)
    for action in actions(ours, 4):
        assert data_equivalence(ours.step(action), theirs.step(action), exact=True)
    theirs.close()


def test_time_limits_reach_the_vector_environment() -> None:
    kwargs: dict[str, Any] = {"size": (40, 40), "family": "room", "scene_seed": 3}
    for asked, expected in (({}, 500), ({"max_episode_steps": 7}, 7), ({"max_episode_steps": -1}, None)):
        env = gym.make_vec("mirage_env:MirageSim-v0", num_envs=1, **kwargs, **asked)
        assert env.get_attr("max_episode_steps") == (expected,)
    with pytest.raises(InvalidValueError, match="num_envs must be a whole number of at least 1, got 0"):
        gym.make_vec("MirageSim-v0", num_envs=0, **kwargs)
    with pytest.raises(InvalidValueError, match="scene_seed has 2 entries for 3 environments; give one or 3"):
        gym.make_vec("MirageSim-v0", num_envs=3, **{**kwargs, "scene_seed": [1, 2]})
