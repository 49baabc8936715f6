"""PPO with our network learns what it must see to know; checkpoints come back whole and only where they belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3", reason="the extra `agents` is not installed")

from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from mirage_env.agents.checkpoint import read_card
from mirage_env.agents.config import AgentConfig, PPOConfig, WorldConfig
from mirage_env.agents.evaluation import make_agent
from mirage_env.agents.policy import Eyes, policy_class, policy_kwargs
from mirage_env.agents.ppo import CHECKPOINT, curve, train
from mirage_env.agents.worlds import make_env
from mirage_env.envs.actions import action_space
from mirage_env.errors import InvalidValueError, WeightsError

KWARGS: dict[str, Any] = {"size": [32, 32], "obs": ["rgb", "depth_u8", "goal"], "action_mode": "discrete"}
WORLD = WorldConfig("MirageSim-v0", {**KWARGS, "task": "point_goal", "scene_seed": 1_000_000}, steps=6)
TINY = AgentConfig(
    world=WORLD,
    test=WORLD,
    ppo=PPOConfig(total_steps=32, envs=2, n_steps=8, batch_size=8, n_epochs=1, checkpoint_steps=16, tensorboard=False),
)


class WhereIsTheLight(gym.Env[Any, int]):
    """Reward 1 for saying which half of the depth picture is far and, with that, whether the goal is to the right."""

    action_space = spaces.Discrete(4)
    observation_space = spaces.Dict(
        rgb=spaces.Box(0, 255, (32, 32, 3), np.uint8),
        depth_u8=spaces.Box(0, 255, (32, 32, 1), np.uint8),
        goal=spaces.Box(np.array([0, -1, -1], np.float32), np.array([100, 1, 1], np.float32)),
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.answer = int(self.np_random.integers(4))
        depth = np.zeros((32, 32, 1), np.uint8)
        depth[:, 16 * (self.answer % 2) :][:, :16] = 200
        rgb = self.np_random.integers(0, 256, (32, 32, 3), np.uint8)
        goal = np.array([self.np_random.uniform(0, 4), 0.0, 1.0 - 2.0 * (self.answer // 2)], np.float32)
        return {"rgb": rgb, "depth_u8": depth, "goal": goal}, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = float(action == self.answer)
        return self.reset()[0], right, True, False, {}


def test_the_network_sees_depth_through_noise_and_hears_of_the_goal() -> None:
    vector = DummyVecEnv([WhereIsTheLight] * 4)
    vector.seed(0)
    model = PPO("MultiInputPolicy", vector, n_steps=64, batch_size=64, n_epochs=8, learning_rate=1e-3, seed=0,
                policy_kwargs=policy_kwargs(PPOConfig()), device="cpu")  # fmt: skip
    model.learn(3_000)
    seen, rewards = vector.reset(), []
    for _ in range(50):
        chosen, _ = model.predict(seen, deterministic=True)
        seen, reward, _, _ = vector.step(chosen)
        rewards.extend(reward)
    assert np.mean(rewards) > 0.9  # chance is 0.25; half of the answer alone gives 0.5


@pytest.mark.parametrize(("coarse_px", "alike"), [(8, True), (16, False)])
def test_what_is_finer_than_a_policy_looks_is_the_same_to_it(coarse_px: int, alike: bool) -> None:
    eyes = Eyes(spaces.Dict(depth_u8=spaces.Box(0, 255, (1, 64, 64), np.uint8)), coarse_px=coarse_px)
    stripes = (torch.arange(64) // 4 % 2).float().expand(1, 1, 64, 64)  # 4 pixels wide
    assert torch.equal(eyes({"depth_u8": stripes}), eyes({"depth_u8": torch.full_like(stripes, 0.5)})) == alike


SEEN = spaces.Dict(
    depth_u8=spaces.Box(0, 255, (1, 32, 32), np.uint8),
    last_action=spaces.Box(-1.0, 1.0, (7,), np.float32),
    goal=spaces.Box(-100.0, 100.0, (3,), np.float32),
)


@pytest.mark.parametrize(("mode", "swapped"), [("navigation", [0, 1, 3, 2]), ("discrete", [0, 1, 2, 4, 3, 6, 5, 7, 8])])
def test_in_a_mirror_left_and_right_are_swapped(mode: str, swapped: list[int]) -> None:
    config = PPOConfig(mirror=True)
    policy = policy_class(config)(SEEN, action_space(mode), lambda _: 0.0, **policy_kwargs(config))
    depth = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    numbers = torch.randn(3, 7), torch.randn(3, 3)
    seen = {"depth_u8": depth, "last_action": numbers[0], "goal": numbers[1]}
    signs = torch.tensor([-1.0, 1, 1, -1, 1, -1, 1]), torch.tensor([1.0, 1, -1])  # right, yaw and roll; the bearing
    mirror = {"depth_u8": depth.flip(3), "last_action": numbers[0] * signs[0], "goal": numbers[1] * signs[1]}
    one, other = (policy.get_distribution(x).distribution.probs for x in (seen, mirror))
    torch.testing.assert_close(one, other[:, swapped])
    assert not torch.allclose(one, other)
    torch.testing.assert_close(policy.predict_values(seen), policy.predict_values(mirror))
    actions, values, log_prob = policy(seen)
    again = policy.evaluate_actions(seen, actions)
    torch.testing.assert_close((values, log_prob), again[:2])


def test_what_has_no_mirror_image_is_named() -> None:
    config = PPOConfig(mirror=True)
    with pytest.raises(InvalidValueError, match=r"ppo\.mirror needs numbered actions; take action_mode: navigation"):
        policy_class(config)(SEEN, action_space("planar"), lambda _: 0.0, **policy_kwargs(config))
    with pytest.raises(InvalidValueError, match=r"ppo\.mirror needs numbered actions"):
        policy_class(config)(SEEN, spaces.Discrete(5), lambda _: 0.0, **policy_kwargs(config))
    seen = spaces.Dict({**SEEN.spaces, "sonar": spaces.Box(0.0, 1.0, (4,), np.float32)})
    with pytest.raises(InvalidValueError, match='mirror image of the observation "sonar"; set mirror: false'):
        policy_class(config)(seen, action_space("navigation"), lambda _: 0.0, **policy_kwargs(config))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train(replace(TINY, ppo=replace(TINY.ppo, total_steps=16)), folder)
    return folder


def test_training_goes_on_where_it_was_cut_off(trained: Path) -> None:
    before, first = read_card(trained / CHECKPOINT), load_file(trained / CHECKPOINT)
    assert (before["steps"], before["spaces"]) == (16, "depth_u8 (32, 32, 1), goal (3,), rgb (32, 32, 3); 9 actions")
    assert train(TINY, trained)
    after, second = read_card(trained / CHECKPOINT), load_file(trained / CHECKPOINT)
    assert after["steps"] == 32 and after["seconds"] > before["seconds"]
    updates = {name: float(value) for name, value in first.items() if name.endswith(".step")}
    assert updates and all(float(second[name]) == 2 * value for name, value in updates.items())
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("policy."))
    assert [point["steps"] for point in curve(trained)] == [16, 32]
    seconds = (trained / CHECKPOINT).stat().st_mtime_ns
    assert train(TINY, trained)  # nothing is left to do
    assert (trained / CHECKPOINT).stat().st_mtime_ns == seconds


def test_no_time_keeps_what_there_is(tmp_path: Path) -> None:
    assert not train(TINY, tmp_path, minutes=0.0)
    assert read_card(tmp_path / CHECKPOINT)["steps"] < TINY.ppo.total_steps
    assert json.dumps(curve(tmp_path)) == "[]"


def test_a_rollout_that_began_in_time_is_learned_from(tmp_path: Path) -> None:
    moments = iter(range(0, 6000, 30))  # half a minute passes whenever somebody looks
    config = replace(TINY, ppo=replace(TINY.ppo, total_steps=1600))
    assert not train(config, tmp_path, minutes=3.0, clock=lambda: float(next(moments)))
    card, stored = read_card(tmp_path / CHECKPOINT), load_file(tmp_path / CHECKPOINT)
    rollouts, rest = divmod(card["steps"], config.ppo.envs * config.ppo.n_steps)
    assert 1 < rollouts < 6 and rest == 0 and card["seconds"] >= 180.0
    updates = {float(value) for name, value in stored.items() if name.endswith(".step")}
    assert updates == {2.0 * rollouts}  # two batches of 8 in the 16 steps of each rollout


def test_a_trained_agent_acts_alike_for_a_seed(trained: Path) -> None:
    env: Any = make_env(TINY.world)
    seen, _ = env.reset(seed=0)
    agent = make_agent("ppo", TINY, env.unwrapped, trained)
    drawn = []
    for _ in range(2):
        agent.begin(env.unwrapped, 3)
        drawn.append([agent.act(seen) for _ in range(20)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1  # an agent that learned nothing yet draws from all actions


@pytest.mark.parametrize(("sureness", "alone"), [(1.0, False), (100.0, True)])
def test_a_sure_agent_takes_its_likeliest_action(trained: Path, sureness: float, alone: bool) -> None:
    env: Any = make_env(TINY.world)
    seen, _ = env.reset(seed=0)
    agent = make_agent("ppo", replace(TINY, ppo=replace(TINY.ppo, sureness=sureness)), env.unwrapped, trained)
    with torch.no_grad():
        agent.policy.action_net.bias[2] += 3.0
    agent.begin(env.unwrapped, 3)
    drawn = [agent.act(seen) for _ in range(40)]
    assert max(set(drawn), key=drawn.count) == 2 and (set(drawn) == {2}) == alone


def test_continuous_actions_lie_in_their_space(tmp_path: Path) -> None:
    world = replace(WORLD, kwargs={**WORLD.kwargs, "action_mode": "planar"})
    config = replace(TINY, world=world, test=world, ppo=replace(TINY.ppo, total_steps=16))
    train(config, tmp_path)
    env: Any = make_env(world)
    seen, _ = env.reset(seed=0)
    agent = make_agent("ppo", config, env.unwrapped, tmp_path)
    agent.begin(env.unwrapped, 0)
    assert all(env.action_space.contains(agent.act(seen)) for _ in range(20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_mode": "planar"}, r"trained for .*9 actions, but this world has .*actions \(3,\)"),
        ({"size": [40, 40]}, r"trained for .*\(32, 32, 3\).*, but this world has .*\(40, 40, 3\)"),
        ({"obs": ["rgb", "goal"]}, "use the observations, size and action mode of the training"),
    ],
)
def test_a_checkpoint_from_other_spaces(trained: Path, change: dict[str, Any], message: str) -> None:
    env: Any = make_env(replace(WORLD, kwargs={**WORLD.kwargs, **change}))
    with pytest.raises(WeightsError, match=message):
        make_agent("ppo", TINY, env.unwrapped, trained)


def test_checkpoints_that_are_none(trained: Path, tmp_path: Path) -> None:
    env: Any = make_env(TINY.world)
    with pytest.raises(WeightsError, match=r"no checkpoint at .*; train one with mirage-env agent train"):
        make_agent("ppo", TINY, env.unwrapped, tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"not safetensors at all")
    with pytest.raises(WeightsError, match="is damaged"):
        make_agent("ppo", TINY, env.unwrapped, tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(WeightsError, match="holds no agent"):
        make_agent("ppo", TINY, env.unwrapped, tmp_path)
    with pytest.raises(WeightsError, match="does not fit the configured network"):
        make_agent("ppo", replace(TINY, ppo=replace(TINY.ppo, features=8)), env.unwrapped, trained)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match='device must be auto, cpu or an available cuda, got "cudda"; use cpu'):
        train(replace(TINY, ppo=replace(TINY.ppo, device="cudda")), tmp_path)


@pytest.mark.parametrize(
    ("obs", "message"),
    [("rgb", "PPO needs a Dict observation"), (["rgb", "depth"], r'cannot use the observation "depth" \(32, 32\)')],
)
def test_what_ppo_cannot_see(obs: Any, message: str, tmp_path: Path) -> None:
    world = replace(WORLD, kwargs={**WORLD.kwargs, "obs": obs})
    with pytest.raises(InvalidValueError, match=message):
        train(replace(TINY, world=world), tmp_path)
