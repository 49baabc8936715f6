"""Points as binary PLY, which every viewer opens; coordinates are the world's: metres, y down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mirage_env.artefacts import whole_file
from mirage_env.errors import InvalidValueError
from mirage_env.geometry.projection import project
from mirage_env.rollout.store import StoredEpisode

if TYPE_CHECKING:
    from mirage_env.world_model import WorldModel, WorldState

VOXEL_M = 0.02
"""One point is kept in each cube of this side, the first one seen."""
SAME_SURFACE = 0.05
"""A keyframe shows a point of the memory where its depth differs by less than this share."""


def write(episodes: Iterable[StoredEpisode], out: Path) -> None:
    """OUT/000007.ply an episode."""
    for episode in episodes:
        write_ply(out / f"{episode.name}.ply", *episode_points(episode))


def write_world(path: Path, out: Path) -> None:
    """OUT/NAME.ply of the saved world NAME.safetensors."""
    write_ply(out / f"{path.stem}.ply", *world_points(path))


def episode_points(
    episode: StoredEpisode, voxel_m: float = VOXEL_M
) -> tuple[Float[np.ndarray, "N 3"], UInt8[np.ndarray, "N 3"]]:
    """World points of all pixels with valid depth, and their colours; at most one in each voxel."""
    points, colours = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    frames = zip(
        episode.pictures(),
        episode.depth_units(),
        episode.array("world_from_camera"),
        np.linalg.inv(episode.array("intrinsics_px")),
        strict=True,
    )
    for rgb, units, world_from_camera, camera_from_pixel in frames:
        rows, columns = np.nonzero(units)
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], -1)
        at_camera = pixels @ camera_from_pixel.T * (units[rows, columns] * episode.depth_unit_m)[:, None]
        new = at_camera @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
        points = np.concatenate([points, new.astype(np.float32)])
        colours = np.concatenate([colours, rgb[rows, columns]])
        _, first = np.unique(np.floor(points / voxel_m).astype(np.int32), axis=0, return_index=True)
        first.sort()
        points, colours = points[first], colours[first]
    return points, colours


def world_points(path: Path) -> tuple[Float[np.ndarray, "N 3"], UInt8[np.ndarray, "N 3"]]:
    """What a world that `env.save` wrote remembers: points, and their colours in the earliest keyframe that shows them.

    Raises SavedWorldError or UnknownNameError where the file or its preset is not there, InvalidValueError for a world
    whose memory has no points in space.
    """
    from mirage_env.envs import snapshots
    from mirage_env.envs.env import Episode
    from mirage_env.memory.latent import MemoryState
    from mirage_env.memory.rgb import RgbState
    from mirage_env.values import StoredValues
    from mirage_env.world_model import load_world

    about = StoredValues(path).about
    identity = about.get("world") if isinstance(about, dict) else None
    if not isinstance(identity, dict) or "preset" not in identity:
        raise InvalidValueError(f"{path} is no saved world of Mirage-v0, so it holds no memory")
    height, width = identity["size"].split(" x ")
    world = load_world(identity["preset"], (int(height), int(width)))
    state = snapshots.load(path, world, None, Episode).episode.world
    if isinstance(state.memory, RgbState):
        return state.memory.cloud.points.cpu().numpy(), state.memory.cloud.tokens.cpu().numpy()
    if not isinstance(state.memory, MemoryState):
        raise InvalidValueError(f"the memory of {path} ({type(state.memory).__name__}) has no points in space")
    return state.memory.points.cpu().numpy(), _colours(world, state).cpu().numpy()


def _colours(world: WorldModel, state: WorldState) -> UInt8[Tensor, "N 3"]:
    """Of the memory's points; grey where no keyframe is left that shows one."""
    points = state.memory.points  # type: ignore[attr-defined]  # of a `MemoryState`
    colours = torch.full((len(points), 3), 128, dtype=torch.uint8, device=points.device)
    for keyframe in reversed(state.keyframes):  # the earliest has the last word
        latents = keyframe.latents[:, None]
        with torch.inference_mode(), world.precision():
            picture = world.parts["decode"](latents, latents[:, :0])[0, 0]
        cells = adaptive_avg_pool2d(picture.movedim(-1, 0).float(), keyframe.cameras.size).round().to(torch.uint8)
        (place,), (z,) = project(points, keyframe.cameras)
        height, width = keyframe.cameras.size
        ahead = (z > 0) & (place >= 0).all(1) & (place < place.new_tensor([width, height])).all(1)
        column, row = place[ahead].long().unbind(1)
        shown = (keyframe.depth_m[0, row, column] / z[ahead] - 1).abs() < SAME_SURFACE  # not where depth is unknown
        colours[ahead.nonzero()[shown, 0]] = cells[:, row[shown], column[shown]].T
    return colours


def write_ply(path: Path, points: Float[np.ndarray, "N 3"], colours: UInt8[np.ndarray, "N 3"] | None = None) -> None:
    """Any points, such as those of a memory: `write_ply(path, state.points.numpy())`."""
    fields = [(axis, "<f4") for axis in "xyz"]
    if colours is not None:
        fields += [(colour, "u1") for colour in ("red", "green", "blue")]
    table = np.empty(len(points), fields)
    for axis, values in zip("xyz", points.T, strict=True):
        table[axis] = values
    if colours is not None:
        for colour, shades in zip(("red", "green", "blue"), colours.T, strict=True):
            table[colour] = shades
    kinds = {"<f4": "float", "u1": "uchar"}
    properties = "".join(f"property {kinds[kind]} {name}\n" for name, kind in fields)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    with whole_file(path) as partial:
        partial.write_bytes(header.encode("ascii") + table.tobytes())
