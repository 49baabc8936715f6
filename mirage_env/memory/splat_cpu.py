"""The readout on a CPU: one pass over the points, compiled by numba, views shared out among threads.

The same arithmetic as `reference.py`, operation by operation in float32 and without contraction, so that the results
are equal to the bit. Threads are Python's (the kernels run without the GIL): numba's own would compile for seconds, and
would not know of `torch.set_num_threads`. Compiled once a machine: beside this file, or where that is read-only in the
user's cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from inspect import unwrap
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from mirage_env.memory.splat_torch import Scene

BLOCK = 1024
"""Points that are projected into one view after another while they and their images lie in the fastest cache."""
_PAIRS_A_THREAD = 1 << 17
"""View-point pairs below which another thread costs more than it saves."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    function = unwrap(function)  # while the tests run it is wrapped in checks of its types
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep it in: it is compiled anew in every process
        return numba.njit(nogil=True, error_model="numpy")(function)


def _inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the compiler must see that the arrays of a loop are not each other."""
    return numba.njit(inline="always", error_model="numpy")(unwrap(function))


@_compiled
def _lay_out(block: Any, x: Any, y: Any, z: Any, low: Any, high: Any) -> None:
    """Coordinates one behind another, as vector instructions want them, and the corners of the box around them.

    NaN is in no cell and counts for nothing.
    """
    for axis in range(3):
        least, most = np.float32(np.inf), np.float32(-np.inf)
        for n in range(len(block)):
            least, most = min(least, block[n, axis]), max(most, block[n, axis])
        low[axis], high[axis] = least, most
    for n in range(len(block)):
        x[n], y[n], z[n] = block[n, 0], block[n, 1], block[n, 2]


@_inlined
def _project(
    x: Any, y: Any, z: Any, size: int, axes: Any, centre: Any, high: Any, wide: Any,
    right_of: Any, below: Any, ahead: Any, inside: Any, hits: Any,
) -> int:  # fmt: skip
    """Fills in grid position and z-depth of a block of points, and in `hits` who is in view; returns how many are."""
    zero = np.float32(0.0)
    a, b, c = axes[0, 0], axes[0, 1], axes[0, 2]
    d, e, f = axes[1, 0], axes[1, 1], axes[1, 2]
    g, h, i = axes[2, 0], axes[2, 1], axes[2, 2]
    px, py, pz = centre[0], centre[1], centre[2]
    for n in range(size):  # no branch in here, so that it becomes vector instructions
        u, v, w = x[n] - px, y[n] - py, z[n] - pz
        deep = g * u + h * v + i * w
        right = (a * u + b * v + c * w) / deep
        down = (d * u + e * v + f * w) / deep
        right_of[n], below[n], ahead[n] = right, down, deep
        inside[n] = (deep > zero) & (right >= zero) & (down >= zero) & (right < wide) & (down < high)
    count = 0
    for n in range(size):  # nor in here: which points are inside cannot be predicted
        hits[count] = n
        count += int(inside[n])
    return count


@_compiled
def _beyond(low: Any, high: Any, axes: Any, centre: Any, wide: Any, tall: Any) -> bool:
    """Whether a whole box surely lies outside one plane of the view's frustum.

    In a large world most blocks do: rows of one age were seen together and lie together. A plane counts as missed only
    by more than rounding can amount to, so that culling changes no bit of the result.
    """
    if not (low[0] <= high[0] and low[1] <= high[1] and low[2] <= high[2]):
        return True  # nothing but NaN
    # Inside are z > 0, x z >= 0, w z - x z > 0, y z >= 0, h z - y z > 0, with (x z, y z, z) = axes (p - centre).
    for plane in range(5):
        most, size = 0.0, 0.0
        for axis in range(3):
            right, down, deep = float(axes[0, axis]), float(axes[1, axis]), float(axes[2, axis])
            if plane == 0:
                weight, total = deep, abs(deep)
            elif plane == 1:
                weight, total = right, abs(right)
            elif plane == 2:
                weight, total = wide * deep - right, wide * abs(deep) + abs(right)
            elif plane == 3:
                weight, total = down, abs(down)
            else:
                weight, total = tall * deep - down, tall * abs(deep) + abs(down)
            near, far = float(low[axis]) - float(centre[axis]), float(high[axis]) - float(centre[axis])
            most += max(weight * near, weight * far)
            size += total * max(abs(near), abs(far))
        if most < -1e-5 * size:
            return True
    return False


@_compiled
def _frontmost(
    points: Any, ids: Any, axes: Any, centres: Any, height: int, width: int, first: int, last: int,
    index: Any, depth: Any, reach: Any, cell_of: Any, row_of: Any, depth_of: Any,
) -> int:  # fmt: skip
    """The frontmost point of every cell of views first to last - 1.

    `axes` are the rows of K R^T, (V, 3, 3); `index` comes filled with -1, `depth` with infinity. All points that may
    turn out to lie at most `reach` times as far as the frontmost of their cell are noted in the last three arrays,
    which have room for every pair (an empty one costs nothing until it is filled); returns how many. 0: none.
    """
    noted = 0
    px, py, pz = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    x, y, z = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    inside, hits = np.empty(BLOCK, np.bool_), np.empty(BLOCK + 1, np.int32)
    low, corner = np.empty(3, np.float32), np.empty(3, np.float32)
    high, wide = np.float32(height), np.float32(width)
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        _lay_out(block, px, py, pz, low, corner)
        for view in range(first, last):
            axis, centre = axes[view], centres[view]
            if _beyond(low, corner, axis, centre, wide, high):
                continue
            count = _project(px, py, pz, len(block), axis, centre, high, wide, x, y, z, inside, hits)
            for hit in range(count):
                n = hits[hit]
                column, row, deep = int(x[n]), int(y[n]), z[n]
                front, before = depth[view, row, column], index[view, row, column]
                if deep <= front * reach:
                    cell_of[noted] = (view * height + row) * width + column
                    row_of[noted], depth_of[noted] = start + n, deep
                    noted += 1
                if deep < front or (deep == front and (before < 0 or ids[start + n] < ids[before])):
                    depth[view, row, column] = deep
                    index[view, row, column] = start + n
    return noted


@_compiled
def _choose_fitting(
    cell_of: Any, row_of: Any, depth_of: Any, ids: Any, footprint_m: Any, focal: Any, reach: Any, cells: int,
    depth: Any, misfit: Any, index: Any,
) -> None:  # fmt: skip
    """Of the noted points that do lie near enough to the frontmost of their cell, the best-fitting.

    `cells` are those of a view; `depth` is the frontmost's and `misfit` comes filled with infinity, both flat.
    """
    one, never = np.float32(1.0), np.float32(np.inf)
    for n in range(len(cell_of)):
        cell, row = cell_of[n], row_of[n]
        if not depth_of[n] <= depth[cell] * reach:
            continue
        has, wanted = footprint_m[row], depth[cell] / focal[cell // cells]
        by = has / wanted if has >= wanted else wanted / has
        if not by >= one:  # NaN of what is no footprint must not win
            by = never
        if by < misfit[cell] or (by == misfit[cell] and ids[row] < ids[index[cell]]):
            misfit[cell], index[cell] = by, row


@_compiled
def _locate(
    points: Any, axes: Any, centres: Any, index: Any, height: int, width: int, first: int, last: int,
    depth: Any, offset: Any,
) -> None:  # fmt: skip
    """z-depth of the winners, and where inside its cell each fell; zero where there is none."""
    half = np.float32(0.5)
    for view in range(first, last):
        axis, centre = axes[view], centres[view]
        for row in range(height):
            for column in range(width):
                winner = index[view, row, column]
                depth[view, row, column] = 0.0
                if winner < 0:
                    continue
                u, v, w = points[winner, 0] - centre[0], points[winner, 1] - centre[1], points[winner, 2] - centre[2]
                deep = axis[2, 0] * u + axis[2, 1] * v + axis[2, 2] * w
                depth[view, row, column] = deep
                for n in range(2):
                    position = (axis[n, 0] * u + axis[n, 1] * v + axis[n, 2] * w) / deep
                    offset[view, n, row, column] = position - np.floor(position) - half


@_compiled
def _mark_landed(
    points: Any, group: Any, axes: Any, centres: Any, height: int, width: int, first: int, last: int, landed: Any
) -> None:
    """landed[g, view, row, column] becomes true where any point of group g falls into that cell."""
    px, py, pz = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    x, y, z = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    inside, hits = np.empty(BLOCK, np.bool_), np.empty(BLOCK + 1, np.int32)
    low, corner = np.empty(3, np.float32), np.empty(3, np.float32)
    high, wide = np.float32(height), np.float32(width)
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        _lay_out(block, px, py, pz, low, corner)
        for view in range(first, last):
            axis, centre = axes[view], centres[view]
            if _beyond(low, corner, axis, centre, wide, high):
                continue
            count = _project(px, py, pz, len(block), axis, centre, high, wide, x, y, z, inside, hits)
            for hit in range(count):
                n = hits[hit]
                landed[group[start + n], view, int(y[n]), int(x[n])] = True


@_compiled
def _gather(tokens: Any, index: Any, first: int, last: int, shown: Any) -> None:
    """shown[view, :, cell] = tokens[index[view, cell]], or zero; sixteen cells, one cache line, a time."""
    cells, channels, nothing = index.shape[1], tokens.shape[1], tokens.dtype.type(0)
    for view in range(first, last):
        for start in range(0, cells, 16):
            for channel in range(channels):
                for cell in range(start, min(cells, start + 16)):
                    row = index[view, cell]
                    shown[view, channel, cell] = tokens[row, channel] if row >= 0 else nothing


def frontmost(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """`splat.frontmost` on a CPU."""
    views, size = len(scene.axes), scene.size
    index = torch.full((views, *size), -1, dtype=torch.int64)
    depth, offset = torch.full((views, *size), torch.inf), torch.zeros(views, 2, *size)
    points, ids, axes, centres = (_words(a, a.dtype) for a in (scene.points, scene.ids, scene.axes, scene.centres))
    won, deep, off = index.numpy(), depth.numpy(), offset.numpy()
    reach, fit = np.float32(0.0), None
    if scene.footprint_m is not None and scene.focal is not None:
        reach, fit = np.float32(1.0 + scene.same_surface), torch.full((views, *size), torch.inf).numpy()
        footprint, focal = (_words(a, a.dtype) for a in (scene.footprint_m, scene.focal))

    def kernel(first: int, last: int) -> None:
        room = 0 if fit is None else len(points) * (last - first)
        notes = [np.empty(room, kind) for kind in (np.int32, np.int32, np.float32)]
        noted = _frontmost(points, ids, axes, centres, *size, first, last, won, deep, reach, *notes)
        if fit is not None:
            rule, flat = (ids, footprint, focal, reach, size[0] * size[1]), (a.reshape(-1) for a in (deep, fit, won))
            _choose_fitting(*(note[:noted] for note in notes), *rule, *flat)
        _locate(points, axes, centres, won, *size, first, last, deep, off)

    _shared(views, len(points), kernel)
    return index, offset, depth


def landed(scene: Scene, groups: int) -> Tensor:
    """`splat.landed` on a CPU."""
    views = len(scene.axes)
    hit = torch.zeros(groups, views, *scene.size, dtype=torch.bool)
    inputs, marks = [_words(a, a.dtype) for a in (scene.points, scene.ids, scene.axes, scene.centres)], hit.numpy()
    _shared(views, len(scene.points), lambda first, last: _mark_landed(*inputs, *scene.size, first, last, marks))
    return hit


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The winners' tokens, (V, C, h, w), in their own dtype; bits are moved, so that any will do."""
    (views, *size), channels = index.shape, tokens.shape[1]
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.element_size()]
    shown = torch.empty(views, channels, *size, dtype=tokens.dtype)
    source, target = _words(tokens, word), shown.view(word).flatten(2).numpy()
    cells = index.flatten(1).numpy()
    _shared(views, cells.shape[1] * channels, lambda first, last: _gather(source, cells, first, last, target))
    return shown


def _words(tensor: Tensor, dtype: torch.dtype) -> Any:
    """As numpy sees it, in rows one behind another, for which alone the kernels are compiled."""
    return tensor.detach().contiguous().view(dtype).numpy()


def _shared(views: int, work_a_view: int, kernel: Callable[[int, int], None]) -> None:
    """Calls the kernel on runs of views, in as many threads as torch may use and the work is worth."""
    threads = max(1, min(torch.get_num_threads(), views, views * work_a_view // _PAIRS_A_THREAD))
    here, *elsewhere = pairwise(views * n // threads for n in range(threads + 1))
    others = [_pool(os.getpid()).submit(kernel, *run) for run in elsewhere]
    kernel(*here)
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One a process: threads do not survive a fork."""
    return ThreadPoolExecutor(os.cpu_count(), "readout")
