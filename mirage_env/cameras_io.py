"""Camera files: RealEstate10K text and JSON lists of poses, read to one value and written back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mirage_env.errors import InvalidValueError

_COLUMNS = 19
"""Of a RealEstate10K line: timestamp (us), fx fy cx cy over the picture's sides, k1 k2, camera_from_world (3 x 4)."""


@dataclass(frozen=True)
class CameraPath:
    """T cameras as a file tells them, in the file's own world."""

    world_from_camera: Float[np.ndarray, "T 4 4"]
    """OpenCV axes; float64."""
    intrinsics: Float[np.ndarray, "T 3 3"] | None
    """K of a picture whose sides are 1: diag(W, H, 1) @ K is in pixels. None where the file has no lens."""
    timestamp_s: Float[np.ndarray, "T"] | None
    source: str = ""
    """RealEstate10K's first line: where the video came from."""

    def __len__(self) -> int:
        return len(self.world_from_camera)

    def from_first(self) -> Float[np.ndarray, "T 4 4"]:
        """The poses seen from the first camera, which is then the identity."""
        return np.linalg.inv(self.world_from_camera[0]) @ self.world_from_camera

    def intrinsics_px(self, size: tuple[int, int]) -> Float[np.ndarray, "T 3 3"] | None:
        """K in pixels of a picture of `size` = (H, W) that shows all that the file's picture showed."""
        return None if self.intrinsics is None else np.diag([size[1], size[0], 1.0]) @ self.intrinsics


def read_cameras(path: str | Path) -> CameraPath:
    """The cameras of a file: JSON by its suffix, else RealEstate10K text.

    JSON is a list of (4, 4) `world_from_camera` matrices, or a mapping with that key and, if known, `intrinsics_px`
    (T, 3, 3) or (3, 3) with `size_px` [H, W], and `timestamp_s` (T,): what `mirage-env demo` writes as poses.json.

    Raises InvalidValueError, in one sentence, for a file that is missing, is neither, or has a pose that is not rigid.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidValueError(f"cannot read the camera file {path} ({reason})") from None
    cameras = _from_json(text, path) if path.suffix.lower() == ".json" else _from_realestate10k(text, path)
    _check_rigid(cameras.world_from_camera, path)
    return cameras


def write_realestate10k(path: Path, cameras: CameraPath) -> None:
    """RealEstate10K text, with enough digits that float64 reads back equal; needs a lens and times."""
    if cameras.intrinsics is None or cameras.timestamp_s is None:
        raise InvalidValueError("a RealEstate10K file needs intrinsics and timestamps; these cameras lack one of them")
    camera_from_world = np.linalg.inv(cameras.world_from_camera)[:, :3]
    lines = [cameras.source or "mirage-env"]
    for time_s, k, pose in zip(cameras.timestamp_s, cameras.intrinsics, camera_from_world, strict=True):
        numbers = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], 0.0, 0.0, *pose.ravel()]
        lines.append(" ".join([str(round(time_s * 1e6)), *(repr(float(number)) for number in numbers)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _from_realestate10k(text: str, path: Path) -> CameraPath:
    source, _, body = text.partition("\n")
    rows = []
    for number, line in enumerate(body.splitlines(), start=2):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            raise InvalidValueError(f"{path}, line {number}: expected {_COLUMNS} numbers, got words") from None
        if len(row) != _COLUMNS:
            raise InvalidValueError(
                f"{path}, line {number}: a RealEstate10K line has {_COLUMNS} numbers (timestamp, fx fy cx cy, k1 k2, "
                f"3 x 4 camera_from_world), got {len(row)}"
            )
        if row[5] or row[6]:
            raise InvalidValueError(f"{path}, line {number}: the lens is distorted (k1 k2); undistort the frames first")
        rows.append(row)
    if not rows:
        raise InvalidValueError(f"{path} holds no camera; a RealEstate10K file has one a line after the first")
    table = np.array(rows)
    camera_from_world = np.tile(np.eye(4), (len(table), 1, 1))
    camera_from_world[:, :3] = table[:, 7:].reshape(-1, 3, 4)
    _check_rigid(camera_from_world, path)
    intrinsics = np.tile(np.eye(3), (len(table), 1, 1))
    intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] = table[:, 1:5]
    if not (intrinsics[:, [0, 1], [0, 1]] > 0).all():
        raise InvalidValueError(f"{path} has a focal length that is not positive")
    return CameraPath(np.linalg.inv(camera_from_world), intrinsics, table[:, 0] / 1e6, source.strip())


def _from_json(text: str, path: Path) -> CameraPath:
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise InvalidValueError(f"{path} is not JSON ({error})") from None
    values = values if isinstance(values, dict) else {"world_from_camera": values}
    if "world_from_camera" not in values:
        raise InvalidValueError(f'{path} has no key "world_from_camera"; it holds (T, 4, 4) poses')
    poses = _numbers(values, "world_from_camera", (4, 4), path)
    intrinsics, times = None, None
    if "intrinsics_px" in values:
        height, width = _numbers(values, "size_px", (2,), path).ravel() if "size_px" in values else (0, 0)
        if min(height, width) <= 0:
            raise InvalidValueError(f'{path} has "intrinsics_px" but no "size_px" [H, W] that they belong to')
        pixels = _numbers(values, "intrinsics_px", (3, 3), path)
        intrinsics = np.broadcast_to(np.diag([1 / width, 1 / height, 1.0]) @ pixels, (len(poses), 3, 3)).copy()
    if "timestamp_s" in values:
        times = _numbers(values, "timestamp_s", (), path)
        if times.shape != (len(poses),):
            raise InvalidValueError(f"{path}: timestamp_s must have one entry a pose ({len(poses)}), got {len(times)}")
    return CameraPath(poses, intrinsics, times, str(values.get("source", "")))


def _numbers(values: dict[str, Any], key: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """(T, *shape) of finite float64; one entry alone counts as T = 1."""
    try:
        array = np.asarray(values[key], np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    array = array[None] if array.shape == shape else array
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape or not len(array) or not np.isfinite(array).all():
        raise InvalidValueError(f"{path}: {key} must be finite numbers of shape (T, {', '.join(map(str, shape))})")
    return array


def _check_rigid(poses: np.ndarray, path: Path) -> None:
    rotation = poses[:, :3, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    fine = (error < 1e-3) & (np.linalg.det(rotation) > 0) & (poses[:, 3] == (0, 0, 0, 1)).all(1)
    fine &= np.isfinite(poses).all((1, 2))
    if not fine.all():
        raise InvalidValueError(f"{path}: camera {int(np.argmin(fine))} is not a rotation and a translation in metres")
