from __future__ import annotations

import errno
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mirage_env.errors import InvalidValueError, OutputError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.rollout.store import (
    EpisodeWriter,
    Layout,
    StoredEpisode,
    UnitWriter,
    read_sealed,
    sidecar_of,
    verify_unit,
    write_sealed,
)
from mirage_env.types import Cameras, Frames

SIZE = (16, 24)


def random_frames(count: int, seed: int = 0) -> Frames:
    rng = np.random.default_rng(seed)
    depth = torch.from_numpy(rng.uniform(0.2, 30.0, (count, *SIZE)).astype(np.float32))
    depth[:, 0, :5] = torch.tensor(
        [torch.nan, torch.inf, -1.0, 0.0, 70.0]
    )  # none of these can be told in 16 bits of mm
    sky = torch.zeros(count, *SIZE, dtype=torch.bool)
    sky[:, 1] = True
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 2, 3] = torch.arange(count) * 0.1
    return Frames(
        rgb=torch.from_numpy(rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)),
        depth_m=depth,
        sky=sky,
        dynamic=torch.zeros_like(sky),
        remembered=torch.from_numpy(rng.random((count, 2, 3)) < 0.5),
        cameras=Cameras(poses, intrinsics_from_fov(1.2, SIZE).repeat(count, 1, 1), SIZE),
    )


