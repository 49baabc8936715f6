"""The readout as loops over views and points: what `splat` must equal bit for bit. For tests and for reading."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mirage_env.types import Cameras, Readout


class _Hit(NamedTuple):
    """A point in a cell."""

    row: int
    x: np.float32
    y: np.float32
    z: np.float32


def splat_by_loops(
    points: Float[Tensor, "N 3"],
    tokens: Float[Tensor, "N C"],
    ids: Int64[Tensor, " N"],
    cameras: Cameras,
    footprint_m: Float[Tensor, " N"] | None = None,
    same_surface: float = 0.0,
) -> Readout:
    """`splat`, one point at a time, in float32 (Eq. 5, 9, 10)."""
    (height, width), views, channels = cameras.size, len(cameras), tokens.shape[1]
    shown = torch.zeros(views, channels, height, width)
    visible = torch.zeros(views, height, width, dtype=torch.bool)
    depth_m = torch.zeros(views, height, width)
    offset = torch.zeros(views, 2, height, width)
    index = torch.full((views, height, width), -1, dtype=torch.int64)

    for view in range(views):
        pose, k = cameras.world_from_camera[view].numpy(), cameras.intrinsics_px[view].numpy()
        right, down, forward, centre = pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3]
        axes = [line[0] * right + line[1] * down + line[2] * forward for line in k]
        focal = np.sqrt(k[0, 0] * k[1, 1])
        hits: dict[tuple[int, int], list[_Hit]] = {}
        for row, point in enumerate(points.numpy()):
            with np.errstate(all="ignore"):  # huge coordinates overflow, and then lie in no cell
                ray = point - centre
                x, y, z = (axis[0] * ray[0] + axis[1] * ray[1] + axis[2] * ray[2] for axis in axes)
                if not z > 0:
                    continue
                x, y = x / z, y / z  # Eq. 9
            if 0 <= x < width and 0 <= y < height:  # Eq. 10
                hits.setdefault((int(y), int(x)), []).append(_Hit(row, x, y, z))
        for (v, u), cell in hits.items():
            front = min(hit.z for hit in cell)
            if same_surface and footprint_m is not None:
                side, limit = front / focal, front * np.float32(1.0 + same_surface)
                rivals = [hit for hit in cell if hit.z <= limit]
                won = min(rivals, key=lambda hit: (_misfit(footprint_m[hit.row].numpy(), side), int(ids[hit.row])))
            else:
                won = min(cell, key=lambda hit: (hit.z, int(ids[hit.row])))  # Eq. 5
            visible[view, v, u] = True
            shown[view, :, v, u] = tokens[won.row].float()
            depth_m[view, v, u] = float(won.z)
            offset[view, 0, v, u] = float(won.x - np.float32(u) - np.float32(0.5))
            offset[view, 1, v, u] = float(won.y - np.float32(v) - np.float32(0.5))
            index[view, v, u] = won.row
    return Readout(shown, visible, depth_m, offset, index)


def _misfit(footprint: np.ndarray, side: np.float32) -> np.float32:
    """By how many times a patch is too large or too small for a cell; infinite for what is no patch."""
    with np.errstate(all="ignore"):
        ratio = footprint / side if footprint >= side else side / footprint
    return np.float32(ratio if ratio >= 1 else np.inf)
