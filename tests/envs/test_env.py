"""Time, chunks, state and errors of the environment, in a room with a known answer."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from mirage_env.envs import untaken
from mirage_env.envs.actions import Pose, pose_from_matrix, world_from_camera
from mirage_env.envs.env import WalkEnv
from mirage_env.errors import InvalidValueError, MirageError, UnknownNameError
from mirage_env.types import Frames

MakeEnv = Callable[..., WalkEnv]
AHEAD = np.array([0.4, 0.2, 0.5], np.float32)


def assert_same(one: Any, two: Any) -> None:
    """Bit for bit, through dictionaries."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    else:
        np.testing.assert_array_equal(one, two)


def walk(env: WalkEnv, steps: int) -> list[tuple[Any, ...]]:
    return [env.step(AHEAD) for _ in range(steps)]


# ---- what a step shows ----------------------------------------------------------------------------------------------


def test_spaces_shapes_and_types(box_room: MakeEnv) -> None:
    env = box_room()
    obs, info = env.reset(seed=3)
    assert set(env.observation_space) == {"rgb", "depth_u8"} and obs in env.observation_space
    assert obs["rgb"].shape == (32, 40, 3) and obs["depth_u8"].shape == (32, 40, 1)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert obs in env.observation_space
    assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
    assert type(info["generated"]) is bool and type(info["memory_points"]) is int and type(info["collided"]) is bool
    assert info["drift"] == 0.0  # the room says NaN, which info must not


def test_one_name_gives_a_plain_box(box_room: MakeEnv) -> None:
    env = box_room(obs="rgb")
    assert env.observation_space.shape == (32, 40, 3)
    assert env.reset(seed=0)[0].dtype == np.uint8


def test_the_observation_is_the_frame_at_the_pose_reached(box_room: MakeEnv) -> None:
    env = box_room()
    env.reset(seed=0)
    obs, *_, info = env.step([1.0, 0.0, 1.0])
    expected = world_from_camera([Pose(z=0.25, yaw=math.radians(10))])[0].numpy()
    np.testing.assert_array_equal(info["world_from_camera"], expected)
    taken = env.take_chunk()
    assert taken is not None and len(taken) == 2
    np.testing.assert_array_equal(taken.cameras.world_from_camera[1].numpy(), expected)
    np.testing.assert_array_equal(taken.rgb[1].numpy(), obs["rgb"])


def test_the_far_wall_is_where_it_should_be(box_room: MakeEnv) -> None:
    env = box_room(size=(33 - 1, 40), step_m=0.5, obs=("rgb", "depth"))
    obs, _ = env.reset(seed=0)
    assert obs["depth"][14, 20] == pytest.approx(5.0)
    assert env.step([1.0, 0.0, 0.0])[0]["depth"][14, 20] == pytest.approx(4.5)


def test_up_tilts_the_picture_and_steps_stay_level(box_room: MakeEnv) -> None:
    tilt = math.radians(20)
    env = box_room(up=(0.0, -math.cos(tilt), math.sin(tilt)))
    _, info = env.reset(seed=0)
    looking = info["world_from_camera"][:3, 2]
    assert looking == pytest.approx([0.0, -math.sin(tilt), math.cos(tilt)], abs=1e-6)  # +y is down
    info = env.step([1.0, 0.0, 0.0])[4]
    assert info["world_from_camera"][:3, 3] == pytest.approx([0.0, 0.0, 0.25])


def test_fov_and_intrinsics(box_room: MakeEnv) -> None:
    for kwargs, degrees, source in [
        ({}, 70.0, "default"),
        ({"fov_deg": 90.0}, 90.0, "given"),
        ({"intrinsics": [[20.0, 0, 20], [0, 20, 16], [0, 0, 1]]}, 90.0, "intrinsics"),
    ]:
        env = box_room(obs="intrinsics_px", **kwargs)
        obs, info = env.reset(seed=0)
        assert info["fov_deg"] == pytest.approx(degrees) and info["fov_source"] == source
        assert obs[0, 0] == pytest.approx(20 / math.tan(math.radians(degrees / 2)), rel=1e-5)


def test_walls_stop_the_body(box_room: MakeEnv) -> None:
    env = box_room(step_m=1.0, fov_deg=90.0)
    env.reset(seed=0)
    infos = [env.step([1.0, 0.0, 0.0])[4] for _ in range(8)]
    assert 4.4 < infos[-1]["world_from_camera"][2, 3] < 4.9
    assert infos[-1]["collided"] and not infos[0]["collided"]
    assert infos[-1]["collisions"] == sum(info["collided"] for info in infos) > 2

    ghost = box_room(step_m=1.0, collision="none")
    ghost.reset(seed=0)
    assert [ghost.step([1.0, 0.0, 0.0])[4] for _ in range(8)][-1]["world_from_camera"][2, 3] == pytest.approx(8.0)


