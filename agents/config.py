"""What a YAML in `envs_config/agents/` may say, and `key=value` on the command line to say otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mirage_env.config import build, read_yaml, with_overrides
from mirage_env.errors import InvalidValueError, UnknownNameError, check_count, check_number
from mirage_env.resources import ENVS_CONFIG

T = TypeVar("T")
AGENTS, PROOFS = ENVS_CONFIG / "agents", ENVS_CONFIG / "proof"


@dataclass(frozen=True)
class WorldConfig:
    """Where an agent lives."""

    id: str = "Mirage-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `gym.make`."""
    steps: int = 100
    """Steps of an episode."""
    scene_seeds: tuple[int, ...] | None = None
    """For simulated worlds: the scenes that episodes draw from; None leaves it to the environment."""
    drafts_only: bool = False
    """Every frame is the memory's first picture warped, nothing is generated: what generation must beat."""

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.drafts_only and self.id != "Mirage-v0":
            raise InvalidValueError(f"drafts_only needs the world Mirage-v0, got {self.id}")


@dataclass(frozen=True)
class PPOConfig:
    """Stable-Baselines3's PPO; names and meaning are its own."""

    total_steps: int = 100_000
    envs: int = 16
    n_steps: int = 16
    batch_size: int = 128
    n_epochs: int = 10
    learning_rate: float = 1e-3
    anneal: bool = True
    """Let the learning rate fall evenly, to a twentieth of itself at `total_steps`."""
    gamma: float = 0.9
    gae_lambda: float = 0.9
    ent_coef: float = 0.01
    clip_range: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    sureness: float = 2.0
    """At work, discrete actions are drawn with their probabilities to this power: above 1 the noise that it learned
    with is less, and it stands longer before what it does not see."""
    features: int = 64
    """Numbers that the network makes of what it sees."""
    coarse_px: int = 16
    """Pictures (not the map) are averaged down to about so many pixels a side before they are convolved: what matters
    is large."""
    mirror: bool = False
    """Judge what is seen together with its mirror image, see `MirrorPolicy`; for numbered actions."""
    device: str = "cpu"
    checkpoint_steps: int = 10_000
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "envs",
            "n_steps",
            "batch_size",
            "n_epochs",
            "features",
            "coarse_px",
            "checkpoint_steps",
        ):
            check_count(name, getattr(self, name))
        for name in ("learning_rate", "gamma", "gae_lambda", "clip_range"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        check_number("sureness", self.sureness, 0.0, 100.0)
        for name in ("ent_coef", "vf_coef", "max_grad_norm"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InvalidValueError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        if self.envs * self.n_steps < 2 or self.batch_size > self.envs * self.n_steps:
            raise InvalidValueError(
                f"batch_size must be at most envs * n_steps = {self.envs * self.n_steps}, got {self.batch_size}"
            )


@dataclass(frozen=True)
class AgentConfig:
    """One agent: what it is, where it learns, where it is examined."""

    world: WorldConfig
    test: WorldConfig
    """Where `mirage-env agent eval` and `watch` put it."""
    agent: Literal["ppo", "explorer", "random"] = "ppo"
    ppo: PPOConfig = field(default_factory=PPOConfig)
    seed: int = 0
    test_episodes: int = 20
    first_test_seed: int = 0
    """Episode k is reset with this seed + k, whoever is examined."""

    def __post_init__(self) -> None:
        check_count("test_episodes", self.test_episodes)
        for name in ("seed", "first_test_seed"):
            check_count(name, getattr(self, name), least=0)


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    cls: type[T] = AgentConfig,  # type: ignore[assignment]
    folder: Path = AGENTS,
) -> T:
    """A configuration by its name in `folder`, or from the path of a YAML, with every `a.b=value` applied.

    Values of overrides are YAML. Raises UnknownNameError and InvalidValueError in one sentence.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{source}.yaml"
        if not path.is_file():
            raise UnknownNameError("agent config", str(source), (x.stem for x in folder.glob("*.yaml")))
    elif not path.is_file():
        known = ", ".join(sorted(x.stem for x in folder.glob("*.yaml")))
        raise InvalidValueError(f"no config file at {path}; built-in ones are {known}")
    values = with_overrides(read_yaml(path), overrides, example="ppo.learning_rate=1e-3")
    return build(cls, values, path.name)