def write_unit(
    archive: Path, layout: Layout | None = None, drop: tuple[str, ...] = ()
) -> tuple[Frames, dict[str, Any]]:
    """Two episodes of 5 frames, the frames in two runs; returns the frames of both."""
    unit = UnitWriter(archive, layout or Layout())
    episodes = [EpisodeWriter(unit, f"{index:06d}", 1) for index in (7, 8)]
    frames = random_frames(5)
    for part in (frames[:2], frames[2:]):  # interleaved, as a run does
        for episode in episodes:
            episode.add_frames(part)
    summaries = []
    for index, episode in zip((7, 8), episodes, strict=True):
        for step in range(4):
            episode.add_step(np.full(3, step, np.float32), step / 2)
        about = episode.finish({"episode": index, "size_px": list(SIZE)}, collisions=1)
        summaries.append(
            {"episode": index, "frames": about["frames"], "error": None, "kept": episode.folder not in drop}
        )
    return frames, unit.commit({"unit": 3, "episodes": summaries}, drop)


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    frames, sidecar = write_unit(archive, Layout(fps=10.0))
    assert {path.name for path in tmp_path.iterdir()} == {"000003.zip", "000003.json"}
    assert verify_unit(archive) == []
    episode = StoredEpisode(archive, sidecar["episodes"][1])
    assert len(episode) == 5

    np.testing.assert_array_equal(episode.rgb(), frames.rgb)
    valid = np.ones((5, *SIZE), bool)
    valid[:, 0, :5] = valid[:, 1] = False
    np.testing.assert_array_equal(episode.depth_valid(), valid)
    error = np.abs(episode.depth_m() - frames.depth_m.numpy())[valid]
    assert error.max() <= episode.metadata["depth"]["max_error_m"] + 2e-6  # float32 of 30 m
    assert (episode.depth_m()[~valid] == 0).all()

    np.testing.assert_array_equal(episode.array("world_from_camera"), frames.cameras.world_from_camera)
    np.testing.assert_array_equal(episode.array("intrinsics_px"), frames.cameras.intrinsics_px)
    np.testing.assert_array_equal(episode.array("remembered"), frames.remembered)
    np.testing.assert_allclose(episode.array("timestamp_s"), [0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(episode.array("actions")[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(episode.array("rewards"), [0, 0.5, 1, 1.5])
    about = episode.metadata
    assert (about["frames"], about["steps"], about["return"], about["certificate"]["collisions"]) == (5, 4, 3.0, 1)
    with pytest.raises(InvalidValueError, match="an episode has the arrays"):
        episode.array("speed")


def test_equal_episodes_are_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_unit(tmp_path / folder / "000003.zip")
    for name in ("000003.zip", "000003.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_video_is_smaller_and_close(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    unit = UnitWriter(archive, Layout(rgb="video"))
    episode = EpisodeWriter(unit, "000001", 1)
    frames = random_frames(6)
    ramp = torch.linspace(0, 255, SIZE[1]).expand(6, SIZE[0], SIZE[1])[..., None].expand(-1, -1, -1, 3)
    frames = Frames(**{**vars(frames), "rgb": ramp.to(torch.uint8)})
    episode.add_frames(frames[:3])
    episode.add_frames(frames[3:])
    about = episode.finish({"episode": 1, "size_px": list(SIZE)}, 0)
    sidecar = unit.commit({"episodes": [{"episode": 1, "frames": 6, "kept": True, "error": None}]})
    assert verify_unit(archive) == []
    assert about["rgb"] == "h264 crf 16 yuv420p"
    read = StoredEpisode(archive, sidecar["episodes"][0]).rgb()
    assert np.abs(read.astype(int) - frames.rgb.numpy()).mean() < 3


def test_dropped_episodes_leave_no_byte(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    write_unit(archive, drop=("000007",))
    with zipfile.ZipFile(archive) as file:
        assert {name.split("/")[0] for name in file.namelist()} == {"000008"}
    assert verify_unit(archive) == []
    assert {path.name for path in tmp_path.iterdir()} == {"000003.zip", "000003.json"}


def test_verify_reads_every_byte(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    write_unit(archive)
    rng = np.random.default_rng(0)
    for path in (archive, sidecar_of(archive)):
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert verify_unit(archive), f"byte {place} of {path.name}"
        path.write_bytes(whole[:-1])
        assert verify_unit(archive)
        path.write_bytes(whole)
    assert verify_unit(archive) == []
    archive.unlink()
    (fault,) = verify_unit(archive)
    assert "cannot be read" in fault


def test_a_kill_before_the_sidecar_appears_leaves_nothing_for_good(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    script = (
        "import os, sys; from pathlib import Path; from mirage_env.rollout import store\n"
        "store.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "store.write_sealed(Path(sys.argv[1]), {'x': 'y' * 999})"
    )
    killed = subprocess.run([sys.executable, "-c", script, sidecar_of(archive)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -9 and len(list(tmp_path.iterdir())) == 1
    write_unit(archive)
    assert {path.name for path in tmp_path.iterdir()} == {"000003.zip", "000003.json"}
    assert verify_unit(archive) == []


def test_what_was_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    write_unit(archive)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert UnitWriter(archive, Layout()).in_use
    write_sealed(sidecar_of(archive), {"other": 1})  # of several the first one counts
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_that_is_full_while_episodes_are_left_out_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = UnitWriter(tmp_path / "000003.zip", Layout())
    unit.write("000007/a", b"1")
    unit.write("000008/a", b"2")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OutputError, match="No space left on device"):
        unit.commit({}, ["000007"])
    unit.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_unit_of_another_run_is_told(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    unit = UnitWriter(archive, Layout())
    unit.commit({"episodes": [], "fingerprint": "mine", "archive": archive.name})
    assert verify_unit(archive, "mine") == []
    (fault,) = verify_unit(archive, "yours")
    assert "a unit of another run" in fault
    for path in (archive, sidecar_of(archive)):
        path.rename(path.with_stem("000004"))
    assert "another unit of this one" in verify_unit(tmp_path / "000004.zip", "mine")[0]


def test_a_seal_tells_every_change(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", {"x": 1.5, "y": ["z", None]})
    assert read_sealed(tmp_path / "a.json") == {"x": 1.5, "y": ["z", None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    values = json.loads((tmp_path / "a.json").read_text())
    for text, message in (
        (json.dumps(values), "its seal does not fit"),  # other spaces
        ((tmp_path / "a.json").read_text().replace("1.5", "1.6"), "its seal does not fit"),
        ("{}", "is not what a rollout wrote"),
        ("[1]", "is not what a rollout wrote"),
        ("no", "is not what a rollout wrote"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InvalidValueError, match=message):
            read_sealed(tmp_path / "a.json")


def test_a_unit_in_hand_is_left_alone_and_a_dead_one_taken_over(tmp_path: Path) -> None:
    archive = tmp_path / "000003.zip"
    first = UnitWriter(archive, Layout())
    assert UnitWriter(archive, Layout()).in_use
    first.write("rest", b"x" * 10_000)
    first._zip.close()
    first._file.close()  # as if its process had died: the partial file stays, the lock goes
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    write_unit(archive)
    assert verify_unit(archive) == []


def test_an_abandoned_unit_leaves_nothing(tmp_path: Path) -> None:
    unit = UnitWriter(tmp_path / "000003.zip", Layout())
    unit.write("a", b"1")
    unit.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*000003.zip \(.*\); make room or choose another folder"):
        UnitWriter(tmp_path / "file" / "000003.zip", Layout())