def test_the_last_action_is_told_and_whether_it_was_hindered(box_room: MakeEnv) -> None:
    env = box_room(step_m=1.0, turn_deg=30, action_mode="navigation", obs=("rgb", "last_action"))
    assert not env.reset(seed=0)[0]["last_action"].any()
    stop, forward, _, right = range(4)
    assert env.step(right)[0]["last_action"].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert env.step(forward)[0]["last_action"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    here = env.snapshot()
    for _ in range(8):
        obs = env.step(forward)[0]
    assert obs["last_action"].tolist() == [0, 0, 1, 0, 0, 0, 1]
    assert env.restore(here)[0]["last_action"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert not env.step(stop)[0]["last_action"].any()


def test_a_flying_camera_stays_above_the_floor(box_room: MakeEnv) -> None:
    env = box_room(action_mode="free", step_m=1.0, camera_height_m=1.5)
    env.reset(seed=0)
    for _ in range(3):
        info = env.step([0, 1, 0, 0, 0, 0])[4]
    assert info["world_from_camera"][1, 3] == pytest.approx(1.3) and info["collided"]


def test_start_pose_option(box_room: MakeEnv) -> None:
    start = world_from_camera([Pose(x=0.5, y=0.1, z=1.0, yaw=1.0)])[0].numpy()
    env = box_room(temporal_stride=2)
    _, info = env.reset(seed=0, options={"world_from_camera": start})
    np.testing.assert_allclose(info["world_from_camera"], start, atol=1e-6)
    taken = env.take_chunk()
    assert taken is not None
    np.testing.assert_array_equal(taken.cameras.world_from_camera[0].numpy(), np.eye(4))


# ---- chunks ---------------------------------------------------------------------------------------------------------


def test_a_look_around_is_known_and_comes_home(box_room: MakeEnv) -> None:
    env, plain = box_room(look_around=6, temporal_stride=2), box_room(temporal_stride=2)
    obs, info = env.reset(seed=0)
    _, before = plain.reset(seed=0)
    np.testing.assert_array_equal(info["world_from_camera"], before["world_from_camera"])
    assert info["generated"] and info["chunk_phase"] == 0 and env.steps == 0
    assert env.world.advances == [12] and plain.world.advances == []
    seen = env.take_chunk()
    assert seen is not None and len(seen) == 13
    headings = [math.degrees(pose_from_matrix(matrix).yaw) for matrix in seen.cameras.world_from_camera]
    assert [math.cos(math.radians(a - 30 * k)) for k, a in enumerate(headings)] == pytest.approx([1.0] * 13)
    np.testing.assert_array_equal(obs["rgb"], seen.rgb[0].numpy())  # nothing changes in this room
    assert env.occupancy.plan(through_unknown=False).cell((0.0, -0.5)) is not None  # behind the camera
    assert plain.occupancy.plan(through_unknown=False).cell((0.0, -0.5)) is None


def test_chunk_one_generates_every_step(box_room: MakeEnv) -> None:
    env = box_room()
    env.reset(seed=0)
    assert all(info["generated"] and info["chunk_phase"] == 0 for *_, info in walk(env, 3))
    assert env.world.advances == [1, 1, 1] and env.world.drafts == 0


def test_drafts_are_shown_and_flagged_until_the_chunk_is_generated(box_room: MakeEnv) -> None:
    env = box_room(chunk=4, obs=("rgb", "chunk_phase"))
    env.reset(seed=0)
    steps = walk(env, 8)
    assert [info["generated"] for *_, info in steps] == [False, False, False, True] * 2
    assert [info["chunk_phase"] for *_, info in steps] == [1, 2, 3, 0] * 2
    assert [float(obs["chunk_phase"][0]) for obs, *_ in steps] == [0.25, 0.5, 0.75, 0.0] * 2
    assert [bool((obs["rgb"].std(-1) == 0).all()) for obs, *_ in steps] == [True, True, True, False] * 2  # grey
    assert [info["remembered_share"] for *_, info in steps] == [0.0, 0.0, 0.0, 1.0] * 2
    assert env.world.advances == [4, 4] and env.world.drafts == 6


def test_hold_repeats_the_last_generated_frame(box_room: MakeEnv) -> None:
    env = box_room(chunk=3, feedback="hold")
    first, _ = env.reset(seed=0)
    steps = walk(env, 3)
    assert_same(steps[0][0], first)
    assert_same(steps[1][0], first)
    assert (steps[2][0]["rgb"] != first["rgb"]).any()
    assert env.world.drafts == 0
    assert (steps[0][4]["world_from_camera"] != np.eye(4)).any()  # the pose is always the true one


@pytest.mark.parametrize("chunk", [2, 3, 4])
def test_generated_frames_do_not_depend_on_the_chunk(box_room: MakeEnv, chunk: int) -> None:
    one, many = box_room(collision="none"), box_room(collision="none", chunk=chunk)
    one.reset(seed=0)
    many.reset(seed=0)
    for a, b in zip(walk(one, 12), walk(many, 12), strict=True):
        np.testing.assert_array_equal(a[4]["world_from_camera"], b[4]["world_from_camera"])
        if b[4]["generated"]:
            assert_same(a[0], b[0])
    np.testing.assert_array_equal(one.occupancy.voxels, many.occupancy.voxels)


def test_truncation_generates_a_short_chunk(box_room: MakeEnv) -> None:
    env = box_room(chunk=4, max_episode_steps=6)
    env.reset(seed=0)
    steps = walk(env, 6)
    assert [truncated for *_, truncated, _ in steps] == [False] * 5 + [True]
    assert steps[-1][4]["generated"] is True and env.world.advances == [4, 2]
    taken = env.take_chunk()
    assert taken is not None and len(taken) == 7


def test_sub_frames_are_interpolated_and_the_last_is_observed(box_room: MakeEnv) -> None:
    env = box_room(temporal_stride=4, chunk=2)
    env.reset(seed=0)
    steps = [env.step([1.0, 0.0, 0.0]) for _ in range(2)]
    taken = env.take_chunk()
    assert taken is not None and env.world.advances == [8]
    assert taken.cameras.world_from_camera[:, 2, 3].tolist() == pytest.approx([i / 16 for i in range(9)])
    np.testing.assert_array_equal(taken.rgb[-1].numpy(), steps[-1][0]["rgb"])


# ---- take_chunk -----------------------------------------------------------------------------------------------------


def test_take_chunk_gives_each_frame_once(box_room: MakeEnv) -> None:
    env = box_room(chunk=2)
    assert env.take_chunk() is None
    env.reset(seed=0)
    taken = [env.take_chunk() for _ in range(6) if env.step(AHEAD)[4]["generated"]]
    assert [len(frames) for frames in taken if frames is not None] == [3, 2, 2]
    assert env.take_chunk() is None


def test_reset_generates_what_is_left_and_keeps_episodes_apart(box_room: MakeEnv) -> None:
    env = box_room(chunk=4)
    env.reset(seed=0)
    walk(env, 6)
    env.reset()
    assert env.world.advances == [4, 2]
    old, new = env.take_chunk(), env.take_chunk()
    assert old is not None and len(old) == 7 and new is not None and len(new) == 1
    env.reset()
    env.reset()
    env.reset()
    assert [len(frames) for frames in (env.take_chunk(), env.take_chunk()) if frames is not None] == [1, 1]
    assert env.take_chunk() is None


def test_what_nobody_takes_is_bounded(box_room: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untaken, "KEPT_BYTES", 5 * (32 * 40 * 9 + 20))
    env = box_room()
    env.reset(seed=0)
    walk(env, 7)
    with pytest.raises(MirageError, match=r"3 frames were dropped because nobody took them; call take_chunk\(\)"):
        env.take_chunk()
    taken = env.take_chunk()
    assert taken is not None and len(taken) == 5


# ---- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_restored_run_repeats(box_room: MakeEnv, chunk: int) -> None:
    env = box_room(task="explore", chunk=chunk)
    env.reset(seed=1)
    walk(env, 4)
    saved = env.snapshot()
    first = [*walk(env, 5), env.reset()]
    env.restore(saved)
    second = [*walk(env, 5), env.reset()]
    for one, two in zip(first, second, strict=True):
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)


def test_a_snapshot_restores_into_an_equal_environment(box_room: MakeEnv) -> None:
    env, other = box_room(chunk=2), box_room(chunk=2)
    env.reset(seed=1)
    walk(env, 3)
    other.restore(env.snapshot())
    assert_same(walk(env, 2)[-1][0], walk(other, 2)[-1][0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_carry_the_episode(box_room: MakeEnv, duplicate: Callable[[WalkEnv], WalkEnv]) -> None:
    env = box_room(task="explore", chunk=2)
    unused = duplicate(env)
    env.reset(seed=1)
    unused.reset(seed=1)
    assert_same(walk(env, 3)[-1][0], walk(unused, 3)[-1][0])
    twin = duplicate(env)
    for one, two in zip([*walk(env, 3), env.reset()], [*walk(twin, 3), twin.reset()], strict=True):
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)


def test_seeds_decide_everything(box_room: MakeEnv) -> None:
    env = box_room()
    first, second, other = env.reset(seed=5)[0], env.reset()[0], env.reset(seed=6)[0]
    assert_same(first, env.reset(seed=5)[0])
    assert_same(second, env.reset()[0])
    assert (other["rgb"] != first["rgb"]).any()


def test_nothing_returned_is_shared(box_room: MakeEnv) -> None:
    env = box_room(feedback="hold", chunk=5)
    obs, info = env.reset(seed=0)
    obs["rgb"][:] = 0
    info["world_from_camera"][:] = 0
    again, *_, info = env.step(np.zeros(3))
    assert again["rgb"].any() and info["world_from_camera"].any()


# ---- render and errors ----------------------------------------------------------------------------------------------


def test_render(box_room: MakeEnv) -> None:
    for mode, dtype, shape in [("rgb_array", np.uint8, (32, 40, 3)), ("depth_array", np.float32, (32, 40))]:
        env = box_room(render_mode=mode, obs=("rgb", "depth"))
        obs, _ = env.reset(seed=0)
        picture = env.render()
        assert picture.dtype == dtype and picture.shape == shape
        assert_same(picture, obs["rgb" if mode == "rgb_array" else "depth"])
    silent = box_room()
    silent.reset()
    with pytest.warns(UserWarning, match="needs a render mode"):
        assert silent.render() is None


def test_the_map_stands_beside_the_picture_on_request(box_room: MakeEnv) -> None:
    env = box_room(render_mode="rgb_array", render_map=True)
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (384, 480 + 384, 3) and before.dtype == np.uint8
    for _ in range(3):
        env.step([1.0, 0.0, 0.0])
    assert (env.render()[:, 480:] != before[:, 480:]).any()
    np.testing.assert_allclose(env.snapshot()[0].trail, [(0.0, 0.25 * step) for step in range(4)])


def test_map(box_room: MakeEnv) -> None:
    env = box_room()
    env.reset(seed=0)
    assert env.top_down_map().shape == (256, 256)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        (
            {"action_mode": "fly"},
            UnknownNameError,
            'unknown action mode "fly"; known are discrete, free, navigation, planar',
        ),
        ({"collision": "bounce"}, UnknownNameError, 'unknown collision mode "bounce"'),
        ({"feedback": "none"}, UnknownNameError, 'unknown feedback "none"; known are draft, hold'),
        ({"task": "fly"}, UnknownNameError, 'unknown task "fly"; known are explore, free'),
        ({"obs": "rbg"}, UnknownNameError, 'unknown observation "rbg"'),
        ({"render_mode": "ascii"}, UnknownNameError, 'unknown render mode "ascii"'),
        ({"chunk": 0}, InvalidValueError, "chunk must be a whole number of at least 1, got 0"),
        ({"max_episode_steps": 0}, InvalidValueError, "max_episode_steps must be a whole number"),
        ({"step_m": -1.0}, InvalidValueError, "step_m must be a number above 0 and at most 10, got -1.0"),
        ({"turn_deg": math.nan}, InvalidValueError, "turn_deg must be a number"),
        ({"fov_deg": 180.0}, InvalidValueError, "fov_deg must be a number above 1 and at most 170, got 180.0"),
        ({"fov_deg": "wide"}, InvalidValueError, "fov_deg must be a number"),
        ({"camera_height_m": 0.0}, InvalidValueError, "camera_height_m must be"),
        ({"up": "down"}, InvalidValueError, 'up must be "auto" or a vector'),
        (
            {"intrinsics": [[1.0, 0.0], [0.0, 1.0]]},
            InvalidValueError,
            r"intrinsics must have shape \(3, 3\)",
        ),
        ({"intrinsics": np.zeros((3, 3))}, InvalidValueError, "whose last row is 0 0 1, got"),
        ({"intrinsics": np.diag([40.0, -1.0, 1.0])}, InvalidValueError, "focal length fy of intrinsics must be 2 to 2"),
        ({"intrinsics": np.diag([1e9, 40.0, 1.0])}, InvalidValueError, r"fx .* 32 x 40, got 1e.09"),
        ({"intrinsics": [[40, 0, 41], [0, 40, 16], [0, 0, 1]]}, InvalidValueError, "cx of intrinsics must be 0 to 40"),
        ({"depth_range_m": (5.0, 1.0)}, InvalidValueError, "depth_range_m must be"),
    ],
)
def test_bad_arguments(box_room: MakeEnv, kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        box_room(**kwargs)


def test_bad_actions_change_nothing(box_room: MakeEnv) -> None:
    env = box_room(chunk=3)
    env.reset(seed=0)
    before = env.snapshot()[0]
    for bad in ([math.nan, 0.0, 0.0], [0.0], None):
        with pytest.raises(InvalidValueError, match="a planar action must"):
            env.step(bad)
    assert env.snapshot()[0] is before


def test_order_of_calls(box_room: MakeEnv) -> None:
    env = box_room(max_episode_steps=1, render_mode="rgb_array")
    for use in (lambda: env.step(AHEAD), env.render, env.snapshot, lambda: env.occupancy):
        with pytest.raises(ResetNeeded, match=r"was used before reset\(\); call reset\(\) first"):
            use()
    env.reset()
    env.step(AHEAD)
    with pytest.raises(ResetNeeded, match=r"step was used after the episode ended; call reset\(\) first"):
        env.step(AHEAD)
    env.close()
    env.close()
    with pytest.raises(ResetNeeded, match=r"step was used after close\(\); call reset\(\) first"):
        env.step(AHEAD)
    env.reset()  # nothing was lost for good: Stable-Baselines3's checker, for one, goes on after close
    env.step(AHEAD)


def test_bad_reset_options_leave_the_episode(box_room: MakeEnv) -> None:
    env = box_room(chunk=3)
    env.reset(seed=0)
    env.step(AHEAD)
    before, numbers = env.snapshot()[0], env.np_random.bit_generator.state
    with pytest.raises(UnknownNameError, match='unknown reset option "sed"; known are world, world_from_camera'):
        env.reset(seed=1, options={"sed": 1})
    with pytest.raises(InvalidValueError, match="reset options must be a mapping of names to values, got 5"):
        env.check_options(5)
    with pytest.raises(InvalidValueError, match=r"world_from_camera must have shape \(4, 4\), got \(3, 3\)"):
        env.reset(seed=1, options={"world_from_camera": np.eye(3)})
    with pytest.raises(InvalidValueError, match="is not rigid"):
        env.reset(options={"world_from_camera": np.diag([2.0, 2.0, 2.0, 1.0])})
    assert env.snapshot()[0] is before
    assert env.np_random.bit_generator.state == numbers and env.np_random_seed == 0


# ---- the time limit of gym.make -------------------------------------------------------------------------------------


@pytest.fixture
def room_id(box_room: MakeEnv) -> Any:
    """The box room registered as our ids are."""
    from gymnasium.envs.registration import WrapperSpec

    limit = WrapperSpec("InnerTimeLimit", "mirage_env.envs.time_limit:InnerTimeLimit", kwargs={})
    gym.register("BoxRoom-v0", box_room, max_episode_steps=20, additional_wrappers=(limit,))
    yield "BoxRoom-v0"
    del gym.registry["BoxRoom-v0"]


@pytest.mark.parametrize(("asked", "expected"), [({}, 20), ({"max_episode_steps": 5}, 5)])
def test_gym_make_and_the_environment_truncate_together(room_id: str, asked: dict[str, int], expected: int) -> None:
    env = gym.make(room_id, chunk=3, **asked)
    for made in (env, gym.make(env.spec)):
        made.reset(seed=0)
        for count in range(1, expected + 1):
            *_, truncated, info = made.step(np.zeros(3, np.float32))
            assert truncated is (count == expected)
        assert info["generated"] is True and info["chunk_phase"] == 0
        assert made.spec.max_episode_steps == expected


def test_gym_make_without_limit(room_id: str) -> None:
    env = gym.make(room_id, max_episode_steps=-1)
    assert env.unwrapped.max_episode_steps is None


def test_frames_are_taken_through_the_wrappers(room_id: str) -> None:
    env = gym.make(room_id)
    env.reset(seed=0)
    assert isinstance(env.unwrapped.take_chunk(), Frames)
    assert torch.is_tensor(env.unwrapped.snapshot()[0].shown.rgb)
