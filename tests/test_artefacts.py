from __future__ import annotations

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from mirage_env import artefacts
from mirage_env.contact_sheet import Strip, colour_depth, colour_remembered, contact_sheet
from mirage_env.errors import InvalidValueError, OutputError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.types import Cameras, Frames

FILES = {"rgb.mp4", "depth.npz", "poses.json", "contact_sheet.png", "metadata.json"}


def walk(frames: int = 10, size: tuple[int, int] = (32, 48)) -> Frames:
    height, width = size
    rgb = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    rgb[..., 0] = torch.linspace(0, 255, frames).round().to(torch.uint8)[:, None, None]
    depth_m = torch.full((frames, height, width), 3.0)
    depth_m[:, 0, 0], depth_m[:, 0, 1] = torch.nan, 0.0
    sky = torch.zeros(frames, height, width, dtype=torch.bool)
    sky[:, 0, 2] = True
    poses = torch.eye(4).repeat(frames, 1, 1)
    poses[:, 2, 3] = torch.arange(frames) * 0.25
    return Frames(
        rgb=rgb,
        depth_m=depth_m,
        sky=sky,
        dynamic=torch.zeros_like(sky),
        remembered=torch.ones(frames, height // 8, width // 8, dtype=torch.bool),
        cameras=Cameras(poses, intrinsics_from_fov(1.2, size).repeat(frames, 1, 1), size),
    )


def test_a_walk_reads_back(tmp_path: Path) -> None:
    frames = walk()
    files = artefacts.write_walk(tmp_path / "a" / "b", frames, {"seed": 7, "image_sha256": "ff"}, fps=5)
    folder = tmp_path / "a" / "b"
    assert {file.name for file in files} == {file.name for file in folder.iterdir()} == FILES

    with np.load(folder / "depth.npz") as file:
        depth = dict(file)
    assert depth["depth_m"].dtype == np.float32
    assert depth["depth_valid"].dtype == bool
    expected = np.ones((10, 32, 48), bool)
    expected[:, 0, :3] = False
    np.testing.assert_array_equal(depth["depth_valid"], expected)
    np.testing.assert_array_equal(depth["depth_m"], np.where(expected, np.float32(3), np.float32(0)))

    poses = json.loads((folder / "poses.json").read_text())
    np.testing.assert_array_equal(poses["world_from_camera"], frames.cameras.world_from_camera.numpy())
    np.testing.assert_allclose(poses["intrinsics_px"], frames.cameras.intrinsics_px.numpy())
    assert poses["timestamp_s"][:3] == [0.0, 0.2, 0.4]
    assert poses["size_px"] == [32, 48]

    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["seed"] == 7
    assert metadata["frames"] == 10
    assert metadata["versions"]["torch"] == torch.__version__
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 1000

    decode = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-i",
        str(folder / "rgb.mp4"),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    decoded = subprocess.run(decode, capture_output=True, check=True)
    about = decoded.stderr.decode()
    assert all(word in about for word in ("h264", "yuv420p", "576x384", "5 fps"))
    video = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, 384, 576, 3)
    assert len(video) == 10
    np.testing.assert_allclose([f[..., 0].mean() for f in video], frames.rgb[:, 0, 0, 0].numpy(), atol=4)


def test_a_second_walk_replaces_the_first(tmp_path: Path) -> None:
    artefacts.write_walk(tmp_path, walk(3), {"seed": 1})
    artefacts.write_walk(tmp_path, walk(4), {"seed": 2})
    assert {file.name for file in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "metadata.json").read_text())["frames"] == 4


def test_a_failure_leaves_the_earlier_walk_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artefacts.write_walk(tmp_path, walk(3), {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefacts, "_write_json", disk_full)
    with pytest.raises(OutputError, match=r"cannot write to the folder .* \(No space left on device\)"):
        artefacts.write_walk(tmp_path, walk(4), {})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_two_who_write_one_file_at_the_same_time_leave_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with artefacts.whole_file(path) as first, artefacts.whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose context ends last
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"cannot write to the folder .*; choose another output folder"):
            artefacts.prepare_folder(folder)


def test_depth_colours_run_from_near_yellow_to_far_violet() -> None:
    depth_m = np.array([[1.0, 10.0, 100.0, 5.0]])
    colours = colour_depth(depth_m, np.array([[True, True, True, False]]), (1.0, 10.0))
    assert colours[0, 0].tolist() == [253, 231, 37]
    assert colours[0, 1].tolist() == colours[0, 2].tolist() == [68, 1, 84]
    assert colours[0, 3].tolist() == [214, 222, 232]
    ramp = colour_depth(np.linspace(1, 10, 50)[None], np.ones((1, 50), bool), (1.0, 10.0)).astype(float)
    assert (np.diff(ramp @ [0.299, 0.587, 0.114])[0] <= 0).all()  # brightness alone tells the order


def test_remembered_cells_are_green_and_invented_ones_orange() -> None:
    tinted = colour_remembered(np.full((16, 16, 3), 128, np.uint8), np.array([[True, False], [False, True]])).astype(
        int
    )
    assert tinted[0, 0, 1] > tinted[0, 0, 0]
    assert tinted[0, 8, 0] > tinted[0, 8, 1]
    assert (tinted[8:, 8:] == tinted[0, 0]).all()


def test_rows_of_a_sheet_must_match() -> None:
    picture = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(InvalidValueError, match=r"same length, got \[2, 1\] and 0"):
        contact_sheet([Strip("a", "", picture), Strip("b", "", picture[:1])], title="")
    sheet = contact_sheet([Strip("a", "", picture)], title="t", frame_labels=["0", "1"], picture_px=64)
    assert sheet.getpixel((sheet.width - 40, sheet.height // 2 + 20)) == (0, 0, 0)
