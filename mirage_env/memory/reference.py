"""The readout as loops over views and points: what `splat` must equal bit for bit. For tests and for reading."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mirage_env.types import Cameras, Readout


def splat_by_loops(
    points: Float[Tensor, "N 3"], tokens: Float[Tensor, "N C"], ids: Int64[Tensor, " N"], cameras: Cameras
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
        for row, point in enumerate(points.numpy()):
            with np.errstate(all="ignore"):  # huge coordinates overflow, and then lie in no cell
                ray = point - centre
                x, y, z = (axis[0] * ray[0] + axis[1] * ray[1] + axis[2] * ray[2] for axis in axes)
                if not z > 0:
                    continue
                x, y = x / z, y / z  # Eq. 9
            if not (0 <= x < width and 0 <= y < height):  # Eq. 10
                continue
            u, v = int(x), int(y)
            nearest = not visible[view, v, u] or float(z) < float(depth_m[view, v, u])
            tie = visible[view, v, u] and float(z) == float(depth_m[view, v, u])
            if nearest or (tie and ids[row] < ids[index[view, v, u]]):  # Eq. 5
                visible[view, v, u] = True
                shown[view, :, v, u] = tokens[row].float()
                depth_m[view, v, u] = float(z)
                offset[view, 0, v, u] = float(x - np.float32(u) - np.float32(0.5))
                offset[view, 1, v, u] = float(y - np.float32(v) - np.float32(0.5))
                index[view, v, u] = row
    return Readout(shown, visible, depth_m, offset, index)
