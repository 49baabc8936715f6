"""What a run will cost, from a moment of the same work on this machine."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mirage_env.errors import MirageError
from mirage_env.rollout import movers
from mirage_env.rollout.config import Run
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.run import Worker

_SHORT, _LONG = 1, 3
"""Chunks of the two episodes that are timed; what an episode costs beyond its steps is where their line begins."""
_UNITS_LOOKED_AT = 64
"""Where camera files end episodes, those of so many units say how long episodes are."""


@dataclass(frozen=True)
class Plan:
    """An estimate for this machine; a cluster of other machines scales it."""

    episodes: int
    frames: int
    """At most: where a task ends episodes early there are fewer."""
    units: int
    files: int
    bytes: int
    seconds_a_unit: float
    """How long SIGTERM may have to wait."""
    startup_s: float
    """To load the model, once a worker."""
    frames_a_second: float
    node_hours: float
    """Of all workers together."""
    hours: float
    """Until the last worker is done."""


class _Sample(NamedTuple):
    """A first unit that was generated."""

    seconds: float
    bytes: int
    episodes: int
    """Those that could begin."""
    steps: int
    """Of all its episodes together."""


def plan(run: Run, shards: int = 1) -> Plan:
    """Generates the beginning of the first unit, three times, in a folder that is gone afterwards.

    Raises MirageError where the run could not begin: no such mover, no picture of the first unit that can be used.
    """
    config = run.config
    started = time.perf_counter()
    worker = Worker(run)
    startup_s = time.perf_counter() - started
    chunk = int(config.env_kwargs.get("chunk", 1))
    short_steps, long_steps = (min(config.steps, max(8, chunk) * chunks) for chunks in (_SHORT, _LONG))
    _timed(run, short_steps)  # warm
    long = _timed(run, long_steps)
    short = _timed(run, short_steps) if short_steps < long_steps else long
    episodes, first, steps = config.episodes, long.episodes, _steps(run)

    def whole(of_short: float, of_long: float) -> float:
        """Of the run, by a straight line through both."""
        if short.steps == long.steps:  # that short are the episodes
            return of_long * episodes / first
        a_step = (of_long - of_short) / (long.steps - short.steps)
        an_episode = (of_long - a_step * long.steps) / first
        return episodes * an_episode + steps * a_step

    busy_s = whole(short.seconds, long.seconds)
    frames = round(steps) * worker.temporal_stride + episodes
    units_a_worker = -(-config.units // shards)
    return Plan(
        episodes=episodes,
        frames=frames,
        units=config.units,
        files=2 * config.units + 1,
        bytes=round(whole(short.bytes, long.bytes)),
        seconds_a_unit=busy_s / episodes * min(config.episodes_a_unit, episodes),
        startup_s=startup_s,
        frames_a_second=frames / busy_s,
        node_hours=(busy_s + shards * startup_s) / 3600,
        hours=(units_a_worker / config.units * busy_s + startup_s) / 3600,
    )


def _steps(run: Run) -> float:
    """Of the whole run together, at most."""
    config = run.config
    if not run.follows_files:
        return config.episodes * config.steps
    units = np.unique(np.linspace(0, config.units - 1, _UNITS_LOOKED_AT).astype(int)).tolist()
    found = [
        config.steps if job.trajectory is None else min(config.steps, len(movers.follow_path(job.trajectory)) - 1)
        for unit in units
        for job in run.jobs(unit)
    ]
    return config.episodes * float(np.mean(found))


def _timed(run: Run, steps: int) -> _Sample:
    """The first unit with so many steps an episode."""
    shorter = Run(replace(run.config, steps=steps, keep=None))
    worker = Worker(shorter)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sidecar = worker.generate(RunFolder(folder), 0)
        seconds = time.perf_counter() - start
    assert sidecar is not None  # nobody else knows the folder
    whole = [summary for summary in sidecar["episodes"] if summary["error"] is None]
    if not whole:
        summary = sidecar["episodes"][0]
        raise MirageError(f"episode {summary['episode']} cannot begin: {summary['error']}")
    return _Sample(seconds, sidecar["bytes"], len(whole), sum(summary["steps"] for summary in whole))
