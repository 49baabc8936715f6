"""Videos of a pattern that slides by, and their cameras."""

from __future__ import annotations

import numpy as np

from mirage_env.cameras_io import CameraPath


def sideways(frames: int) -> CameraPath:
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = 0.02 * np.arange(frames)
    lens = np.array([[0.8, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])
    return CameraPath(poses, np.tile(lens, (frames, 1, 1)), np.arange(frames) / 30)


def pictures(frames: int, seed: int) -> np.ndarray:
    """A coarse pattern that slides by."""
    pattern = np.random.default_rng(seed).integers(0, 255, (8, 64, 3), dtype=np.uint8).repeat(9, 0).repeat(8, 1)
    return np.stack([pattern[:, 2 * i : 2 * i + 128] for i in range(frames)])
