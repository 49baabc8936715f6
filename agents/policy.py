"""The network that PPO trains: a small CNN over RGB-D, the goal beside it; and a trained one at work."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from mirage_env.agents.checkpoint import load_checkpoint, read_card
from mirage_env.agents.config import PPOConfig
from mirage_env.envs.actions import CHOICES
from mirage_env.envs.env import WalkEnv
from mirage_env.envs.occupancy import AROUND_CELLS
from mirage_env.errors import InvalidValueError

BEARINGS = 12
"""A goal's bearing is told by so many bumps around the circle, each as wide as they lie apart ..."""
DISTANCES_M = (0.0, 0.3, 0.6, 0.9, 1.3, 1.8, 2.5, 3.5, 5.0)
"""... and its distance by a bump at each of these, as wide as the gap to the next."""

MIRRORED = {"last_action": (-1, 1, 1, -1, 1, -1, 1), "goal": (1, 1, -1), "chunk_phase": (1,)}
"""Signs that numbers get in a mirror; what is seen and the map are flipped."""
_SIDES, _OTHER = re.compile("left|right"), {"left": "right", "right": "left"}


class Eyes(BaseFeaturesExtractor):
    """Every uint8 picture of one size is a plane of one image (RGB and depth see the same pixels; the map has its own),
    from which a small CNN makes `features` numbers. What is told in numbers stands beside them, not among thousands of
    pixels, and is told in many bumps rather than three numbers: PPO learns from it in a tenth of the steps."""

    def __init__(self, observation_space: Any, features: int = 64, coarse_px: int = 16):
        self._groups: dict[str, list[str]] = {}
        self._numbers, wide = [], 0
        for name, space in observation_space.items():
            if is_image_space(space):
                self._groups.setdefault("x".join(map(str, space.shape[1:])), []).append(name)
            else:
                self._numbers.append(name)
                wide += BEARINGS + len(DISTANCES_M) + 3 if name == "goal" else int(np.prod(space.shape))
        super().__init__(observation_space, features * bool(self._groups) + wide)
        self.looks = nn.ModuleDict()
        seen = 0
        for size, names in self._groups.items():
            shape = sum(observation_space[name].shape[0] for name in names), *map(int, size.split("x"))
            self.looks[size] = look = _convolutions(*shape, coarse_px)
            with torch.no_grad():
                seen += look(torch.zeros(1, *shape)).shape[1]
        self.mix = nn.Sequential(nn.Linear(seen, features), nn.Tanh()) if seen else None

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        parts = []
        if self.mix is not None:
            looks = [
                self.looks[size](torch.cat([observation[name] for name in names], 1) - 0.5)
                for size, names in self._groups.items()
            ]
            parts.append(self.mix(torch.cat(looks, 1)))
        for name in self._numbers:
            numbers = observation[name].flatten(1)
            parts.append(told(numbers) if name == "goal" else numbers)
        return torch.cat(parts, 1)


def told(goal: Float[Tensor, "B 3"]) -> Float[Tensor, "B n"]:
    """A goal (distance in metres, cos, sin of the bearing) as bumps in [0, 1], beside the numbers themselves."""
    distance, cos, sin = goal.unbind(1)
    bearing = torch.atan2(sin, cos)[:, None]
    apart = 2 * math.pi / BEARINGS
    away = torch.remainder(bearing - apart * torch.arange(BEARINGS, device=goal.device) + math.pi, 2 * math.pi)
    at = torch.tensor(DISTANCES_M, device=goal.device)
    width = torch.diff(at, append=2 * at[-1:] - at[-2])
    off = (distance[:, None].clamp(max=DISTANCES_M[-1]) - at) / width
    bumps = [torch.exp(-(((away - math.pi) / apart) ** 2)), torch.exp(-(off**2))]
    return torch.cat([*bumps, distance[:, None].clamp(max=10.0) / DISTANCES_M[-1], goal[:, 1:]], 1)


