"""With real ray, two workers in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirage_env.errors import InvalidValueError
from mirage_env.rollout.config import Run, RunConfig
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.on_ray import run_on_ray
from mirage_env.rollout.run import run_shard

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # ray's own
ROOT = str(Path(__file__).resolve().parents[2])
SIMULATED = {
    "env": "MirageSim-v0", "episodes": 4, "steps": 4, "episodes_a_unit": 1,
    "env_kwargs": {"size": [32, 32], "chunk": 4},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: it takes seconds to start."""
    environment = {"env_vars": {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}}
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False, runtime_env=environment)
    yield
    ray.shutdown()


class DiesOnce:
    """A mover that ends its process the first time that it is asked for anything."""

    def __init__(self, env: Any, rng: np.random.Generator, mark: str):
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), 9)

    def act(self, observation: Any, info: Any) -> Any:
        return np.full(3, 0.1, np.float32)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_workers_give_the_bytes_of_one_and_dead_ones_are_replaced(tmp_path: Path) -> None:
    """Three are asked for: the third waits for a processor until there is nothing left to do."""
    mark = tmp_path / "mark"
    mover = {"mover": "tests.rollout.test_on_ray:DiesOnce", "mover_kwargs": {"mark": str(mark)}}
    run = Run(RunConfig(**SIMULATED, **mover))
    outcome = run_on_ray(run, str(tmp_path / "two"), workers=3)
    assert mark.exists()  # it did die
    assert (outcome.units, outcome.episodes, outcome.failed, outcome.stopped) == (4, 4, 0, False)
    assert [faults for _, faults in RunFolder(tmp_path / "two").verify()] == [[]] * 4
    run_shard(run, str(tmp_path / "one"))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="MirageSim-v0 cannot be made"):
        run_on_ray(Run(RunConfig(**{**SIMULATED, "env_kwargs": {"speed": 3}})), str(tmp_path / "out"), workers=1)
