"""The true world: exactly re-based, drawn as the simulator draws, and never walked through."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import mirage_env
from mirage_env.envs.actions import Pose, world_from_camera
from mirage_env.envs.mirage_sim import MirageSimEnv
from mirage_env.envs.simulator_world import SimulatorWorld
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.geometry.projection import backproject
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY, free, make_scene, render
from mirage_env.simulator.trajectories import SECONDS_PER_FRAME
from mirage_env.types import Cameras, SceneSpec

assert mirage_env.__version__
SIZE = (32, 40)
LENS = intrinsics_from_fov(math.radians(70), SIZE)


def cameras(*poses: Pose) -> Cameras:
    return Cameras(world_from_camera(poses), LENS.expand(len(poses), 3, 3), SIZE)


@pytest.fixture(scope="module")
def world() -> SimulatorWorld:
    return SimulatorWorld(SIZE, "room")


def test_the_floor_lies_a_camera_height_below_the_origin(world: SimulatorWorld) -> None:
    for height in (0.8, 1.5):
        looking_down = world_from_camera([Pose(pitch=-0.9)])[0]
        frames, state = world.begin(SceneSpec(looking_down, LENS, height, scene_seed=4), seed=1)
        around, _ = world.advance(state, cameras(*(Pose(pitch=-0.9, yaw=yaw) for yaw in (1.5, 3.0, -1.5))))
        assert len(frames) == 1 and len(around) == 3
        points = torch.cat([backproject(f.depth_m, f.cameras)[~f.sky] for f in (frames, around)])
        assert float(points[:, 1].max()) == pytest.approx(height, abs=1e-4)


def test_frames_are_those_of_the_simulator_at_the_same_place_and_time(world: SimulatorWorld) -> None:
    first, state = world.begin(SceneSpec(torch.eye(4), LENS, 1.2, scene_seed=4), seed=1)
    torch.testing.assert_close(first.cameras.world_from_camera[0], torch.eye(4))
    path = cameras(Pose(x=0.1), Pose(z=0.2, yaw=0.3), Pose(yaw=-0.5, pitch=0.2))
    frames, after = world.advance(state, path)
    assert after.frames == state.frames + 3 == 4
    in_scene = replace(path, world_from_camera=(state.scene_from_world @ path.world_from_camera.double()).float())
    times = SECONDS_PER_FRAME * torch.tensor([1.0, 2.0, 3.0])
    truth = render([make_scene(4, "room")], torch.zeros(3, dtype=torch.int64), in_scene, times)
    for name in ("rgb", "depth_m", "sky", "dynamic"):
        torch.testing.assert_close(getattr(frames, name), getattr(truth, name), rtol=0, atol=0)
    assert frames.remembered.all() and frames.remembered.shape == (3, *world.latent_size)
    torch.testing.assert_close(frames.cameras.world_from_camera, path.world_from_camera)


def test_the_state_is_a_value_and_the_seed_places_the_start(world: SimulatorWorld) -> None:
    spec = SceneSpec(torch.eye(4), LENS, 1.2, scene_seed=4)
    (one, state), (two, _), (other, _) = (world.begin(spec, seed) for seed in (1, 1, 2))
    assert torch.equal(one.rgb, two.rgb) and not torch.equal(one.rgb, other.rgb)
    path = cameras(Pose(yaw=0.2))
    assert torch.equal(world.advance(state, path)[0].rgb, world.advance(state, path)[0].rgb)
    assert torch.equal(world.draft(state, path).rgb, world.advance(state, path)[0].rgb)


@pytest.mark.parametrize("collision", ["slide", "stop"])
def test_nobody_walks_through_things(collision: str) -> None:
    env = MirageSimEnv(size=(16, 16), family="room", scene_seed=4, collision=collision, step_m=0.3)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(40):
        *_, info = env.step([1.0, rng.uniform(-0.3, 0.3), rng.uniform(-1, 1)])
        state = env.snapshot()[0].world
        at = state.scene_from_world[:3, :3] @ torch.tensor([env.pose.x, 0.0, env.pose.z], dtype=torch.float64)
        here = (at + state.scene_from_world[:3, 3])[[0, 2]].float()
        assert bool(free(state.scene, here[None], 0.199)[0])
    assert info["collisions"] > 3


def test_moves_with_nothing_in_the_way_are_exact(world: SimulatorWorld) -> None:
    _, state = world.begin(SceneSpec(torch.eye(4), LENS, 1.2, scene_seed=4), seed=1)
    for angle in np.linspace(0, 6, 5):
        target = (0.04 * math.sin(angle), 0.04 * math.cos(angle))
        assert world.move(state, (0.0, 0.0), target, "slide") == target
    assert world.move(state, (0.0, 0.0), (90.0, 0.0), "none") == (90.0, 0.0)
    x, z = world.move(state, (0.0, 0.0), (90.0, 0.0), "stop")
    assert 0 <= x < 20 and z == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("chunk", [2, 4])
def test_generated_frames_do_not_depend_on_the_chunk(chunk: int) -> None:
    kwargs = {"size": SIZE, "family": "room", "scene_seed": 4, "task": "explore", "obs": ("rgb", "depth")}
    one, many = MirageSimEnv(**kwargs), MirageSimEnv(**kwargs, chunk=chunk)
    one.reset(seed=0)
    many.reset(seed=0)
    paid_one = paid_many = 0.0
    for _ in range(8):
        obs, reward, *_, info = one.step([0.7, 0.2, 0.6])
        chunked, chunk_reward, *_, chunk_info = many.step([0.7, 0.2, 0.6])
        paid_one, paid_many = paid_one + reward, paid_many + chunk_reward
        np.testing.assert_array_equal(info["world_from_camera"], chunk_info["world_from_camera"])
        if chunk_info["generated"]:
            np.testing.assert_array_equal(obs["rgb"], chunked["rgb"])
            np.testing.assert_array_equal(obs["depth"], chunked["depth"])
            assert info["known_m3"] == chunk_info["known_m3"]
    assert paid_one == pytest.approx(paid_many)


def test_scenes_are_drawn_below_the_training_seeds_or_chosen() -> None:
    env = gym.make("MirageSim-v0", size=(16, 16))
    drawn = [env.reset(seed=seed)[1] for seed in (0, 0, 1)]
    assert drawn[0]["scene_seed"] == drawn[1]["scene_seed"] != drawn[2]["scene_seed"]
    assert all(0 <= info["scene_seed"] < 1_000_000 and info["family"] in FAMILIES for info in drawn)
    chosen = env.reset(options={"scene_seed": 11})[1]
    assert chosen["scene_seed"] == 11 and chosen["family"] == FAMILIES[11 % len(FAMILIES)]
    held_out = gym.make("MirageSim-v0", size=(16, 16), family=HELD_OUT_FAMILY, scene_seed=2).reset(seed=0)[1]
    assert held_out["family"] == HELD_OUT_FAMILY and held_out["scene_seed"] == 2


def test_bad_arguments(world: SimulatorWorld) -> None:
    with pytest.raises(UnknownNameError, match=r'unknown scene family "rom"; known are .*did you mean "room"'):
        gym.make("MirageSim-v0", family="rom")
    with pytest.raises(InvalidValueError, match=r"multiple of 8 pixels a side, got 30 x 41; the nearest.* 32 x 40"):
        gym.make("MirageSim-v0", size=(30, 41))
    with pytest.raises(InvalidValueError, match="scene_seed must be a whole number of at least 0, got -1"):
        gym.make("MirageSim-v0", scene_seed=-1)
    with pytest.raises(InvalidValueError, match="needs a scene_seed"):
        world.begin(SceneSpec(torch.eye(4), LENS, 1.2), 0)


def test_the_plan_is_where_the_body_can_be(world: SimulatorWorld) -> None:
    _, state = world.begin(SceneSpec(torch.eye(4), LENS, 1.2, scene_seed=4), seed=1)
    plan = world.plan(state)
    here = plan.cell((0.0, 0.0))
    assert here is not None
    rng = np.random.default_rng(0)
    distances = plan.distances((0.0, 0.0))
    agreed = 0
    for i, j in rng.permutation(np.argwhere(np.isfinite(distances)))[:12]:
        x, z = plan.centres(np.array([i, j])).tolist()
        way = plan.descend(distances, (x, z), (0.0, 0.0))
        assert way is not None
        at = (x, z)
        for corner in way[1:]:
            at = world.move(state, at, (float(corner[0]), float(corner[1])), "slide")
        agreed += np.hypot(*at) < 0.1
    assert agreed >= 11  # a body that slides along a taut string may catch on a corner between two cells


def test_worlds_are_drawn_together_as_alone() -> None:
    world = SimulatorWorld(SIZE)
    scenes = [SceneSpec(torch.eye(4), LENS, 1.2, scene_seed=seed) for seed in (4, 70, 4)]
    begun = world.begin_many(scenes, [0, 1, 2])
    paths = [cameras(Pose(yaw=0.2)), cameras(Pose(z=0.1), Pose(z=0.2)), cameras(Pose(yaw=0.2))]
    states = [state for _, state in begun]
    together = world.advance_many(states, paths)
    for index, (scene, state, path) in enumerate(zip(scenes, states, paths, strict=True)):
        alone = [world.begin(scene, index), world.advance(state, path)]
        for (one, one_after), (many, many_after) in zip(alone, (begun[index], together[index]), strict=True):
            assert one_after.frames == many_after.frames
            assert torch.equal(one_after.scene_from_world, many_after.scene_from_world)
            for name in ("rgb", "depth_m", "sky", "dynamic", "remembered"):
                assert torch.equal(getattr(one, name), getattr(many, name))
            assert torch.equal(one.cameras.world_from_camera, many.cameras.world_from_camera)