def _convolutions(planes: int, height: int, width: int, coarse_px: int) -> nn.Sequential:
    """Pictures are averaged down to about `coarse_px` a side, the map, where each cell matters, is not."""
    finer = max(1, min(height, width) // coarse_px) if min(height, width) > AROUND_CELLS else 1
    layers: list[nn.Module] = [nn.AvgPool2d(finer)] if finer > 1 else []
    side, channels = min(height, width) // finer, 16
    while side > 4:
        layers += [nn.Conv2d(planes, channels, 3, 2, 1), nn.ReLU()]
        planes, channels, side = channels, 32, -(-side // 2)
    return nn.Sequential(*layers, nn.Flatten())


def policy_kwargs(config: PPOConfig) -> dict[str, Any]:
    """What `PPO(policy_kwargs=...)` needs."""
    return {
        "features_extractor_class": Eyes,
        "features_extractor_kwargs": {"features": config.features, "coarse_px": config.coarse_px},
        "net_arch": {"pi": [64], "vf": [64]},
    }


def check_observations(space: spaces.Space[Any]) -> None:
    """Raises InvalidValueError for what the policy cannot see."""
    if not isinstance(space, spaces.Dict):
        raise InvalidValueError("PPO needs a Dict observation; name several, as in obs: [rgb, depth_u8]")
    for name, box in space.items():
        if len(box.shape) >= 2 and not is_image_space(box):
            raise InvalidValueError(f'PPO cannot use the observation "{name}" {box.shape}; take depth_u8 for depth')


class MirrorPolicy(MultiInputActorCriticPolicy):
    """What is right on the left is right on the right in a mirror: half as much to learn from the same steps.

    Logits are those for what is seen plus those for its mirror image with left and right swapped; the value is the mean
    of both. Raises InvalidValueError for actions or observations that it cannot mirror.
    """

    def __init__(self, seen: Any, moves: spaces.Space[Any], *args: Any, **kwargs: Any):
        names = next((names for names in CHOICES.values() if moves == spaces.Discrete(len(names))), None)
        if names is None:
            raise InvalidValueError("ppo.mirror needs numbered actions; take action_mode: navigation, or mirror: false")
        for name, space in seen.items():
            if not is_image_space(space) and name not in MIRRORED:
                raise InvalidValueError(f'nobody knows the mirror image of the observation "{name}"; set mirror: false')
        self._swapped = [names.index(_SIDES.sub(lambda side: _OTHER[side[0]], name)) for name in names]
        super().__init__(seen, moves, *args, **kwargs)

    def _judged(self, obs: dict[str, Tensor]) -> tuple[Distribution, Tensor]:
        both = {name: torch.cat([x, _mirrored(name, x)]) for name, x in obs.items()}
        latent_pi, latent_vf = self.mlp_extractor(self.extract_features(both))
        (logits, mirrored), values = self.action_net(latent_pi).chunk(2), self.value_net(latent_vf).chunk(2)
        return self.action_dist.proba_distribution(logits + mirrored[:, self._swapped]), (values[0] + values[1]) / 2

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        drawn, values = self._judged(obs)
        actions = drawn.get_actions(deterministic=deterministic)
        return actions, values, drawn.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        drawn, values = self._judged(obs)
        return values, drawn.log_prob(actions), drawn.entropy()

    def get_distribution(self, obs: Any) -> Distribution:
        return self._judged(obs)[0]

    def predict_values(self, obs: Any) -> Tensor:
        return self._judged(obs)[1]


def _mirrored(name: str, seen: Tensor) -> Tensor:
    return seen.flip(-1) if seen.dim() == 4 else seen * seen.new_tensor(MIRRORED[name])


def policy_class(config: PPOConfig) -> type[MultiInputActorCriticPolicy]:
    """What `PPO` is given, and what a checkpoint is loaded into."""
    return MirrorPolicy if config.mirror else MultiInputActorCriticPolicy


class PolicyAgent:
    """A trained policy at work: draws its actions from a seed of each episode, as it did while it learned, or surer
    (`PPOConfig.sureness`). The best action alone would stand before the same wall for ever.
    """

    def __init__(self, path: Path, env: WalkEnv, config: PPOConfig):
        check_observations(env.observation_space)
        read_card(path)  # that there is none is the first thing to say
        from stable_baselines3.common.vec_env import VecTransposeImage

        seen = spaces.Dict(
            {
                name: VecTransposeImage.transpose_space(space, name) if is_image_space(space) else space
                for name, space in env.observation_space.spaces.items()
            }
        )
        self.policy = policy_class(config)(seen, env.action_space, lambda _: 0.0, **policy_kwargs(config))
        self.card = load_checkpoint(path, self.policy, env.observation_space, env.action_space)
        self.policy.set_training_mode(False)
        self._sureness = config.sureness

    def begin(self, env: WalkEnv, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(self, observation: Any) -> Any:
        pictures, _ = self.policy.obs_to_tensor(observation)
        drawn = self.policy.get_distribution(pictures).distribution
        if isinstance(self.policy.action_space, spaces.Discrete):
            surer = (self._sureness * drawn.logits[0]).softmax(0)
            return int(torch.multinomial(surer, 1, generator=self._generator))
        noise = torch.randn(drawn.mean.shape, generator=self._generator)
        return (drawn.mean + drawn.stddev * noise)[0].clamp(-1, 1).numpy()
