"""RUN.yaml: everything that decides the bytes of a run, and which episode is which."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mirage_env.errors import InvalidValueError, UnknownNameError, check_count, check_number
from mirage_env.rollout.inputs import Input, read_inputs
from mirage_env.rollout.keep import parse_keep
from mirage_env.rollout.movers import MOVERS, camera_files, check_mover
from mirage_env.rollout.store import Layout

TAKEN = ("image", "images", "max_episode_steps", "obs_mode", "render_mode")
"""Arguments of the environment that a run sets itself."""


@dataclass(frozen=True)
class RunConfig:
    """One run. Every value may be overridden on the command line: `steps=32 env_kwargs.size=[64,64]`."""

    images: str | None = None
    """A picture or built-in name, a folder, or a manifest (.csv); episodes take its rows in turn."""
    episodes: int = 100
    steps: int = 64
    """Steps an episode, at most: a task may end it sooner, and so may the end of a camera file."""
    seed: int = 0
    mover: str = "walk"
    """Who moves the camera: walk, loop, cameras, explorer, policy, or module:name of one's own."""
    mover_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the mover; `cameras` takes `path` (a camera file or a folder of them), `policy` takes `path` (the
    folder of its training) and `config`."""
    env: str = "Mirage-v0"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """For `gym.make`: preset, size, chunk, step_m, task ..."""
    episodes_a_unit: int = 8
    """What is generated together, written together and lost together when a machine dies."""
    rgb: Literal["png", "video"] = "png"
    depth_unit_m: float = 0.001
    fps: float = 5.0
    keep: str | None = None
    """Only episodes whose certificate fulfils this are stored, see `mirage_env.rollout.keep`."""
    licence: str = "unspecified"
    """Of the pictures, and so of what was made from them; stored with each episode."""

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "episodes_a_unit"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, least=0)
        check_number("depth_unit_m", self.depth_unit_m, 0.0, 1.0)
        check_number("fps", self.fps, 0.0, 1000.0)
        parse_keep(self.keep)
        if ":" not in self.mover and self.mover not in (known := ("cameras", *MOVERS)):
            raise UnknownNameError("mover", self.mover, known)
        for name in TAKEN:
            if name in self.env_kwargs:
                raise InvalidValueError(f"env_kwargs must not hold {name}: a run sets it itself (images, steps)")

    @property
    def units(self) -> int:
        return -(-self.episodes // self.episodes_a_unit)

    @property
    def layout(self) -> Layout:
        return Layout(self.rgb, self.depth_unit_m, self.fps)


@dataclass(frozen=True)
class Job:
    """One episode before it is generated. Its seed depends on the run's seed and its index alone."""

    episode: int
    seed: int
    """For `reset(seed=...)`."""
    mover_seed: tuple[int, ...]
    source: Input
    trajectory: str | None
    """The camera file to follow."""


@dataclass(frozen=True)
class Run:
    """A configuration with what it names on disk looked up: which episode begins where."""

    config: RunConfig

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        return read_inputs(self.config.images)

    @cached_property
    def camera_files(self) -> tuple[str, ...]:
        return camera_files(self.config.mover_kwargs.get("path")) if self.config.mover == "cameras" else ()

    @property
    def follows_files(self) -> bool:
        """Whether any episode follows a camera file."""
        return self.config.mover == "cameras" or any(row.trajectory for row in self.inputs)

    def check(self) -> None:
        """Raises MirageError, in one sentence, where no episode could begin: its pictures, its mover. Costs little."""
        check_mover(self.config.mover, self.config.mover_kwargs)
        assert self.inputs

    def jobs(self, unit: int) -> list[Job]:
        """The episodes of a unit."""
        size = self.config.episodes_a_unit
        return [self._job(index) for index in range(unit * size, min((unit + 1) * size, self.config.episodes))]

    def fingerprint(self) -> str:
        """sha256 of everything that decides which episode is which; what is inside the pictures is not looked at."""
        plain = {
            "config": asdict(self.config),
            "inputs": [row.plain() for row in self.inputs],
            "camera_files": self.camera_files,
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()

    def _job(self, index: int) -> Job:
        source = self.inputs[index % len(self.inputs)]
        # A row's own seed counts its own rounds, so that the same picture twice is two episodes.
        words = (self.config.seed, index) if source.seed is None else (source.seed, index // len(self.inputs))
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        files = self.camera_files
        # In one round every picture has another file, and in as many rounds as there are files it has had them all.
        follow = files[(index // len(self.inputs) + index % len(self.inputs)) % len(files)] if files else None
        return Job(index, seed, (*words, 1), source, source.trajectory or follow)
