from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mirage_env.errors import ImageError, InvalidValueError
from mirage_env.evaluation import exchange
from mirage_env.evaluation.inputs import read_inputs
from mirage_env.evaluation.suites import Suite, Take

# Two cameras of a 40 x 20 picture: the second has moved 2 units along x and turned right by 90 degrees.
TURNED = [[0.0, 0.0, 1.0, 2.0], [0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
LENS = [[20.0, 0.0, 20.0], [0.0, 20.0, 10.0], [0.0, 0.0, 1.0]]


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        values = np.zeros((20, 40, 3), np.uint8)
        values[:, 10:30] = 100 + index
        Image.fromarray(values).save(folder / name)


def realestate10k() -> str:
    lines = ["https://example.org/video"]
    for stamp, pose in ((66000, np.eye(4)), (99000, np.array(TURNED))):
        row = [0.5, 1.0, 0.5, 0.5, 0, 0, *np.linalg.inv(pose)[:3].ravel()]
        lines.append(" ".join([str(stamp), *map(str, row)]))
    return "\n".join(lines)


def check(suite: Suite, scale: float = 1.0) -> None:
    """All ways to write the two cameras give the same walk."""
    (take,) = suite.takes
    walk = take.walk((16, 16))
    expected = torch.tensor(TURNED)
    expected[:3, 3] *= scale
    torch.testing.assert_close(walk.truth.cameras.world_from_camera, torch.stack([torch.eye(4), expected]))
    # the middle 20 x 20 of the picture, at 16 / 20 of its size
    lens = torch.tensor([[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(walk.truth.cameras.intrinsics_px, lens.repeat(2, 1, 1))
    assert walk.truth.rgb[:, 8, 8, 0].tolist() == [100, 101] and walk.truth.rgb.min() > 90  # what is black was cropped
    assert walk.pictures and not walk.geometry


def test_realestate10k_with_frames_by_timestamp(tmp_path):
    (tmp_path / "cameras.txt").write_text(realestate10k())
    pictures(tmp_path / "frames", "66000.png", "99000.png", "other.png")
    check(read_inputs(tmp_path / "cameras.txt", tmp_path / "frames"))
    check(read_inputs(tmp_path / "cameras.txt", tmp_path / "frames", metres_per_unit=1.5), 1.5)


def test_a_camera_list_beside_its_pictures(tmp_path):
    values = {"world_from_camera": [np.eye(4).tolist(), TURNED], "intrinsics_px": [LENS, LENS], "size_px": [20, 40]}
    (tmp_path / "cameras.json").write_text(json.dumps(values))
    pictures(tmp_path, "a.png", "b.png")
    check(read_inputs(tmp_path))
    values["world_from_camera"] = (np.array(TURNED) @ np.array(values["world_from_camera"])).tolist()
    (tmp_path / "cameras.json").write_text(json.dumps(values))
    check(read_inputs(tmp_path / "cameras.json"))  # the first camera becomes the origin


def test_nerf_transforms(tmp_path):
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    frames = [
        {"file_path": f"./images/{name}", "transform_matrix": (np.array(pose) @ flip).tolist()}
        for name, pose in (("a", np.eye(4)), ("b", TURNED))
    ]
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "transforms.json").write_text(
        json.dumps({"camera_angle_x": np.pi / 2, "w": 40, "h": 20, "frames": frames})
    )
    pictures(tmp_path / "images", "b.png", "a.png")
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "c.png")
    (tmp_path / "images" / "b.png").rename(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "c.png").rename(tmp_path / "images" / "b.png")
    check(read_inputs(tmp_path / "scene" / "transforms.json", tmp_path / "images"))


def test_what_is_no_walk_is_told(tmp_path):
    with pytest.raises(InvalidValueError, match="no cameras at"):
        read_inputs(tmp_path / "nowhere")
    with pytest.raises(InvalidValueError, match=r"holds no cameras\.json"):
        read_inputs(tmp_path)
    (tmp_path / "cameras.txt").write_text(realestate10k())
    with pytest.raises(InvalidValueError, match=r"has 2 cameras, but .* holds 0 pictures"):
        read_inputs(tmp_path / "cameras.txt")
    pictures(tmp_path, "1.png", "2.png")
    assert len(read_inputs(tmp_path).takes) == 1  # in order, as none is named by time
    with pytest.raises(InvalidValueError, match="holds 1 cameras; a walk needs at least 2"):
        read_inputs(tmp_path, frames=1)
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(InvalidValueError, match="cannot be read as the poses of a NeRF tool"):
        read_inputs(tmp_path)


def test_what_is_exported_can_be_answered_and_read_back(tmp_path, make_walk):
    class Wall(Take):
        id = "wall"

        def walk(self, size):
            return replace(make_walk([0.0, 0.2, 0.4]), name="wall")

    exchange.export_suite(Suite("walls", 1, "a wall", (Wall(),)), tmp_path, (32, 48))
    walk, place = make_walk([0.0, 0.2, 0.4]), tmp_path / "wall"
    assert np.array_equal(np.array(Image.open(place / "first.png")), walk.truth.rgb[0].numpy())
    with pytest.raises(ImageError, match=r"frame_0001\.png is missing; a scene needs frame_0001\.png to frame_0002"):
        exchange.read_frames(tmp_path, walk)
    for index, frame in enumerate(walk.goal.rgb, 1):
        Image.fromarray(frame.numpy()).save(place / exchange.frame_name(index))
    assert torch.equal(exchange.read_frames(tmp_path, walk), walk.goal.rgb)
    (take,) = read_inputs(place).takes  # an answer is a walk of pictures and poses, too
    again = take.walk((32, 48)).truth
    assert torch.equal(again.rgb, walk.truth.rgb)
    torch.testing.assert_close(again.cameras.intrinsics_px, walk.truth.cameras.intrinsics_px)
    torch.testing.assert_close(again.cameras.world_from_camera, walk.truth.cameras.world_from_camera)
    Image.new("RGB", (48, 30)).save(place / "frame_0002.png")
    with pytest.raises(ImageError, match="must be 32 x 48 pixels, got 30 x 48"):
        exchange.read_frames(tmp_path, walk)
