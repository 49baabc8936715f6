"""Clips of the simulator on disk: rendered once, then read at random by every stage through memory maps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from mirage_env.errors import InvalidValueError
from mirage_env.simulator import sample_clips
from mirage_env.types import Cameras

SKY, DYNAMIC = 1, 2
"""Bits of the mask array."""


@dataclass(frozen=True)
class ClipConfig:
    """Which clips a store holds. Scenes come from the simulator's training seeds; the floor is y = 0."""

    clips: int
    frames: int = 16
    size: tuple[int, int] = (128, 128)
    first_seed: int = 1_000_000
    kind: str | None = None
    """Of all its walks, see `sample_trajectory`; None: each draws its own."""


class ClipStore:
    """`clips` clips of `frames` frames.

    rgb (N, T, H, W, 3) uint8; depth (N, T, H, W) float16, metres; masks (N, T, H, W) uint8 bits; poses (N, T, 4, 4)
    float32 world_from_camera; intrinsics (N, 3, 3) float32 in pixels. Further arrays, such as latents, may be added by
    name.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / "clips.json").exists():
            raise InvalidValueError(f"no finished clip store in {folder}; render one first")
        values = json.loads((folder / "clips.json").read_text())
        self.config = ClipConfig(**values | {"size": tuple(values["size"])})

    def __len__(self) -> int:
        return self.config.clips

    def array(self, name: str) -> np.ndarray:
        if not self.has(name):
            raise InvalidValueError(f"the clips in {self.folder} have no {name} yet; run the stages before this one")
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.npy").exists()

    def add(self, shapes: dict[str, tuple[int, ...]], fill: Callable[..., None], rows: int | None = None) -> None:
        """Further float16 arrays (rows, T, *shape), all clips unless told, filled by `fill` and named when whole."""
        lead = (self.config.clips if rows is None else rows, self.config.frames)
        partial = {name: self.folder / f"{name}.partial.npy" for name in shapes}
        arrays = [open_memmap(partial[name], "w+", "float16", (*lead, *shape)) for name, shape in shapes.items()]
        fill(*arrays)
        for array, (name, path) in zip(arrays, partial.items(), strict=True):
            array.flush()
            os.replace(path, self.folder / f"{name}.npy")

    def cameras(self, clips: np.ndarray, frames: np.ndarray) -> Cameras:
        """Pixel-resolution cameras of the given (clip, frame) pairs."""
        poses = torch.from_numpy(self.array("poses")[clips, frames])
        return Cameras(poses, torch.from_numpy(self.array("intrinsics")[clips]), self.config.size)


def render_clips(
    folder: Path, config: ClipConfig, batch: int = 8, report: Callable[[int, int], None] = lambda done, total: None
) -> ClipStore:
    """Renders the store, going on where an earlier call was cut off; returns it at once where it is whole."""
    done_file, marker = folder / "clips.json", folder / "progress"
    if done_file.exists():
        return ClipStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    n, t, (h, w) = config.clips, config.frames, config.size
    done = int(marker.read_text()) if marker.exists() else 0
    mode = "r+" if done else "w+"
    rgb = open_memmap(folder / "rgb.npy", mode, "uint8", (n, t, h, w, 3))
    depth = open_memmap(folder / "depth.npy", mode, "float16", (n, t, h, w))
    masks = open_memmap(folder / "masks.npy", mode, "uint8", (n, t, h, w))
    poses = open_memmap(folder / "poses.npy", mode, "float32", (n, t, 4, 4))
    intrinsics = open_memmap(folder / "intrinsics.npy", mode, "float32", (n, 3, 3))
    for start in range(done, n, batch):
        stop = min(start + batch, n)
        seeds = [config.first_seed + i for i in range(start, stop)]
        for i, frames in zip(range(start, stop), sample_clips(seeds, t, config.size, kind=config.kind), strict=True):
            rgb[i] = frames.rgb.numpy()
            depth[i] = torch.where(frames.sky, 0.0, frames.depth_m).numpy()
            masks[i] = (frames.sky * SKY + frames.dynamic * DYNAMIC).numpy()
            poses[i] = frames.cameras.world_from_camera.numpy()
            intrinsics[i] = frames.cameras.intrinsics_px[0].numpy()
        marker.write_text(str(stop))
        report(stop, n)
    for array in (rgb, depth, masks, poses, intrinsics):
        array.flush()
    done_file.write_text(json.dumps(asdict(config)))
    marker.unlink()
    return ClipStore(folder)
