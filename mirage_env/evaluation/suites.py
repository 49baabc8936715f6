"""Frozen suites: which scenes are walked through, and how, in metres and degrees. Chosen once, by `freeze.py`.

A suite is one JSON file in `suites/`. Its scenes come from seeds that training never draws; its pictures are rendered
when they are needed, and checked against a thumbnail that was stored when the suite was frozen.
"""

from __future__ import annotations

import base64
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mirage_env.artefacts import prepare_folder
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.evaluation.codec import crops, photograph
from mirage_env.evaluation.walk import Walk, pictures_alone
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.simulator import TRAINING_SEED, make_scene, render
from mirage_env.simulator.trajectories import SECONDS_PER_FRAME
from mirage_env.types import Cameras, Frames

FOLDER = Path(__file__).with_name("suites")
FORMAT = 1
"""Of the files; a suite's own `version` changes when its scenes or walks do."""
THUMBNAIL = 8
THUMBNAIL_TOLERANCE = 3.0
"""Grey levels by which a thumbnail may differ on average: float order may, another picture may not."""


class Take(ABC):
    """One scene of a suite with the walk through it."""

    id: str

    @abstractmethod
    def walk(self, size: tuple[int, int]) -> Walk:
        """The walk with its true pictures at `size` = (H, W)."""


@dataclass(frozen=True)
class Suite:
    """A named list of takes."""

    name: str
    version: int
    about: str
    """One sentence for people."""
    takes: tuple[Take, ...]


@dataclass(frozen=True)
class CameraPath:
    """Camera poses as people write them: metres and degrees, the lens, the height of the first camera."""

    places: tuple[tuple[float, ...], ...]
    """(right, down, forward, yaw, pitch, roll) of every frame in the world, whose origin is the first camera."""
    fov_deg: float
    camera_height_m: float

    def cameras(self, size: tuple[int, int]) -> Cameras:
        """Pixel-resolution cameras of all frames."""
        values = torch.tensor(self.places, dtype=torch.float64)
        yaw, pitch, roll = values[:, 3:].deg2rad().unbind(1)
        poses = rigid(rotation_from_yaw_pitch_roll(yaw, pitch, roll), values[:, :3]).float()
        return Cameras(poses, intrinsics_from_fov(float(np.radians(self.fov_deg)), size).expand(len(poses), 3, 3), size)


@dataclass(frozen=True)
class SimulatedTake(Take):
    """A walk through a scene of the simulator: everything about it is known."""

    id: str
    family: str
    seed: int
    start: tuple[float, float, float]
    """Where the world's origin and forward axis lie in the scene: x and z in metres, yaw in degrees."""
    path: CameraPath
    pairs: tuple[tuple[int, int], ...] = ()
    thumbnail: str = ""
    """The first picture in 8 x 8 pixels, base64; empty while a suite is being made."""

    def __post_init__(self) -> None:
        if self.seed >= TRAINING_SEED:
            raise InvalidValueError(f"evaluation seeds lie below {TRAINING_SEED}, got {self.seed}; take another")

    @property
    def scene_from_world(self) -> Float[Tensor, "4 4"]:
        """From the frame of the environment to that of the scene."""
        x, z, yaw = (torch.tensor(value, dtype=torch.float32) for value in self.start)
        zero = torch.zeros(())
        where = torch.stack([x, torch.tensor(-self.path.camera_height_m), z])
        return rigid(rotation_from_yaw_pitch_roll(yaw.deg2rad(), zero, zero), where)

    def walk(self, size: tuple[int, int]) -> Walk:
        cameras = self.path.cameras(size)
        there = Cameras(self.scene_from_world @ cameras.world_from_camera, cameras.intrinsics_px, size)
        count = len(cameras)
        time_s = SECONDS_PER_FRAME * torch.arange(count, dtype=torch.float32)
        scene = make_scene(self.seed, self.family)
        shown = render([scene], torch.zeros(count, dtype=torch.int64), there, time_s)
        frames = Frames(shown.rgb, shown.depth_m, shown.sky, shown.dynamic, shown.remembered, cameras)
        if self.thumbnail:
            check_thumbnail(self, frames.rgb[0])
        return Walk(self.id, frames, self.path.camera_height_m, self.seed, self.pairs)


