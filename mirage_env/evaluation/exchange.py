"""Frames to and from other systems: what a suite gives, and what it scores.

    FOLDER/suite.json                     name, version, size
    FOLDER/SCENE/first.png                the given picture
    FOLDER/SCENE/cameras.json             world_from_camera (T, 4, 4), intrinsics_px (T, 3, 3), size_px
    FOLDER/SCENE/frame_0001.png ...       to be made: one picture for every camera after the first, of the same size

Cameras are OpenCV's (x right, y down, z forward), metres; the first one is that of the given picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mirage_env.artefacts import prepare_folder
from mirage_env.errors import ImageError
from mirage_env.evaluation.run import write_json
from mirage_env.evaluation.suites import Suite
from mirage_env.evaluation.walk import Walk
from mirage_env.types import Cameras


def frame_name(index: int) -> str:
    """Of the picture that camera `index` sees."""
    return f"frame_{index:04d}.png"


def export_suite(
    suite: Suite,
    folder: Path,
    size: tuple[int, int],
    scenes: int | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Path:
    """Writes first pictures and cameras of the suite's first `scenes` scenes, or of all; never the answers."""
    target, takes = prepare_folder(folder), suite.takes[:scenes]
    for done, take in enumerate(takes):
        report(done, len(takes), take.id)
        walk = take.walk(size)
        place = prepare_folder(target / take.id)
        Image.fromarray(walk.truth.rgb[0].numpy()).save(place / "first.png")
        write_json(place / "cameras.json", camera_list(walk.truth.cameras, walk.camera_height_m))
    about = {"suite": suite.name, "version": suite.version, "size_px": list(size), "scenes": [t.id for t in takes]}
    write_json(target / "suite.json", about)
    report(len(takes), len(takes), "")
    return target


def camera_list(cameras: Cameras, camera_height_m: float) -> dict[str, Any]:
    """Cameras as a JSON object that `inputs.py` reads back."""
    return {
        "convention": "OpenCV camera axes (x right, y down, z forward), metres; x_world = world_from_camera @ x_camera",
        "size_px": list(cameras.size),
        "camera_height_m": camera_height_m,
        "world_from_camera": cameras.world_from_camera.double().tolist(),
        "intrinsics_px": cameras.intrinsics_px.double().tolist(),
    }


def read_frames(folder: Path, walk: Walk) -> UInt8[Tensor, "T H W 3"]:
    """The frames that a system made for a walk; raises `ImageError` for one that is missing or of another size."""
    height, width = walk.truth.cameras.size
    frames = []
    for index in range(1, len(walk.truth)):
        path = folder / walk.name / frame_name(index)
        try:
            with Image.open(path) as picture:
                frames.append(np.array(picture.convert("RGB")))
        except (OSError, SyntaxError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise ImageError(
                f"{path} {reason}; a scene needs frame_0001.png to {frame_name(len(walk.goal))}, see eval export"
            ) from None
        if frames[-1].shape != (height, width, 3):
            got = frames[-1].shape
            raise ImageError(f"{path} must be {height} x {width} pixels, got {got[0]} x {got[1]}; resize it")
    return torch.from_numpy(np.stack(frames))
