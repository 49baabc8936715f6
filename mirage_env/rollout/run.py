"""Runs the units of a rollout: whichever process does it, and however often it is stopped, the bytes are the same."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from mirage_env import __version__
from mirage_env.envs.env import WalkEnv
from mirage_env.envs.vector import WalkVectorEnv
from mirage_env.envs.world import Walk
from mirage_env.errors import InvalidValueError, MirageError, OutputError
from mirage_env.resources import revision
from mirage_env.rollout import movers
from mirage_env.rollout.config import Job, Run
from mirage_env.rollout.folder import RunFolder, numbers
from mirage_env.rollout.keep import parse_keep
from mirage_env.rollout.store import FORMAT, EpisodeWriter, UnitWriter

Progress = Callable[[int, int, str], None]
"""Called with the frames done, the frames to do, and a note."""


@dataclass
class Outcome:
    """What one call of `run_units` did."""

    units: int = 0
    episodes: int = 0
    frames: int = 0
    failed: int = 0
    stopped: bool = False
    """It was asked to stop, and finished the unit in hand."""


class Stop:
    """Asks a run to stop after the unit in hand."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def ask(self) -> None:
        self._event.set()

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """SIGTERM and the first Ctrl-C ask; a second Ctrl-C breaks off, which costs the unit in hand."""

        def asked(number: int, _: object) -> None:
            if number == signal.SIGINT and self:
                raise KeyboardInterrupt
            self.ask()

        before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Worker:
    """Environments to generate units with, made once. Any number of workers may share a folder."""

    def __init__(self, run: Run):
        """Raises MirageError, in one sentence, where the environment or the mover cannot be made as configured."""
        run.check()
        self.run, self.keep = run, parse_keep(run.config.keep)
        self.vector = _make(run, run.config.mover)
        """What the run's mover moves."""
        if run.config.mover in movers.MOVERS:  # a checkpoint of other observations is told now; others may need a reset
            movers.make_mover(
                run.config.mover, self.vector.envs[0], np.random.default_rng(0), **run.config.mover_kwargs
            )
        mixed = run.config.mover != "cameras" and run.follows_files  # by rows of a manifest: they need other actions
        self._followers = _make(run, "cameras") if mixed else self.vector
        world = self.vector.world
        self.size: tuple[int, int] = world.size
        self.temporal_stride: int = world.temporal_stride
        self.weights: dict[str, str] = getattr(world, "weights", {})

    def run_units(
        self, folder: RunFolder, units: Iterable[int], progress: Progress | None = None, stop: Stop | None = None
    ) -> Outcome:
        """Generates the units that do not exist yet. What fails is told in failures.jsonl, and the rest goes on."""
        folder.claim(self.run, self.weights)
        todo = [unit for unit in units if not folder.exists(unit)]
        tell = progress or (lambda done, total, note: None)
        total = sum(self.frames(unit) for unit in todo)
        outcome, done = Outcome(), 0
        for unit in todo:
            if stop:
                outcome.stopped = True
                break
            tell(done, total, f"unit {unit}")
            try:
                sidecar = self.generate(folder, unit, lambda frames: tell(done + frames, total, f"unit {unit}"))  # noqa: B023
            except OutputError as error:
                folder.fail(unit, None, str(error))
                outcome.failed += len(self.run.jobs(unit))
                sidecar = None
            if sidecar is not None:
                outcome.units += 1
                for summary in sidecar["episodes"]:
                    outcome.episodes += summary["error"] is None
                    outcome.frames += summary["frames"]
                    if summary["error"] is not None:
                        outcome.failed += 1
                        folder.fail(unit, summary["episode"], summary["error"])
            done += self.frames(unit)
            tell(done, total, "")
        return outcome

    def retry(self, folder: RunFolder, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        """Generates the units again in which something failed; a folder of another run is left as it is."""
        folder.claim(self.run, self.weights)
        return self.run_units(folder, folder.forget_failures(), progress, stop)

    def frames(self, unit: int) -> int:
        """How many frames a unit has at most."""
        return len(self.run.jobs(unit)) * (self.run.config.steps * self.temporal_stride + 1)

    def generate(
        self, folder: RunFolder, unit: int, tell: Callable[[int], None] = lambda frames: None
    ) -> dict[str, Any] | None:
        """One unit to disk; returns its sidecar, or None where another process has it in hand or was faster.

        The episodes advance in step, through the networks together. One that fails is left out and told; OutputError
        ends them all. `tell` is called with the number of frames so far.
        """
        writer = UnitWriter(folder.archive(unit), self.run.config.layout)
        if writer.in_use:
            return None
        jobs = self.run.jobs(unit)
        pairs = zip(self.vector.envs, self._followers.envs, strict=True)
        envs = [follower if job.trajectory else env for (env, follower), job in zip(pairs, jobs, strict=False)]
        episodes = [_Episode(self, env, writer, job) for env, job in zip(envs, jobs, strict=True)]
        try:
            self.vector.together([e.whole(lambda: tell(sum(e.writer.frames for e in episodes))) for e in episodes])
            summaries = [episode.summary() for episode in episodes]
            sidecar = {"format": FORMAT, "unit": unit, "fingerprint": self.run.fingerprint(), "episodes": summaries}
            sidecar |= {"revision": revision(), "version": __version__, "archive": folder.archive(unit).name}
            dropped = [e.writer.folder for e, summary in zip(episodes, summaries, strict=True) if not summary["kept"]]
            return writer.commit(sidecar, dropped)
        except BaseException:
            writer.abandon()
            raise
        finally:
            for episode in episodes:
                episode.writer.close()


def _make(run: Run, mover: str) -> WalkVectorEnv:
    """As many environments as a unit has episodes, for the mover."""
    config = run.config
    kwargs: dict[str, Any] = {"obs": "rgb", "feedback": "hold"} if mover in ("walk", "loop", "cameras") else {}
    kwargs |= config.env_kwargs | movers.env_kwargs(mover)
    count = min(config.episodes_a_unit, config.episodes)
    try:
        vector = gym.make_vec(config.env, num_envs=count, max_episode_steps=config.steps, **kwargs)
    except (gym.error.Error, TypeError) as error:
        raise InvalidValueError(f"{config.env} cannot be made: {error}") from error
    if not isinstance(vector, WalkVectorEnv):
        raise InvalidValueError(f"{config.env} is no environment of this package; take Mirage-v0 or MirageSim-v0")
    if config.images is not None and "image" not in vector.envs[0].reset_options:
        raise InvalidValueError(f"{config.env} takes no images; leave them out, or take Mirage-v0")
    return vector


class _Episode:
    """One episode in hand."""

    def __init__(self, worker: Worker, env: WalkEnv, unit: UnitWriter, job: Job):
        self._worker, self._job, self._env = worker, job, env
        self.writer = EpisodeWriter(unit, f"{job.episode:06d}", worker.temporal_stride)
        self._error: str | None = None
        self._about: dict[str, Any] = {}

    def whole(self, tell: Callable[[], None]) -> Walk[None]:
        """The episode from its reset to its end as a walk; what goes wrong with it is kept for `summary`."""
        try:
            yield from self._lived(tell)
        except OutputError:
            raise
        except Exception as error:  # one episode's picture, mover or task; the others go on
            kind = "" if isinstance(error, MirageError) else f"{type(error).__name__}: "
            self._error = " ".join(f"{kind}{error}".split())

    def summary(self) -> dict[str, Any]:
        """The episode's line in the sidecar."""
        job = self._job
        if self._error is not None:
            image = job.source.image
            return {"episode": job.episode, "error": self._error, "image": image, "frames": 0, "kept": False}
        names = ("episode", "frames", "steps", "return", "certificate", "image", "image_sha256", "seed")
        summary = {"error": None, **{name: self._about[name] for name in names}}
        return {**summary, "kept": self._worker.keep(numbers(summary))}

    def _lived(self, tell: Callable[[], None]) -> Walk[None]:
        config, job, env = self._worker.run.config, self._job, self._env
        cameras = None if job.trajectory is None else movers.follow_path(job.trajectory)
        env.close()  # what an episode that failed has left
        options = job.source.reset_options(self._worker.size, cameras)
        observation, info = yield from env.resetting(job.seed, options)
        env.max_episode_steps = config.steps if cameras is None else min(config.steps, len(cameras) - 1)
        mover: movers.Mover
        if cameras is None:
            mover = movers.make_mover(config.mover, env, np.random.default_rng(job.mover_seed), **config.mover_kwargs)
        else:
            mover = movers.Follow(env, cameras)
        self._store()
        over = False
        while not over:
            action = mover.act(observation, info)
            observation, reward, terminated, truncated, info = yield from env.stepping(action)
            self.writer.add_step(action, float(reward))
            self._store()
            tell()
            over = terminated or truncated
        about = {**self._made_by(info), "terminated": terminated, "truncated": truncated}
        self._about = self.writer.finish(about, info["collisions"])

    def _store(self) -> None:
        """What was generated since the last call."""
        frames = self._env.take_chunk()
        if frames is not None:
            self.writer.add_frames(frames)

    def _made_by(self, info: Mapping[str, Any]) -> dict[str, Any]:
        config, job, env = self._worker.run.config, self._job, self._env
        told = ("image", "image_sha256", "scene_seed", "family", "fov_deg", "fov_source")
        return {
            **{name: info.get(name) for name in told},
            "episode": job.episode,
            "seed": job.seed,
            "prompt": job.source.prompt,
            "mover": config.mover if job.trajectory is None else "cameras",
            "trajectory": job.trajectory,
            "env": config.env,
            "size_px": list(self._worker.size),
            "action_mode": env.action_mode,
            "step_m": env.step_m,
            "turn_deg": round(float(np.degrees(env.turn_rad)), 6),
            "camera_height_m": env.camera_height_m,
            "chunk": env.chunk,
            "weights_sha256": self._worker.weights,
            "revision": revision(),
            "version": __version__,
            "licence": config.licence,
        }


def mine(units: int, shard: tuple[int, int]) -> range:
    """The units of shard (i, N): every N-th one from i on."""
    return range(shard[0], units, shard[1])


def run_shard(
    run: Run, out: str, shard: tuple[int, int] = (0, 1), progress: Progress | None = None, stop: Stop | None = None
) -> Outcome:
    """One worker's share of a run, in this process."""
    RunFolder(out).tidy()
    return Worker(run).run_units(RunFolder(out), mine(run.config.units, shard), progress, stop)


def shard_from_text(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """(i, N) from "i/N", i from 0 on, or from the array variables of a cluster for "auto" and "auto/N".

    "auto" knows job arrays and tasks of Slurm, arrays of Grid Engine and of LSF. "auto/N" takes the task's number
    modulo N instead: for arrays of PBS, which do not say how many they are, and where only some tasks are submitted
    again. Raises InvalidValueError.
    """
    index, slash, count = text.partition("/")
    if slash and count.isdecimal() and int(count) > 0 and (index == "auto" or index.isdecimal()):
        return _checked(int(index), int(count)) if index != "auto" else (_task(environment) % int(count), int(count))
    if text != "auto":
        raise InvalidValueError(f'--shard must be i/N with i from 0 to N - 1, auto or auto/N, got "{text}"')
    for names, offset in _ARRAYS:
        if all(environment.get(name, "").isdecimal() for name in names):
            return _checked(*offset([int(environment[name]) for name in names]))
    raise InvalidValueError(
        f"this is task {_task(environment)} of an array, but of how many the cluster does not say; say --shard auto/N"
    )


def _task(environment: Mapping[str, str]) -> int:
    """The number of this task in its array."""
    for name in _TASKS:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    raise InvalidValueError(
        f"--shard auto found no array variables of a cluster ({', '.join(_TASKS)}); submit a job array, or say "
        "--shard i/N"
    )


def _checked(index: int, count: int) -> tuple[int, int]:
    if not 0 <= index < count:
        raise InvalidValueError(f"shard {index} of {count} does not exist; i goes from 0 to N - 1")
    return index, count


_ARRAYS: tuple[tuple[tuple[str, ...], Callable[[list[int]], tuple[int, int]]], ...] = (
    (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"),
        lambda v: ((v[0] - v[1]) // max(v[2], 1), v[3]),
    ),
    (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
        lambda v: (v[0] - v[1], v[2]),
    ),
    (("SLURM_PROCID", "SLURM_NTASKS"), lambda v: (v[0], v[1])),
    (
        ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
        lambda v: ((v[0] - v[1]) // max(v[3], 1), (v[2] - v[1]) // max(v[3], 1) + 1),
    ),
    (("LSB_JOBINDEX", "LSB_JOBINDEX_END"), lambda v: (v[0] - 1, v[1])),
)
"""Variables that must all be numbers -> (i, N)."""
_TASKS = (
    "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "SGE_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "LSB_JOBINDEX",
)  # fmt: skip
"""The number of a task of an array, the first that is there: Slurm, Grid Engine, PBS and Torque, LSF."""
