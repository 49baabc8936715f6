"""Reading points into views: the frontmost point of every cell (Eq. 5, 9, 10).

This is the hot path. Its results are defined to the bit, whatever computes them and in whatever company: products and
sums are written out in one order, which BLAS does not promise for a point in another batch, and the frontmost point is
a minimum over (depth, id), which no order of the points can change. `reference.py` states the same as plain loops.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mirage_env.types import Cameras, Readout

_NONE = torch.iinfo(torch.int64).max
_ROW = (1 << 32) - 1
# View-point pairs projected at a time. On a CPU the intermediate results then stay in the cache (3x at 300,000 points);
# a GPU wants few launches and only has to keep its memory bounded.
_PAIRS_CPU, _PAIRS_GPU = 1 << 16, 1 << 24


def splat(
    points: Float[Tensor, "N 3"], tokens: Float[Tensor, "N C"], ids: Int64[Tensor, " N"], cameras: Cameras
) -> Readout:
    """What the points show to the cameras, on the grid `cameras.size` (Eq. 5).

    In every cell the point with the smallest positive z-depth wins, and among equals the one with the smallest id.
    Cells that no point falls into are zero. Tokens come back as float32.
    """
    index, offset, depth = frontmost(points, ids, cameras)
    visible = index >= 0
    if len(points) == 0:
        shown = tokens.new_zeros(*index.shape, tokens.shape[1])
    else:
        shown = tokens.index_select(0, index.flatten().clamp_min(0)).unflatten(0, index.shape)
        shown.masked_fill_(~visible[..., None], 0.0)
    return Readout(shown.float().permute(0, 3, 1, 2).contiguous(), visible, depth, offset, index)


def frontmost(
    points: Float[Tensor, "N 3"], ids: Int64[Tensor, " N"], cameras: Cameras
) -> tuple[Int[Tensor, "V h w"], Float[Tensor, "V 2 h w"], Float[Tensor, "V h w"]]:
    """Row of the winner (-1 for none), its (x, y) offset from the cell's centre in cells, and its z-depth in metres."""
    (height, width), views, count = cameras.size, len(cameras), len(points)
    if count == 0:
        index = torch.full((views, height, width), -1, dtype=torch.int64, device=points.device)
        return index, points.new_zeros(views, 2, height, width), points.new_zeros(views, height, width)
    order = None  # where ids increase, as in a `MemoryState`, the row itself is the rank among equals
    if not bool((ids[1:] > ids[:-1]).all()):
        order = ids.argsort(stable=True)
        points = points[order]

    axes, centre = _axes(cameras)
    coordinates = points.T.contiguous()[:, None]
    step = max(1, (_PAIRS_CPU if points.device.type == "cpu" else _PAIRS_GPU) // max(1, views))
    best = torch.full((views * height * width,), _NONE, dtype=torch.int64, device=points.device)
    for start in range(0, count, step):
        x, y, z = _image(coordinates[:, :, start : start + step], axes, centre)
        # NaN (huge coordinates) and the infinities of z <= 0 fail both comparisons.
        inside = (torch.minimum(x, y) >= 0) & (torch.maximum(x - width, y - height) < 0)
        pair = inside.flatten().nonzero().squeeze(1)
        x, y, z = (a.flatten().index_select(0, pair) for a in (x, y, z))
        view = pair // inside.shape[1]
        row = pair - view * inside.shape[1] + start
        cell = (view * height + y.long()) * width + x.long()
        # The bits of positive floats sort like the floats, so one integer minimum orders by depth, then by rank.
        best.scatter_reduce_(0, cell, (z.view(torch.int32).long() << 32) | row, "amin")

    hit = best != _NONE
    winner = torch.where(hit, best & _ROW, 0)
    x, y, z = _image(points.index_select(0, winner).T.unflatten(1, (views, height * width)), axes, centre)
    offset = torch.stack([x - x.floor(), y - y.floor()], 1).unflatten(2, cameras.size) - 0.5
    index = torch.where(hit, winner if order is None else order[winner], -1).view(views, height, width)
    visible = index >= 0
    depth = torch.where(visible, z.unflatten(1, cameras.size), 0.0)
    return index, torch.where(visible[:, None], offset, 0.0), depth


def _axes(cameras: Cameras) -> tuple[Float[Tensor, "3 V 3"], Float[Tensor, "3 V 1"]]:
    """The rows of K R^T and the camera's centre, so that (x z, y z, z) = K R^T (p - centre)."""
    rotation, k = cameras.world_from_camera[:, :3, :3].transpose(1, 2), cameras.intrinsics_px
    product = k[:, :, :1] * rotation[:, :1] + k[:, :, 1:2] * rotation[:, 1:2] + k[:, :, 2:] * rotation[:, 2:]
    return product.transpose(0, 1).contiguous(), cameras.world_from_camera[:, :3, 3:].transpose(0, 1).contiguous()


def _image(
    points: Float[Tensor, "3 #V n"], axes: Float[Tensor, "3 V 3"], centre: Float[Tensor, "3 V 1"]
) -> Float[Tensor, "3 V n"]:
    """Grid position x, y and z-depth of points in views; where z <= 0, x and y are infinite or NaN: in no cell."""
    from_camera = points - centre  # before rotating, so that a far-away world origin costs no precision
    image = axes[:, :, :1] * from_camera[0]
    image += axes[:, :, 1:2] * from_camera[1]
    image += axes[:, :, 2:] * from_camera[2]
    image[:2] /= image[2].clamp_min(0.0)
    return image
