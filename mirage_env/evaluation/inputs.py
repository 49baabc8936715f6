"""Walks that others recorded: pictures with their cameras. Nothing but pictures and poses is known of them.

    scene.txt         RealEstate10K's camera file, with a folder of frames named by timestamp (or in order)
    cameras.json      a camera list as `eval export` writes it: world_from_camera, intrinsics_px, size_px
    poses.json        the same, as `mirage-env demo` writes it
    transforms.json   the poses of NeRF tools (OpenGL axes)
    a folder          one of the files above beside its pictures, or several such folders

The first camera becomes the world's origin and is taken to be level, unless it stands there without yaw already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from mirage_env.cameras_io import read_cameras
from mirage_env.errors import InvalidValueError
from mirage_env.evaluation.suites import Suite, Take
from mirage_env.evaluation.walk import Walk, pictures_alone
from mirage_env.geometry.poses import check_cameras
from mirage_env.images import load_image
from mirage_env.types import Cameras

CAMERA_FILES = ("cameras.json", "poses.json", "transforms.json")
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL camera axes (y up, z backwards) from OpenCV's."""


@dataclass(frozen=True)
class RecordedTake(Take):
    """Pictures on disk with their cameras."""

    id: str
    images: tuple[Path, ...]
    world_from_camera: Float[np.ndarray, "T 4 4"]
    intrinsics: Float[np.ndarray, "T 3 3"]
    """In pixels of pictures that are 1 high and 1 wide."""
    camera_height_m: float

    def walk(self, size: tuple[int, int]) -> Walk:
        """Every picture centre-cropped to the shape of `size` and resized to it, its lens with it."""
        from PIL import Image

        (height, width), rgb, lenses = size, [], []
        for path, lens in zip(self.images, self.intrinsics, strict=True):
            rgb.append(torch.from_numpy(load_image(path, size).rgb))
            with Image.open(path) as picture:
                wide, high = picture.size
            scale = min(wide / width, high / height)  # source pixels a pixel
            left, top = (wide - width * scale) / 2, (high - height * scale) / 2
            pixels = np.diag([wide, high, 1.0]) @ lens
            pixels[:2, 2] -= (left, top)
            lenses.append(np.diag([1 / scale, 1 / scale, 1.0]) @ pixels)
        poses = torch.from_numpy(_from_first_camera(self.world_from_camera)).float()
        cameras = check_cameras(Cameras(poses, torch.from_numpy(np.stack(lenses)).float(), size))
        return Walk(self.id, pictures_alone(torch.stack(rgb), cameras), self.camera_height_m, geometry=False)


def read_inputs(
    path: Path,
    images: Path | None = None,
    metres_per_unit: float = 1.0,
    camera_height_m: float = 1.2,
    frames: int = 33,
) -> Suite:
    """What the path names, as a suite of walks of at most `frames` frames each; see the head of this file.

    `images` is the folder of frames, where they do not lie beside the cameras; `metres_per_unit` scales translations
    (RealEstate10K's are up to a scale of their own). Raises `InvalidValueError` for what cannot be read as a walk.
    """
    if not path.exists():
        raise InvalidValueError(f"no cameras at {path}; name a camera file or a folder that holds one")
    if path.is_dir():
        beside = _camera_file(path)
        files = [beside] if beside else [file for file in map(_camera_file, sorted(path.iterdir())) if file]
        if not files:
            raise InvalidValueError(f"{path} holds no {', '.join(CAMERA_FILES)} or .txt of cameras, nor do its folders")
    else:
        files = [path]
    takes = []
    for file in files:
        names, poses, intrinsics = _read(file)
        pictures = _pictures(file, names, len(poses), images or file.parent)
        poses = poses[:frames].copy()
        poses[:, :3, 3] *= metres_per_unit
        name = file.stem if file.suffix == ".txt" else file.parent.name
        takes.append(RecordedTake(name, pictures[:frames], poses, intrinsics[:frames], camera_height_m))
        if len(poses) < 2:
            raise InvalidValueError(f"{file} holds {len(poses)} cameras; a walk needs at least 2")
    return Suite(path.stem, 1, f"pictures and poses in {path.name}", tuple(takes))


def _camera_file(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    known = [folder / name for name in CAMERA_FILES if (folder / name).is_file()]
    return known[0] if known else next(iter(sorted(folder.glob("*.txt"))), None)


def _read(file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of frames (none: in order), (T, 4, 4) world_from_camera, (T, 3, 3) intrinsics for 1 x 1 pictures."""
    if file.name == "transforms.json":
        try:
            return _transforms(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InvalidValueError(f"{file} cannot be read as the poses of a NeRF tool ({reason})") from error
    cameras = read_cameras(file)
    if cameras.intrinsics is None:
        raise InvalidValueError(f"{file} tells no lens; add intrinsics_px and size_px")
    named = file.suffix != ".json" and cameras.timestamp_s is not None
    stamps = np.asarray(cameras.timestamp_s if named else [])
    return [str(round(1e6 * stamp)) for stamp in stamps], cameras.world_from_camera, cameras.intrinsics


def _transforms(values: dict[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
    poses, lenses, names = [], [], []
    for frame in values["frames"]:
        about = {**values, **frame}
        width, height = float(about["w"]), float(about["h"])
        focal = about.get("fl_x") or 0.5 * width / math.tan(0.5 * float(about["camera_angle_x"]))
        across, down = float(about.get("cx", width / 2)), float(about.get("cy", height / 2))
        lenses.append(
            [[focal / width, 0, across / width], [0, about.get("fl_y", focal) / height, down / height], [0, 0, 1]]
        )
        poses.append(np.asarray(about["transform_matrix"], np.float64).reshape(4, 4) @ _OPENGL)
        names.append(str(about["file_path"]))
    return names, np.stack(poses), np.asarray(lenses, np.float64)


def _pictures(file: Path, names: Sequence[str], count: int, folder: Path) -> tuple[Path, ...]:
    """One picture a camera: by name, with any known ending, else in alphabetical order where the numbers agree."""
    if not folder.is_dir():
        raise InvalidValueError(f"no folder of pictures at {folder}; name it with --images")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    by_name = {p.name: p for p in found} | {p.stem: p for p in found}
    named = [by_name.get(Path(name).name) for name in names]
    if names and all(named):
        return tuple(path for path in named if path)
    if len(found) == count:
        return tuple(found)
    raise InvalidValueError(
        f"{file} has {count} cameras, but {folder} holds {len(found)} pictures and not one named for each camera; "
        "name the folder of frames with --images"
    )


def _from_first_camera(world_from_camera: Float[np.ndarray, "T 4 4"]) -> Float[np.ndarray, "T 4 4"]:
    first = world_from_camera[0]
    level = np.abs(first[:3, 3]).max() < 1e-6 and abs(first[0, 2]) < 1e-6 and first[2, 2] > 0
    return world_from_camera if level else np.linalg.inv(first) @ world_from_camera
