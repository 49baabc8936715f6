from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mirage_env import world_model
from mirage_env.rollout.config import Run, RunConfig
from tests.rollout.wall import SIZE, load_wall


@pytest.fixture(autouse=True)
def wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Mirage-v0` shows the wall."""
    monkeypatch.setattr(world_model, "load_world", load_wall)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three plain pictures of grey level 10, 20 and 30."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for level in (10, 20, 30):
        Image.fromarray(np.full((40, 60, 3), level, np.uint8)).save(folder / f"p{level}.png")
    return folder


@pytest.fixture
def run_of(pictures: Path) -> Any:
    """Makes runs in front of the wall: 5 episodes of 6 steps in units of 2, whatever is not said."""

    def make(**changes: Any) -> Run:
        kwargs = {"size": list(SIZE), "chunk": 4, **changes.pop("env_kwargs", {})}
        few = {"images": str(pictures), "episodes": 5, "steps": 6, "episodes_a_unit": 2}
        return Run(RunConfig(**{**few, "env_kwargs": kwargs, **changes}))

    return make
