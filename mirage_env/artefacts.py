"""A walk on disk: video, depth, poses, a contact sheet, and what made them. Every file appears whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from mirage_env.contact_sheet import Strip, colour_depth, colour_remembered, contact_sheet
from mirage_env.errors import OutputError
from mirage_env.resources import revision
from mirage_env.types import Frames

VIDEO_MIN_SIDE_PX = 384


def prepare_folder(folder: str | Path) -> Path:
    """The folder, created and proven writable; raises OutputError. Call it before any long work."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to the folder {path} ({reason}); choose another output folder") from error
    return path


def versions() -> dict[str, str]:
    """Of everything that decides which frames come out."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in ("mirage-env", "torch", "diffusers", "gymnasium", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            from mirage_env import __version__

            found[package] = __version__ if package == "mirage-env" else "not installed"
    return found


def write_walk(
    folder: str | Path,
    frames: Frames,
    metadata: Mapping[str, Any],
    *,
    title: str = "A walk",
    subtitle: str = "",
    fps: float = 10.0,
) -> list[Path]:
    """The files of a walk, which replace those of an earlier one; returns their paths.

    rgb.mp4             H.264, yuv420p, enlarged by a whole factor to at least 384 pixels a side
    depth.npz           depth_m (T, H, W) float32, metres along z, 0 where not valid; depth_valid (T, H, W) bool
    poses.json          world_from_camera (T, 4, 4), intrinsics_px (T, 3, 3), size_px, timestamp_s (T,)
    contact_sheet.png   RGB above depth above remembered cells
    metadata.json       `metadata`, with revision and versions added; written last
    """
    path = prepare_folder(folder)
    rgb, depth_m = frames.rgb.cpu().numpy(), frames.depth_m.float().cpu().numpy()
    valid = np.isfinite(depth_m) & (depth_m > 0) & ~frames.sky.cpu().numpy()
    enlargement = -(-VIDEO_MIN_SIDE_PX // min(rgb.shape[1:3]))
    with _atomic_files(path) as staging:
        write_video(staging / "rgb.mp4", rgb, fps=fps, enlargement=enlargement)
        np.savez_compressed(
            staging / "depth.npz", depth_m=np.where(valid, depth_m, 0.0).astype(np.float32), depth_valid=valid
        )
        _write_json(staging / "poses.json", _poses(frames, fps))
        walk_sheet(frames, title=title, subtitle=subtitle).save(staging / "contact_sheet.png", optimize=True)
        about = {**metadata, "frames": len(frames), "fps": fps, "video_enlargement": enlargement}
        _write_json(staging / "metadata.json", {**about, "revision": revision(), "versions": versions()})
    return [path / name for name in ("rgb.mp4", "contact_sheet.png", "depth.npz", "poses.json", "metadata.json")]


def write_video(path: Path, rgb: UInt8[np.ndarray, "T H W 3"], *, fps: float, enlargement: int = 1) -> None:
    """All frames at once, see `VideoFile`."""
    video = VideoFile(path, rgb.shape[1:3], fps=fps, enlargement=enlargement)
    for frame in rgb:
        video.write(frame)
    video.close()


class VideoFile:
    """H.264 with yuv420p, which every player shows; enlarging by a whole factor keeps the colour planes sharp.

    Frames of `size` = (H, W), both even once enlarged, go in one by one. Equal frames give equal bytes. Raises
    OutputError where the disk is full.
    """

    def __init__(self, path: Path, size: Sequence[int], *, fps: float, enlargement: int = 1):
        self.path = path
        height, width = (side * enlargement for side in size)
        self._size = (width, height)
        bit_exact = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
        self._writer = imageio_ffmpeg.write_frames(
            str(path), self._size, fps=fps, codec="libx264", pix_fmt_out="yuv420p", macro_block_size=2,
            output_params=["-crf", "16", "-movflags", "+faststart", *bit_exact], ffmpeg_log_level="error",
        )  # fmt: skip
        self._writer.send(None)

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """The next frame."""
        picture = Image.fromarray(frame)
        if picture.size != self._size:
            picture = picture.resize(self._size, Image.Resampling.LANCZOS)
        try:
            self._writer.send(np.ascontiguousarray(picture))
        except OSError as error:
            raise self._cut_off() from error

    def close(self) -> None:
        """The file is whole when this returns; again, it does nothing."""
        if self._writer.gi_frame is None:
            return
        self._writer.close()
        if not _is_whole(self.path):
            raise self._cut_off()

    def _cut_off(self) -> OutputError:
        return OutputError(f"the video {self.path} could not be written whole; make room on the disk, then run again")


def _is_whole(video: Path) -> bool:
    """Whether the boxes of an MP4 fill the file, its index among them: what writes it does not tell of a full disk."""
    if not video.exists():
        return False
    kinds, at, size = set(), 0, video.stat().st_size
    with video.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            length, kind, long = struct.unpack(">I4sQ", file.read(16).ljust(16))
            at += max(8, long if length == 1 else length)
            kinds.add(kind)
    return at == size and b"moov" in kinds


def read_video(path: Path, size: tuple[int, int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of a video of `size` = (H, W), one after another."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while frame := process.stdout.read(3 * size[0] * size[1]):
            yield np.frombuffer(frame, np.uint8).reshape(*size, 3)


def walk_sheet(frames: Frames, *, title: str, subtitle: str = "", columns: int = 9) -> Image.Image:
    """RGB above depth above remembered cells, at evenly spaced moments of the walk."""
    moments = _evenly_spaced(len(frames), columns)
    rgb, depth_m = frames.rgb.cpu().numpy()[moments], frames.depth_m.float().cpu().numpy()[moments]
    valid = np.isfinite(depth_m) & (depth_m > 0) & ~frames.sky.cpu().numpy()[moments]
    near, far = np.percentile(depth_m[valid], (1, 99)) if valid.any() else (0.1, 20.0)
    range_m = (max(0.05, float(near)), max(0.06, float(near) * 1.05, float(far)))
    strips = [
        Strip("RGB", "", rgb),
        Strip("Depth", f"{range_m[0]:.1f} m yellow\n{range_m[1]:.1f} m violet", colour_depth(depth_m, valid, range_m)),
        Strip(
            "Memory",
            "green: remembered\norange: invented",
            colour_remembered(rgb, frames.remembered.cpu().numpy()[moments]),
        ),
    ]
    labels = [f"frame {moment}" for moment in moments]
    return contact_sheet(strips, title=title, subtitle=subtitle, frame_labels=labels)


def _evenly_spaced(total: int, count: int) -> Int[np.ndarray, "n"]:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def _poses(frames: Frames, fps: float) -> dict[str, Any]:
    return {
        "convention": "OpenCV camera axes (x right, y down, z forward), metres; x_world = world_from_camera @ x_camera",
        "size_px": list(frames.cameras.size),
        "timestamp_s": [round(index / fps, 6) for index in range(len(frames))],
        "world_from_camera": frames.cameras.world_from_camera.double().tolist(),
        "intrinsics_px": frames.cameras.intrinsics_px.double().tolist(),
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` once it is whole; after an error nothing is left of it. Of several who write
    it at the same time the last one stays."""
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _atomic_files(folder: Path) -> Iterator[Path]:
    """A staging folder beside the final files; they move over, in order of writing, only when all were written."""
    staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        yield staging
        for file in sorted(staging.iterdir(), key=lambda file: file.stat().st_mtime_ns):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
