"""Points as binary PLY, which every viewer opens; coordinates are the world's: metres, y down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from mirage_env.artefacts import whole_file
from mirage_env.rollout.store import StoredEpisode

VOXEL_M = 0.02
"""One point is kept in each cube of this side, the first one seen."""


def write(episodes: Iterable[StoredEpisode], out: Path) -> None:
    """OUT/000007.ply an episode."""
    for episode in episodes:
        write_ply(out / f"{episode.name}.ply", *episode_points(episode))


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


def write_ply(path: Path, points: Float[np.ndarray, "N 3"], colours: UInt8[np.ndarray, "N 3"] | None = None) -> None:
    """Any points, such as those of a memory: `write_ply(path, state.memory.points.numpy())`."""
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
