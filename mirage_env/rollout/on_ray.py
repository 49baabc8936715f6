"""The same run on many processes or machines through ray core: an optional extra, `pip install mirage-env[ray]`."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from mirage_env.errors import InvalidValueError, MirageError
from mirage_env.rollout.config import Run
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.run import Outcome, Progress, Stop, Worker

ATTEMPTS = 3
"""A unit whose worker died is given to a new one, so often at most."""


def run_on_ray(
    run: Run, out: str, workers: int | None = None, progress: Progress | None = None, stop: Stop | None = None
) -> Outcome:
    """Hands out one unit after another to `workers` actors, one CPU each; without a number, one for each CPU. More than
    there are CPUs wait until the cluster has grown.

    Uses the cluster of RAY_ADDRESS where that is set, else this machine. `out` must be a folder that all machines see.
    Workers that die are replaced. Raises InvalidValueError where ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise InvalidValueError("--workers ray needs ray; install it with: pip install 'mirage-env[ray]'") from None

    run.check()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        return _run(ray, run, out, workers or max(1, int(ray.cluster_resources().get("CPU", 1))), progress, stop)
    finally:
        if ours:
            ray.shutdown()


def _run(ray: Any, run: Run, out: str, workers: int, progress: Progress | None, stop: Stop | None) -> Outcome:
    folder, outcome = RunFolder(out), Outcome()
    folder.tidy()
    todo = [unit for unit in range(run.config.units) if not folder.exists(unit)]
    total = sum(len(run.jobs(unit)) for unit in todo) * (run.config.steps + 1)
    attempts = dict.fromkeys(todo, 0)
    actor_class = ray.remote(num_cpus=1)(_RayWorker)
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, int | None]] = {}
    """With a unit, or without one while it waits for a processor: what is asked for may be more than there are."""
    made = done = stillborn = 0
    while (todo and not stop) or any(unit is not None for _, unit in busy.values()):
        while todo and not stop and idle:
            actor, first = idle.pop(), todo.pop(0)
            attempts[first] += 1
            busy[actor.generate.remote(first)] = (actor, first)
        while made < min(workers, len(attempts)) and todo and not stop:
            actor = actor_class.remote(run, out)
            busy[actor.ready.remote()] = (actor, None)
            made += 1
        finished, _ = ray.wait(list(busy), timeout=0.5)
        for result in finished:
            actor, unit = busy.pop(result)
            try:
                answer = ray.get(result)
                idle.append(actor)
                if unit is None:
                    continue
                part = Outcome(**json.loads(answer))
            except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
                made -= 1
                if unit is None:
                    stillborn += 1
                    if stillborn >= ATTEMPTS:
                        raise MirageError(
                            f"ray's workers cannot start ({' '.join(str(error).split())[:200]})"
                        ) from None
                    continue
                if attempts[unit] < ATTEMPTS:
                    todo.insert(0, unit)
                    continue
                folder.fail(unit, None, f"the worker died {ATTEMPTS} times at this unit; it may need more memory")
                part = Outcome(failed=len(run.jobs(unit)))
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, MirageError) else error from None
            for name in ("units", "episodes", "frames", "failed"):
                setattr(outcome, name, getattr(outcome, name) + getattr(part, name))
            done += len(run.jobs(unit)) * (run.config.steps + 1)
            if progress is not None:
                progress(done, total, f"unit {unit}")
    outcome.stopped = bool(todo)
    return outcome


class _RayWorker:
    """A worker in a process of ray's; results travel as JSON."""

    def __init__(self, run: Run, out: str):
        self._run, self._folder = run, RunFolder(out)

    @cached_property
    def _worker(self) -> Worker:
        """Made when first used: ray cannot tell an actor whose constructor raised from one that died."""
        return Worker(self._run)

    def ready(self) -> None:
        """Returns once the process is there."""

    def generate(self, unit: int) -> str:
        return json.dumps(vars(self._worker.run_units(self._folder, [unit])))
