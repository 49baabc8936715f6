"""Every example runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAYS = {
    "quickstart": "The walk is in quickstart.png",
    "custom_memory": "postcard",
    "custom_task": "'blue/blue': 0.",
    "vectorised_rollout": "8 worlds, observations (8, 64, 64, 3)",
    "train_ppo": "ppo in the true world: SPL",
}
LEAVES = {"quickstart": "quickstart.png", "train_ppo": "runs/example-ppo/episode.mp4"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    if path.stem == "train_ppo" and find_spec("stable_baselines3") is None:
        pytest.skip("the extra `agents` is not installed")
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert SAYS[path.stem] in done.stdout
    if path.stem in LEAVES:
        assert (tmp_path / LEAVES[path.stem]).stat().st_size > 1000
