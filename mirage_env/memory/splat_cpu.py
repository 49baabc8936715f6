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
_NO_FOOTPRINTS = torch.empty(0)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    function = unwrap(function)  # while the tests run it is wrapped in checks of its types
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep it in: it is compiled anew in every process
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def _box(block: Any, low: Any, high: Any) -> None:
    """The corners of the box around a block of points; NaN is in no cell and counts for nothing."""
    for axis in range(3):
        least, most = np.float32(np.inf), np.float32(-np.inf)
        for n in range(len(block)):
            least, most = min(least, block[n, axis]), max(most, block[n, axis])
        low[axis], high[axis] = least, most


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
def _longer(array: Any) -> Any:
    longer = np.empty(max(4096, 2 * len(array)), array.dtype)
    longer[: len(array)] = array
    return longer


@_compiled
def _choose_fitting(
    cell_of: Any, row_of: Any, depth_of: Any, ids: Any, footprint_m: Any, focal: Any, reach: Any, cells: int,
    index: Any, depth: Any,
) -> None:  # fmt: skip
    """Of the points that are near enough to the frontmost of their cell, whose depth is `depth`, the best-fitting."""
    one, never = np.float32(1.0), np.float32(np.inf)
    least = np.full(len(index), never, np.float32)
    for n in range(len(cell_of)):
        cell, row = cell_of[n], row_of[n]
        if not depth_of[n] <= depth[cell] * reach:
            continue
        has, wanted = footprint_m[row], depth[cell] / focal[cell // cells]
        misfit = has / wanted if has >= wanted else wanted / has
        if not misfit >= one:  # NaN of what is no footprint must not win
            misfit = never
        if misfit < least[cell] or (misfit == least[cell] and ids[row] < ids[index[cell]]):
            least[cell], index[cell] = misfit, row


@_compiled
def _frontmost(
    points: Any, ids: Any, axes: Any, centres: Any, footprint_m: Any, focal: Any, reach: Any,
    height: int, width: int, first: int, last: int, index: Any, depth: Any, offset: Any,
) -> None:  # fmt: skip
    """The winner of every cell of views first to last - 1.

    `axes` are the rows of K R^T, (V, 3, 3); `index` comes filled with -1, `depth` with infinity, `offset` with zeros.
    A `reach` above 0 is how many times as far as the frontmost point those may lie that compete with it.
    """
    cell_of, row_of, depth_of, kept = np.empty(1, np.int64), np.empty(1, np.int64), np.empty(1, np.float32), 0
    x, y, z = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    inside, hits = np.empty(BLOCK, np.bool_), np.empty(BLOCK + 1, np.int32)
    high, wide, zero, half = np.float32(height), np.float32(width), np.float32(0.0), np.float32(0.5)
    right_of, below, ahead = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    low, high_corner = np.empty(3, np.float32), np.empty(3, np.float32)
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        size = len(block)
        _box(block, low, high_corner)
        for n in range(size):  # coordinates one behind another, as vector instructions want them
            right_of[n], below[n], ahead[n] = block[n, 0], block[n, 1], block[n, 2]
        for view in range(first, last):
            if _beyond(low, high_corner, axes[view], centres[view], wide, high):
                continue
            a, b, c = axes[view, 0, 0], axes[view, 0, 1], axes[view, 0, 2]
            d, e, f = axes[view, 1, 0], axes[view, 1, 1], axes[view, 1, 2]
            g, h, i = axes[view, 2, 0], axes[view, 2, 1], axes[view, 2, 2]
            px, py, pz = centres[view, 0], centres[view, 1], centres[view, 2]
            for n in range(size):  # no branch in here, so that it becomes vector instructions
                u, v, w = right_of[n] - px, below[n] - py, ahead[n] - pz
                deep = g * u + h * v + i * w
                right = (a * u + b * v + c * w) / deep
                down = (d * u + e * v + f * w) / deep
                x[n], y[n], z[n] = right, down, deep
                inside[n] = (deep > zero) & (right >= zero) & (down >= zero) & (right < wide) & (down < high)
            count = 0
            for n in range(size):  # nor in here: which points are inside cannot be predicted
                hits[count] = n
                count += int(inside[n])
            for hit in range(count):
                n = hits[hit]
                column, row = int(x[n]), int(y[n])
                front, before = depth[view, row, column], index[view, row, column]
                if reach > zero and z[n] <= front * reach:
                    if kept == len(cell_of):
                        cell_of, row_of, depth_of = _longer(cell_of), _longer(row_of), _longer(depth_of)
                    cell_of[kept] = (view * height + row) * width + column
                    row_of[kept], depth_of[kept] = start + n, z[n]
                    kept += 1
                if z[n] < front or (z[n] == front and (before < 0 or ids[start + n] < ids[before])):
                    depth[view, row, column] = z[n]
                    index[view, row, column] = start + n
    if reach > zero:
        _choose_fitting(
            cell_of[:kept], row_of[:kept], depth_of[:kept], ids, footprint_m, focal, reach, height * width,
            index.reshape(-1), depth.reshape(-1),
        )  # fmt: skip
    for view in range(first, last):
        for row in range(height):
            for column in range(width):
                winner = index[view, row, column]
                if winner < 0:
                    depth[view, row, column] = zero
                    continue
                u = points[winner, 0] - centres[view, 0]
                v = points[winner, 1] - centres[view, 1]
                w = points[winner, 2] - centres[view, 2]
                depth[view, row, column] = axes[view, 2, 0] * u + axes[view, 2, 1] * v + axes[view, 2, 2] * w
                for axis in range(2):
                    image = axes[view, axis, 0] * u + axes[view, axis, 1] * v + axes[view, axis, 2] * w
                    position = image / depth[view, row, column]
                    offset[view, axis, row, column] = position - np.floor(position) - half


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
    footprint, focal, reach = _NO_FOOTPRINTS, _NO_FOOTPRINTS, np.float32(0.0)
    if scene.footprint_m is not None and scene.focal is not None:
        footprint, focal, reach = scene.footprint_m, scene.focal, np.float32(1.0 + scene.same_surface)
    inputs = [_words(a, a.dtype) for a in (scene.points, scene.ids, scene.axes, scene.centres, footprint, focal)]
    outputs = [a.numpy() for a in (index, depth, offset)]
    _shared(views, len(scene.points), lambda first, last: _frontmost(*inputs, reach, *size, first, last, *outputs))
    return index, offset, depth


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
