"""The readout in torch: for every device, and for small reads on a CPU. See `splat.py` for what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

NONE = torch.iinfo(torch.int64).max
_ROW = (1 << 32) - 1
# View-point pairs projected at a time. On a CPU the intermediate results then stay in the cache (3x at 300,000 points);
# a GPU wants few launches and only has to keep its memory bounded.
_PAIRS_CPU, _PAIRS_GPU = 1 << 16, 1 << 24


class Scene(NamedTuple):
    """What a kernel is given: points with ids, and views by their `view_axes`."""

    points: Tensor  # (N, 3)
    ids: Tensor  # (N,)
    axes: Tensor  # (V, 3, 3), the rows of K R^T
    centres: Tensor  # (V, 3)
    size: tuple[int, int]
    footprint_m: Tensor | None = None  # (N,), where points of one surface compete by it
    focal: Tensor | None = None  # (V,), in cells
    same_surface: float = 0.0


def frontmost(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """`splat.frontmost`."""
    scene, order = by_age(scene)
    index, offset, depth = from_keys(smallest_keys(scene), scene.points, scene.axes, scene.centres, scene.size)
    if order is not None:
        index = torch.where(index >= 0, order[index.clamp_min(0)], -1)
    return index, offset, depth


def landed(scene: Scene, groups: int) -> Tensor:
    """`splat.landed`."""
    cells = len(scene.axes) * scene.size[0] * scene.size[1]
    hit = torch.zeros(groups, cells, dtype=torch.bool, device=scene.points.device)
    for cell, _, row in _hits(scene):
        hit[scene.ids[row], cell] = True
    return hit.view(groups, len(scene.axes), *scene.size)


def by_age(scene: Scene) -> tuple[Scene, Tensor | None]:
    """The points by increasing id, so that the row is the rank among equals, and the order if that was not theirs."""
    ids, footprint = scene.ids, scene.footprint_m
    if bool((ids[1:] > ids[:-1]).all()):  # as in a `MemoryState`
        return scene, None
    order = ids.argsort(stable=True)
    footprint = None if footprint is None else footprint[order]
    return scene._replace(points=scene.points[order], ids=ids[order], footprint_m=footprint), order


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


def smallest_keys(scene: Scene) -> Tensor:
    """(V * h * w,): a positive float's bits above the row, of the winner in every cell; the largest int64 for none.

    The float is the z-depth, or the misfit where points of one surface compete. The bits of positive floats sort like
    the floats, so one integer minimum orders by it, then by row.
    """
    (height, width), views = scene.size, len(scene.axes)
    best = torch.full((views * height * width,), NONE, dtype=torch.int64, device=scene.points.device)
    kept = []
    for cell, z, row in _hits(scene):
        best.scatter_reduce_(0, cell, key(z, row), "amin")
        if scene.footprint_m is not None:
            near = z <= surface_limit(best, scene.same_surface)[cell]
            kept.append((cell[near], z[near], row[near]))
    if scene.footprint_m is None or scene.focal is None:
        return best
    limit, front = surface_limit(best, scene.same_surface), depth_of(best)
    target = front / scene.focal.repeat_interleave(height * width)
    fitting = torch.full_like(best, NONE)
    for cell, z, row in kept:
        footprint, wanted = scene.footprint_m[row], target[cell]
        misfit = torch.where(footprint >= wanted, footprint / wanted, wanted / footprint)
        misfit = torch.where(misfit >= 1, misfit, torch.inf)  # NaN of what is no footprint must not win
        fitting.scatter_reduce_(0, cell, torch.where(z <= limit[cell], key(misfit, row), NONE), "amin")
    return fitting


def key(value: Tensor, row: Tensor) -> Tensor:
    """Sorts by a positive float, then by row."""
    return (value.view(torch.int32).long() << 32) | row


def depth_of(keys: Tensor) -> Tensor:
    """The float of every key; NaN where there is none."""
    return (keys >> 32).int().view(torch.float32)


def surface_limit(best: Tensor, same_surface: float) -> Tensor:
    """How far points of the frontmost surface may lie in every cell."""
    return depth_of(best) * (1.0 + same_surface)


def _hits(scene: Scene) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(cell, z-depth, row) of the points that are in a view, many at a time."""
    (height, width), views, points = scene.size, len(scene.axes), scene.points
    rows = _rows(scene.axes, scene.centres)
    coordinates = points.T.contiguous()[:, None]
    step = max(1, (_PAIRS_CPU if points.device.type == "cpu" else _PAIRS_GPU) // max(1, views))
    for start in range(0, len(points), step):
        x, y, z = _image(coordinates[:, :, start : start + step], *rows)
        # NaN (huge coordinates) and the infinities of z <= 0 fail both comparisons.
        inside = (torch.minimum(x, y) >= 0) & (torch.maximum(x - width, y - height) < 0)
        pair = inside.flatten().nonzero().squeeze(1)
        x, y, z = (a.flatten().index_select(0, pair) for a in (x, y, z))
        view = pair // inside.shape[1]
        row = pair - view * inside.shape[1] + start
        yield (view * height + y.long()) * width + x.long(), z, row


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
