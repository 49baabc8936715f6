"""Points as binary PLY, which every viewer opens; coordinates are the world's: metres, y down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mirage_env.artefacts import whole_file
from mirage_env.errors import InvalidValueError
from mirage_env.rollout.store import StoredEpisode

if TYPE_CHECKING:
    from mirage_env.world_model import WorldModel

VOXEL_M = 0.02
"""One point is kept in each cube of this side, the first one seen."""
TOKENS_AT_ONCE = 1024
"""How many tokens of a memory become colours in one pass of the decoder."""


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
    """What a world that `env.save` wrote remembers: its points, and of each the mean colour that its token decodes to.

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
    identity = about.get("world", {}) if isinstance(about, dict) else {}
    if "preset" not in identity:
        raise InvalidValueError(f"{path} is no saved Mirage world, so it holds no memory; save one of Mirage-v0")
    height, width = identity["size"].split(" x ")
    world = load_world(identity["preset"], (int(height), int(width)))
    memory = snapshots.load(path, world, None, Episode).episode.world.memory
    if isinstance(memory, RgbState):
        return memory.cloud.points.cpu().numpy(), memory.cloud.tokens.cpu().numpy()
    if not isinstance(memory, MemoryState):
        raise InvalidValueError(f"the memory of {path} ({type(memory).__name__}) has no points in space")
    points, tokens = memory.points.cpu().numpy(), memory.tokens.float()
    return points, np.concatenate([_colours(world, some) for some in tokens.split(TOKENS_AT_ONCE)])


def _colours(world: WorldModel, tokens: Float[Tensor, "N C"]) -> UInt8[np.ndarray, "N 3"]:
    """The middle of a picture of three by three cells that all hold the token."""
    latents = tokens[:, None, :, None, None].expand(-1, 1, -1, 3, 3).to(world.device)
    pictures = world.parts["decode"](latents, latents[:, :0])[:, 0]
    side = pictures.shape[1] // 3
    return pictures[:, side:-side, side:-side].float().mean((1, 2)).round().to(torch.uint8).cpu().numpy()


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
