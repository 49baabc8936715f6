from __future__ import annotations

from pathlib import Path

import pytest

from mirage_env.errors import WeightsError
from mirage_env.rollout.config import Run, RunConfig
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.run import run_shard

SIMULATED = {"env": "MirageSim-v0", "episodes": 1, "steps": 12, "env_kwargs": {"size": [32, 32]}}


@pytest.mark.parametrize("action_mode", ["discrete", "planar"])
def test_the_explorer_moves_a_rollout(tmp_path: Path, action_mode: str) -> None:
    kwargs = {**SIMULATED["env_kwargs"], "action_mode": action_mode, "obs": "rgb", "task": "explore"}
    run_shard(Run(RunConfig(**{**SIMULATED, "mover": "explorer", "env_kwargs": kwargs})), str(tmp_path / "out"))
    (episode,) = RunFolder(tmp_path / "out").episodes()
    assert len(episode) == 13 and episode.metadata["return"] > 0
    turned = episode.array("world_from_camera")[:, 0, 2]  # sine of the yaw
    assert turned.max() > 0.9  # it begins with a look around


def test_a_policy_needs_its_checkpoint_before_anything_is_written(tmp_path: Path) -> None:
    kwargs = {"path": str(tmp_path), "config": "explore"}
    about = {**SIMULATED, "env_kwargs": {"size": [32, 32], "obs": ["rgb", "depth_u8"]}, "mover": "policy"}
    with pytest.raises(WeightsError, match="no checkpoint at"):
        run_shard(Run(RunConfig(**{**about, "mover_kwargs": kwargs})), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
