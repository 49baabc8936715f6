"""What a plan foretells beside what is then there; times are for `benchmarks/rollout.py --plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirage_env.demo import trajectory
from mirage_env.errors import ImageError, MirageError
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.plan import plan
from mirage_env.rollout.run import run_shard


@pytest.mark.parametrize("changes", [{"steps": 40}, {"steps": 3}, {"steps": 40, "rgb": "video", "episodes": 3}])
def test_frames_files_and_bytes(run_of: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = run_of(env_kwargs={"collision": "none"}, **changes)
    found = plan(run, shards=2)
    run_shard(run, str(tmp_path / "out"))
    status = RunFolder(tmp_path / "out").status()
    assert (found.episodes, found.frames, found.units) == (status.episodes_done, status.frames, status.units_done)
    assert found.files == sum(path.is_file() for path in (tmp_path / "out").rglob("*"))
    assert found.bytes == pytest.approx(status.bytes, rel=0.25)
    assert found.node_hours > found.hours > 0  # two workers share it
    assert found.frames_a_second > 0 and found.seconds_a_unit > 0


def test_camera_files_say_how_long_episodes_are(run_of: Any, tmp_path: Path) -> None:
    (tmp_path / "ways").mkdir()
    for name, count in (("a", 3), ("b", 9)):
        poses = np.concatenate([np.eye(4)[None], trajectory("walk", count)])
        (tmp_path / f"ways/{name}.json").write_text(json.dumps(poses.tolist()))
    run = run_of(mover="cameras", mover_kwargs={"path": str(tmp_path / "ways")}, episodes=4, steps=500)
    found = plan(run)
    run_shard(run, str(tmp_path / "out"))
    status = RunFolder(tmp_path / "out").status()
    assert found.frames == status.frames == 2 * (4 + 10)
    assert found.bytes == pytest.approx(status.bytes, rel=0.25)


def test_what_could_not_begin_is_told(run_of: Any, pictures: Path) -> None:
    (pictures / "p10.png").write_text("no picture")
    assert plan(run_of()).frames == 35  # one of the first unit can be used
    (pictures / "p20.png").write_text("no picture")
    with pytest.raises(MirageError, match=r"episode 0 cannot begin: .*p10.png"):
        plan(run_of())
    with pytest.raises(ImageError, match="no picture at /no/such"):
        plan(run_of(images="/no/such.png"))
