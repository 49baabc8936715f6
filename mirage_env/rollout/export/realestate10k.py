"""RealEstate10K: OUT/cameras/000007.txt, and OUT/frames/000007/TIMESTAMP.png with timestamps in microseconds.

Poses are camera_from_world, intrinsics a share of the picture's sides; the first line names the picture it came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mirage_env.cameras_io import CameraPath, write_realestate10k
from mirage_env.rollout import png
from mirage_env.rollout.store import StoredEpisode


def write(episodes: Iterable[StoredEpisode], out: Path) -> None:
    (out / "cameras").mkdir()
    for episode in episodes:
        height, width = episode.metadata["size_px"]
        seconds = episode.array("timestamp_s")
        lenses = np.diag([1 / width, 1 / height, 1.0]) @ episode.array("intrinsics_px").astype(np.float64)
        poses = episode.array("world_from_camera").astype(np.float64)
        source = str(episode.metadata["image"] or episode.metadata["scene_seed"])
        write_realestate10k(out / "cameras" / f"{episode.name}.txt", CameraPath(poses, lenses, seconds, source))
        frames = out / "frames" / episode.name
        frames.mkdir(parents=True)
        for second, rgb in zip(seconds, episode.pictures(), strict=True):
            (frames / f"{round(1e6 * second)}.png").write_bytes(png.encode(rgb))