@dataclass(frozen=True)
class PhotographTake(Take):
    """A walk into one of scikit-image's photographs: only the first picture is known."""

    id: str
    path: CameraPath
    pairs: tuple[tuple[int, int], ...]

    def walk(self, size: tuple[int, int]) -> Walk:
        cameras = self.path.cameras(size)
        rgb = torch.zeros(len(cameras), *size, 3, dtype=torch.uint8)
        rgb[0] = crops(photograph(self.id), size)[0]
        frames = pictures_alone(rgb, cameras)
        return Walk(self.id, frames, self.path.camera_height_m, 0, self.pairs, pictures=False, geometry=False)


def thumbnail(picture: UInt8[Tensor, "H W 3"]) -> str:
    """The means of 8 x 8 blocks, as base64 of their bytes."""
    height, width = picture.shape[:2]
    blocks = picture.reshape(THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL, 3).float().mean((1, 3))
    return base64.b64encode(blocks.round().to(torch.uint8).numpy().tobytes()).decode()


def check_thumbnail(take: SimulatedTake, picture: UInt8[Tensor, "H W 3"]) -> None:
    """Raises `InvalidValueError` where the simulator no longer draws the scene that the suite was frozen with."""
    if picture.shape[0] != picture.shape[1]:
        return  # thumbnails are of square pictures
    stored, now = (
        np.frombuffer(base64.b64decode(text), np.uint8).astype(float) for text in (take.thumbnail, thumbnail(picture))
    )
    if np.abs(stored - now).mean() > THUMBNAIL_TOLERANCE:
        raise InvalidValueError(
            f"the simulator draws another scene for {take.id} than when its suite was frozen, so scores would not "
            "compare; use the revision that the suite came with, or freeze a new version of it"
        )


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_suite(name: str) -> Suite:
    """A suite that comes with the package; raises `UnknownNameError` with the names that exist."""
    if name not in suite_names():
        raise UnknownNameError("suite", name, suite_names())
    return parse_suite(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def parse_suite(values: Mapping[str, Any]) -> Suite:
    """The suite of a JSON file."""
    if values.get("format") != FORMAT:
        raise InvalidValueError(f"a suite of format {FORMAT} is expected, got {values.get('format')}")
    pairs = tuple((int(a), int(b)) for a, b in values["pairs"])
    takes: list[Take] = []
    for entry in values["scenes"]:
        places = tuple(tuple(place) for place in entry["path_m_deg"])
        path = CameraPath(places, entry["fov_deg"], entry["camera_height_m"])
        if "family" in entry:
            x, z, yaw = entry["start_m_deg"]
            takes.append(
                SimulatedTake(
                    entry["id"], entry["family"], entry["seed"], (x, z, yaw), path, pairs, entry["first_picture_8x8"]
                )
            )
        else:
            takes.append(PhotographTake(entry["id"], path, pairs))
    return Suite(values["name"], values["version"], values["about"], tuple(takes))


def cached_walk(take: Take, size: tuple[int, int], cache: Path | None) -> Walk:
    """`take.walk(size)`, kept in a folder between calls. Another simulator or another take is another file."""
    if cache is None or not isinstance(take, SimulatedTake):
        return take.walk(size)
    key = hashlib.sha256(f"{take} {size} {_simulator_hash()}".encode()).hexdigest()
    file = prepare_folder(cache) / f"{key[:24]}.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as stored:
            rgb, depth, masks = (torch.from_numpy(stored[name]) for name in ("rgb", "depth_m", "masks"))
        cells = torch.ones(len(rgb), size[0] // 8, size[1] // 8, dtype=torch.bool)
        frames = Frames(rgb, depth, masks[0], masks[1], cells, take.path.cameras(size))
        return Walk(take.id, frames, take.path.camera_height_m, take.seed, take.pairs)
    walk = take.walk(size)
    masks = torch.stack([walk.truth.sky, walk.truth.dynamic])
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(partial, rgb=walk.truth.rgb.numpy(), depth_m=walk.truth.depth_m.numpy(), masks=masks.numpy())
    partial.replace(file)
    return walk


def _simulator_hash() -> str:
    """Of the source that draws the pictures."""
    import mirage_env.simulator as simulator

    files = sorted(Path(str(simulator.__file__)).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
