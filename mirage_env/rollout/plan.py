"""What a run will cost, from a moment of the same work on this machine."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace

from mirage_env.errors import MirageError
from mirage_env.rollout.config import Run
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.run import Worker

_SHORT, _LONG = 1, 3
"""Chunks of the two episodes that are timed; what an episode costs beyond its steps is where their line begins."""


@dataclass(frozen=True)
class Plan:
    """An estimate for this machine; a cluster of other machines scales it."""

    episodes: int
    frames: int
    """At most: where a task or a camera file ends episodes early there are fewer."""
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


def plan(run: Run, shards: int = 1) -> Plan:
    """Generates the beginning of the first unit, three times, in a folder that is gone afterwards.

    Raises MirageError where the run could not begin: no such picture, no such mover.
    """
    config = run.config
    started = time.perf_counter()
    worker = Worker(run)
    startup_s = time.perf_counter() - started
    chunk = int(config.env_kwargs.get("chunk", 1))
    short, long = (min(config.steps, max(8, chunk) * chunks) for chunks in (_SHORT, _LONG))
    _timed(run, short)  # warm
    seconds, size = _timed(run, long)
    if short < long:  # a straight line through both
        short_seconds, short_size = _timed(run, short)
        beyond = (config.steps - long) / (long - short)
        seconds += beyond * (seconds - short_seconds)
        size += round(beyond * (size - short_size))
    first = len(run.jobs(0))
    units_a_worker = -(-config.units // shards)
    frames = config.episodes * (config.steps * worker.temporal_stride + 1)
    busy_s = seconds * config.episodes / first
    return Plan(
        episodes=config.episodes,
        frames=frames,
        units=config.units,
        files=2 * config.units + 1,
        bytes=round(size * config.episodes / first),
        seconds_a_unit=seconds * config.episodes_a_unit / first,
        startup_s=startup_s,
        frames_a_second=frames / busy_s,
        node_hours=(busy_s + shards * startup_s) / 3600,
        hours=(units_a_worker / config.units * busy_s + startup_s) / 3600,
    )


def _timed(run: Run, steps: int) -> tuple[float, int]:
    """Seconds and bytes of the first unit with so many steps an episode."""
    shorter = Run(replace(run.config, steps=steps, keep=None))
    worker = Worker(shorter)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sidecar = worker.generate(RunFolder(folder), 0)
        seconds = time.perf_counter() - start
    assert sidecar is not None  # nobody else knows the folder
    for summary in sidecar["episodes"]:
        if summary["error"] is not None:
            raise MirageError(f"episode {summary['episode']} cannot begin: {summary['error']}")
    return seconds, sidecar["bytes"]
