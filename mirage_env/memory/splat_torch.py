"""The readout in torch: for every device, and for small reads on a CPU. See `splat.py` for what it computes."""

from __future__ import annotations

import torch
from torch import Tensor

NONE = torch.iinfo(torch.int64).max
_ROW = (1 << 32) - 1
# View-point pairs projected at a time. On a CPU the intermediate results then stay in the cache (3x at 300,000 points);
# a GPU wants few launches and only has to keep its memory bounded.
_PAIRS_CPU, _PAIRS_GPU = 1 << 16, 1 << 24


def frontmost(
    points: Tensor, ids: Tensor, axes: Tensor, centres: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """`splat.frontmost` of cameras given by their `view_axes`."""
    points, order = by_age(points, ids)
    index, offset, depth = from_keys(smallest_keys(points, axes, centres, size), points, axes, centres, size)
    if order is not None:
        index = torch.where(index >= 0, order[index.clamp_min(0)], -1)
    return index, offset, depth


def by_age(points: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """The points by increasing id, so that the row is the rank among equals, and the order if that was not theirs."""
    if bool((ids[1:] > ids[:-1]).all()):  # as in a `MemoryState`
        return points, None
    order = ids.argsort(stable=True)
    return points[order], order


def from_keys(
    best: Tensor, points: Tensor, axes: Tensor, centres: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, offset and depth of the winners that `smallest_keys` found."""
    views = len(axes)
    if len(points) == 0 or views == 0:
        index = torch.full((views, *size), -1, dtype=torch.int64, device=points.device)
        return index, points.new_zeros(views, 2, *size), points.new_zeros(views, *size)
    hit = best != NONE
    winner = torch.where(hit, best & _ROW, 0)
    x, y, z = _image(points.index_select(0, winner).T.unflatten(1, (views, size[0] * size[1])), *_rows(axes, centres))
    offset = torch.stack([x - x.floor(), y - y.floor()], 1).unflatten(2, size) - 0.5
    visible = hit.view(views, *size)
    depth = torch.where(visible, z.unflatten(1, size), 0.0)
    return (
        torch.where(hit, winner, -1).view(views, *size),
        torch.where(visible[:, None], offset, 0.0),
        depth,
    )


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The winners' tokens, (V, C, h, w); zero where there is none."""
    if len(tokens) == 0:
        return tokens.new_zeros(len(index), tokens.shape[1], *index.shape[1:])
    shown = tokens.index_select(0, index.flatten().clamp_min(0)).unflatten(0, index.shape)
    return torch.where(index[..., None] >= 0, shown, 0.0).permute(0, 3, 1, 2).contiguous()


def smallest_keys(points: Tensor, axes: Tensor, centres: Tensor, size: tuple[int, int]) -> Tensor:
    """(V * h * w,): z-depth's bits above the row, of the frontmost point in every cell; the largest int64 for none.

    The bits of positive floats sort like the floats, so one integer minimum orders by depth, then by row.
    """
    (height, width), views, count = size, len(axes), len(points)
    rows = _rows(axes, centres)
    coordinates = points.T.contiguous()[:, None]
    step = max(1, (_PAIRS_CPU if points.device.type == "cpu" else _PAIRS_GPU) // max(1, views))
    best = torch.full((views * height * width,), NONE, dtype=torch.int64, device=points.device)
    for start in range(0, count, step):
        x, y, z = _image(coordinates[:, :, start : start + step], *rows)
        # NaN (huge coordinates) and the infinities of z <= 0 fail both comparisons.
        inside = (torch.minimum(x, y) >= 0) & (torch.maximum(x - width, y - height) < 0)
        pair = inside.flatten().nonzero().squeeze(1)
        x, y, z = (a.flatten().index_select(0, pair) for a in (x, y, z))
        view = pair // inside.shape[1]
        row = pair - view * inside.shape[1] + start
        cell = (view * height + y.long()) * width + x.long()
        best.scatter_reduce_(0, cell, (z.view(torch.int32).long() << 32) | row, "amin")
    return best


def _rows(axes: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(3, V, 3) and (3, V, 1), contiguous, as `_image` takes them."""
    return axes.transpose(0, 1).contiguous(), centres.T.contiguous()[:, :, None]


def _image(points: Tensor, axes: Tensor, centre: Tensor) -> Tensor:
    """(3, V, n): grid position x, y and z-depth of points in views; where z <= 0, x and y are in no cell."""
    from_camera = points - centre  # before rotating, so that a far-away world origin costs no precision
    image = axes[:, :, :1] * from_camera[0]
    image += axes[:, :, 1:2] * from_camera[1]
    image += axes[:, :, 2:] * from_camera[2]
    image[:2] /= image[2].clamp_min(0.0)
    return image
