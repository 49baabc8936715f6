from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mirage_env.cameras_io import CameraPath, read_cameras, write_realestate10k
from mirage_env.demo import trajectory
from mirage_env.errors import InvalidValueError

# Two lines of a real file's form: half a turn about y, one metre along the second camera's own -z.
ONE = {"world_from_camera": [np.eye(4).tolist()]}
TEXT = """https://www.youtube.com/watch?v=abc
52553000 0.5 0.8 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0
52586000 0.5 0.8 0.5 0.5 0 0 -1 0 0 0 0 1 0 0 0 0 -1 1
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_realestate10k_by_hand(tmp_path: Path) -> None:
    cameras = read_cameras(write(tmp_path / "a.txt", TEXT))
    assert len(cameras) == 2
    assert cameras.source == "https://www.youtube.com/watch?v=abc"
    np.testing.assert_allclose(cameras.timestamp_s, [52.553, 52.586])
    # x_camera = R x_world + (0, 0, 1), so the second camera sits where R x = (0, 0, -1): at z = +1, looking at -z.
    np.testing.assert_allclose(cameras.world_from_camera[1, :3, 3], [0, 0, 1])
    np.testing.assert_allclose(cameras.world_from_camera[1, :3, 2], [0, 0, -1])
    intrinsics_px = cameras.intrinsics_px((100, 200))
    assert intrinsics_px is not None
    np.testing.assert_allclose(intrinsics_px[0], [[100, 0, 100], [0, 80, 50], [0, 0, 1]])


def test_realestate10k_reads_back_what_was_written(tmp_path: Path) -> None:
    poses = trajectory("walk", 12).astype(np.float64)
    lens = np.tile([[0.7, 0, 0.5], [0, 0.9, 0.45], [0, 0, 1]], (12, 1, 1))
    write_realestate10k(tmp_path / "w.txt", CameraPath(poses, lens, np.arange(12) / 5, "here"))
    back = read_cameras(tmp_path / "w.txt")
    np.testing.assert_allclose(back.world_from_camera, poses, atol=1e-12)
    np.testing.assert_array_equal(back.intrinsics, lens)
    np.testing.assert_allclose(back.timestamp_s, np.arange(12) / 5)
    np.testing.assert_allclose(back.from_first()[0], np.eye(4), atol=1e-12)


def test_json_with_and_without_a_lens(tmp_path: Path) -> None:
    poses = trajectory("loop", 3)
    bare = read_cameras(write(tmp_path / "bare.json", json.dumps(poses.tolist())))
    assert (bare.intrinsics, bare.timestamp_s) == (None, None)
    np.testing.assert_allclose(bare.world_from_camera, poses)

    about = {"world_from_camera": poses.tolist(), "size_px": [50, 100], "timestamp_s": [0, 1, 2]}
    about["intrinsics_px"] = [[80, 0, 50], [0, 80, 25], [0, 0, 1]]
    full = read_cameras(write(tmp_path / "full.json", json.dumps(about)))
    assert full.intrinsics is not None
    np.testing.assert_allclose(full.intrinsics[2], [[0.8, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.txt", None, r"cannot read the camera file .*none.txt \(No such file"),
        ("a.txt", "url\n", "holds no camera"),
        ("a.txt", "url\n1 2 3\n", r"line 2: a RealEstate10K line has 19 numbers .*got 3"),
        ("a.txt", "url\nyes no\n", "line 2: expected 19 numbers, got words"),
        ("a.txt", TEXT.replace("0 0 1 0 0 0 0 1", "0.1 0 1 0 0 0 0 1", 1), "the lens is distorted"),
        ("a.txt", TEXT.replace("-1 0 0 0 0 1", "-2 0 0 0 0 1"), "camera 1 is not a rotation"),
        ("a.txt", TEXT.replace("0.5 0.8", "-0.5 0.8"), "focal length that is not positive"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"poses": []}', 'no key "world_from_camera"'),
        ("a.json", "[[1, 2], [3, 4]]", r"world_from_camera must be finite numbers of shape \(T, 4, 4\)"),
        ("a.json", json.dumps(ONE | {"intrinsics_px": np.eye(3).tolist()}), "size_px"),
        ("a.json", json.dumps(ONE | {"timestamp_s": [1, 2]}), "one entry a pose"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(InvalidValueError, match=message) as error:
        read_cameras(tmp_path / name)
    assert "\n" not in str(error.value)
