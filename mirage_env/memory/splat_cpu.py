"""The readout on a CPU: one pass over the points, compiled by numba, points shared out among threads.

    every block of points x every view -> who is in view -> a minimum of keys in every cell -> rows, offsets, tokens

The same arithmetic as `reference.py`, operation by operation in float32 and without contraction, so that the results
are equal to the bit; and a minimum does not ask which thread met which point. Threads are Python's (the kernels run
without the GIL): numba's own would compile for seconds, and would not know of `torch.set_num_threads`. Compiled once a
machine: beside this file, or where that is read-only in the user's cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from inspect import unwrap
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

from mirage_env.memory.splat_torch import NONE, Scene, by_age

BLOCK = 2048
"""Points that are projected into one view after another while they and their images lie in the fastest cache."""
_ROW = (1 << 32) - 1
"""A key is a positive float's bits above a row, as in `splat_torch.key`; `NONE` is larger than any."""
_SIGN, _MAGNITUDE, _INFINITY = np.int32(31), np.int32(0x7FFFFFFF), np.int32(0x7F800000)
_PAIRS_NOTED = 1 << 24
"""View-point pairs for which room is made at a time (12 bytes each) where footprints compete."""
_PAIRS_A_RUN = 1 << 17
"""View-point pairs that a thread takes at a time (0.1 ms): fewer repay no thread, more would be waited for."""
_T = TypeVar("_T")


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    function = unwrap(function)  # while the tests run it is wrapped in checks of its types
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep it in: it is compiled anew in every process
        return numba.njit(nogil=True, error_model="numpy")(function)


def _inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the compiler must see that the arrays of a loop are not each other."""
    return numba.njit(inline="always", error_model="numpy")(unwrap(function))


@_inlined
def _extent(bits: Any, size: int) -> tuple[Any, Any]:
    """Bits of the least and the most of floats given as bits, but NaN; of integers, that minimum becomes vectors."""
    least, most = _INFINITY, ~_INFINITY
    for n in range(size):
        rank = bits[n] ^ ((bits[n] >> _SIGN) & _MAGNITUDE)  # orders like the float
        number = (bits[n] & _MAGNITUDE) <= _INFINITY
        least, most = min(least, rank if number else _INFINITY), max(most, rank if number else ~_INFINITY)
    return least ^ ((least >> _SIGN) & _MAGNITUDE), most ^ ((most >> _SIGN) & _MAGNITUDE)


@_compiled
def _room() -> Any:
    """For a block of points, laid out: x, y, z and the corners of their box; and for what `_in_view` says of them."""
    x, y, z = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    cell, depth = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    inside, hits = np.empty(BLOCK, np.bool_), np.empty(BLOCK + 1, np.int32)
    return (x, y, z, np.empty(3, np.float32), np.empty(3, np.float32)), (cell, depth, inside, hits)


@_compiled
def _lay_out(block: Any, x: Any, y: Any, z: Any, low: Any, high: Any) -> None:
    """Coordinates one behind another, as vector instructions want them, and the corners of the box around them.

    NaN is in no cell and counts for nothing; where there is nothing else, `low` is above `high`.
    """
    size, least, most = len(block), low.view(np.int32), high.view(np.int32)
    for n in range(size):
        x[n], y[n], z[n] = block[n, 0], block[n, 1], block[n, 2]
    least[0], most[0] = _extent(x.view(np.int32), size)
    least[1], most[1] = _extent(y.view(np.int32), size)
    least[2], most[2] = _extent(z.view(np.int32), size)


@_inlined
def _project(
    x: Any, y: Any, z: Any, size: int, axes: Any, centre: Any, height: int, width: int,
    cell: Any, ahead: Any, inside: Any, hits: Any,
) -> int:  # fmt: skip
    """Fills in cell and z-depth of a block of points, and in `hits` who is in view; returns how many are."""
    zero, high, wide, row_of_cells = np.float32(0.0), np.float32(height), np.float32(width), np.int32(width)
    a, b, c = axes[0, 0], axes[0, 1], axes[0, 2]
    d, e, f = axes[1, 0], axes[1, 1], axes[1, 2]
    g, h, i = axes[2, 0], axes[2, 1], axes[2, 2]
    px, py, pz = centre[0], centre[1], centre[2]
    for n in range(size):  # no branch in here, so that it becomes vector instructions
        u, v, w = x[n] - px, y[n] - py, z[n] - pz
        deep = g * u + h * v + i * w
        right = (a * u + b * v + c * w) / deep
        down = (d * u + e * v + f * w) / deep
        cell[n], ahead[n] = np.int32(down) * row_of_cells + np.int32(right), deep  # of those in view only it means one
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
def _in_view(
    x: Any, y: Any, z: Any, size: int, low: Any, high: Any, axes: Any, centre: Any, height: int, width: int,
    cell: Any, depth: Any, inside: Any, hits: Any,
) -> int:  # fmt: skip
    """How many points of a block a view shows; which they are is then in `hits`, and where in `cell` and `depth`."""
    if _beyond(low, high, axes, centre, np.float32(width), np.float32(height)):
        return 0
    return _project(x, y, z, size, axes, centre, height, width, cell, depth, inside, hits)


@_compiled
def _ascending(ids: Any) -> bool:
    ascending = True
    for n in range(1, len(ids)):
        ascending &= ids[n - 1] < ids[n]
    return ascending


@_compiled
def _frontmost(points: Any, row: int, axes: Any, centres: Any, height: int, width: int, best: Any) -> None:
    """Lowers `best`, the smallest key of every cell, by points that begin with this row: the frontmost point."""
    (x, y, z, low, high), (cell, depth, inside, hits) = _room()
    bits = depth.view(np.int32)
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        _lay_out(block, x, y, z, low, high)
        for view in range(len(axes)):
            camera = axes[view], centres[view], height, width
            count = _in_view(x, y, z, len(block), low, high, *camera, cell, depth, inside, hits)
            first = view * height * width
            for hit in range(count):
                n = hits[hit]
                here = first + cell[n]
                best[here] = min(best[here], np.int64(bits[n]) << 32 | (row + start + n))


@_compiled
def _note_surface(
    points: Any, row: int, axes: Any, centres: Any, height: int, width: int,
    reach: Any, front: Any, cell_of: Any, key_of: Any,
) -> int:  # fmt: skip
    """Lowers `front`, the least z-depth of every cell, by points that begin with this row.

    All that may turn out to lie at most `reach` times as far are noted, their cells and keys; there must be room for
    every pair. Returns how many. No branch, as none could be predicted.
    """
    (x, y, z, low, high), (cell, depth, inside, hits) = _room()
    bits, noted = depth.view(np.int32), 0
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        _lay_out(block, x, y, z, low, high)
        for view in range(len(axes)):
            camera = axes[view], centres[view], height, width
            count = _in_view(x, y, z, len(block), low, high, *camera, cell, depth, inside, hits)
            first = view * height * width
            for hit in range(count):
                n = hits[hit]
                deep, here = depth[n], first + cell[n]
                front[here] = nearest = min(deep, front[here])
                cell_of[noted], key_of[noted] = here, np.int64(bits[n]) << 32 | (row + start + n)
                noted += int(deep <= nearest * reach)
    return noted


@_compiled
def _choose_fitting(cell_of: Any, key_of: Any, footprint_m: Any, limit: Any, wanted: Any, best: Any) -> None:
    """Lowers `best` by those noted points that lie no farther than the limit of their cell: the best-fitting one.

    A key is here one of the misfit, not of the depth.
    """
    one, never, last = np.float32(1.0), np.float32(np.inf), limit.view(np.int32)
    misfit = np.empty(BLOCK, np.float32)
    bits = misfit.view(np.int32)
    for start in range(0, len(cell_of), BLOCK):
        cell, key = cell_of[start : start + BLOCK], key_of[start : start + BLOCK]
        for n in range(len(cell)):
            has, wants = footprint_m[key[n] & _ROW], wanted[cell[n]]
            by = (has if has >= wants else wants) / (wants if has >= wants else has)
            misfit[n] = by if by >= one else never  # NaN of what is no footprint must not win
        for n in range(len(cell)):
            fits = np.int64(bits[n]) << 32 | (key[n] & _ROW) if key[n] >> 32 <= last[cell[n]] else NONE
            best[cell[n]] = min(best[cell[n]], fits)


@_compiled
def _locate(points: Any, axes: Any, centres: Any, best: Any, index: Any, depth: Any, offset: Any) -> None:
    """Row and z-depth of the winners, and where inside its cell each fell; -1 and zero where there is none."""
    views, height, width = index.shape
    half = np.float32(0.5)
    for view in range(views):
        axis, centre = axes[view], centres[view]
        for row in range(height):
            for column in range(width):
                key = best[view, row, column]
                winner = key & _ROW if key != NONE else -1
                index[view, row, column] = winner
                depth[view, row, column] = offset[view, 0, row, column] = offset[view, 1, row, column] = 0.0
                if winner < 0:
                    continue
                u, v, w = points[winner, 0] - centre[0], points[winner, 1] - centre[1], points[winner, 2] - centre[2]
                deep = axis[2, 0] * u + axis[2, 1] * v + axis[2, 2] * w
                depth[view, row, column] = deep
                for n in range(2):
                    position = (axis[n, 0] * u + axis[n, 1] * v + axis[n, 2] * w) / deep
                    offset[view, n, row, column] = position - np.floor(position) - half


@_compiled
def _mark_landed(points: Any, group: Any, axes: Any, centres: Any, height: int, width: int, landed: Any) -> None:
    """landed[g, view, cell] becomes true where any point of group g falls into that cell."""
    (x, y, z, low, high), (cell, depth, inside, hits) = _room()
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        _lay_out(block, x, y, z, low, high)
        for view in range(len(axes)):
            camera = axes[view], centres[view], height, width
            count = _in_view(x, y, z, len(block), low, high, *camera, cell, depth, inside, hits)
            for hit in range(count):
                n = hits[hit]
                landed[group[start + n], view, cell[n]] = True


@_inlined
def _turn(tokens: Any, index: Any, shown: Any, view: int, start: int, size: int) -> None:
    for channel in range(tokens.shape[1]):
        for cell in range(start, start + size):
            row = index[view, cell]
            shown[view, channel, cell] = tokens[row, channel] if row >= 0 else 0


@_compiled
def _gather(tokens: Any, index: Any, shown: Any) -> None:
    """shown[view, :, cell] = tokens[index[view, cell]], or zero; sixteen cells, one cache line, a time."""
    views, cells = index.shape
    for view in range(views):
        for start in range(0, cells - 15, 16):
            _turn(tokens, index, shown, view, start, 16)  # a constant, so that a vector fetches sixteen rows at once
        _turn(tokens, index, shown, view, cells - cells % 16, cells % 16)


def frontmost(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """`splat.frontmost` on a CPU."""
    scene, order = (scene, None) if _ascending(_words(scene.ids, torch.int64)) else by_age(scene)
    views, (height, width) = len(scene.axes), scene.size
    index, depth = torch.empty(views, height, width, dtype=torch.int64), torch.empty(views, height, width)
    offset = torch.empty(views, 2, height, width)
    points, axes, centres = (_words(a, torch.float32) for a in (scene.points, scene.axes, scene.centres))
    if scene.footprint_m is None or scene.focal is None:
        best = _nearest(points, axes, centres, scene.size)
    else:
        footprint, focal = _words(scene.footprint_m, torch.float32), _words(scene.focal, torch.float32)
        best, some = np.empty((views, height, width), np.int64), max(1, _PAIRS_NOTED // max(1, len(points)))
        for first in range(0, views, some):
            run = slice(first, first + some)
            rule = footprint, focal[run], np.float32(1.0 + scene.same_surface)
            best[run] = _best_fitting(points, axes[run], centres[run], scene.size, *rule)
    _locate(points, axes, centres, best, index.numpy(), depth.numpy(), offset.numpy())
    if order is not None:
        index = torch.where(index >= 0, order[index.clamp_min(0)], -1)
    return index, offset, depth


def _nearest(points: Any, axes: Any, centres: Any, size: tuple[int, int]) -> Any:
    """(V, h, w): the key of the frontmost point of every cell."""

    def nearest(runs: Iterator[slice]) -> Any:
        best = np.full((len(axes), *size), NONE)
        for run in runs:
            _frontmost(points[run], run.start, axes, centres, *size, best.ravel())
        return best

    return reduce(np.minimum, _shared(len(points), len(axes), nearest, BLOCK))


def _best_fitting(
    points: Any, axes: Any, centres: Any, size: tuple[int, int], footprint_m: Any, focal: Any, reach: Any
) -> Any:
    """(V, h, w): the key of the best-fitting point of the frontmost surface of every cell."""
    shape = len(axes), *size

    def note(runs: Iterator[slice]) -> tuple[Any, list[Any]]:
        front, noted = np.full(shape, np.inf, np.float32), []
        room = max(_PAIRS_A_RUN, BLOCK * len(axes))
        cell, key = np.empty(room, np.int32), np.empty(room, np.int64)
        for run in runs:
            count = _note_surface(points[run], run.start, axes, centres, *size, reach, front.ravel(), cell, key)
            noted.append((cell[:count].copy(), key[:count].copy()))
        return front, noted

    fronts, lists = zip(*_shared(len(points), len(axes), note, BLOCK), strict=True)
    front, noted = reduce(np.minimum, fronts), [pairs for noted in lists for pairs in noted]
    with np.errstate(over="ignore"):
        limit, wanted = (front * reach).ravel(), (front / focal[:, None, None]).ravel()

    def choose(runs: Iterator[slice]) -> Any:
        best = np.full(shape, NONE)
        for run in runs:
            for cell, key in noted[run]:
                _choose_fitting(cell, key, footprint_m, limit, wanted, best.ravel())
        return best

    return reduce(np.minimum, _shared(len(noted), _PAIRS_A_RUN, choose))


def landed(scene: Scene, groups: int) -> Tensor:
    """`splat.landed` on a CPU."""
    hit = torch.zeros(groups, len(scene.axes), *scene.size, dtype=torch.bool)
    points, group, axes, centres = (_words(a, a.dtype) for a in (scene.points, scene.ids, scene.axes, scene.centres))
    views = axes, centres, *scene.size, hit.flatten(2).numpy()

    def mark(runs: Iterator[slice]) -> None:
        for run in runs:
            _mark_landed(points[run], group[run], *views)

    _shared(len(points), len(axes), mark, BLOCK)
    return hit


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The winners' tokens, (V, C, h, w), in their own dtype; bits are moved, so that any will do."""
    (views, *size), channels = index.shape, tokens.shape[1]
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.element_size()]
    shown = torch.empty(views, channels, *size, dtype=tokens.dtype)
    source, target = _words(tokens, word), shown.view(word).flatten(2).numpy()
    cells = index.flatten(1).numpy()
    _shared(views, cells.shape[1] * channels, lambda runs: [_gather(source, cells[run], target[run]) for run in runs])
    return shown


def _words(tensor: Tensor, dtype: torch.dtype) -> Any:
    """As numpy sees it, in rows one behind another, for which alone the kernels are compiled."""
    return tensor.detach().contiguous().view(dtype).numpy()


def _shared(count: int, pairs_each: int, task: Callable[[Iterator[slice]], _T], grain: int = 1) -> list[_T]:
    """Calls the task in as many threads as torch may use and returns what each returned.

    They draw on one supply of runs, which make up 0 to `count` in multiples of `grain`: who wakes late or shares a core
    leaves more to the others, and nobody waits for one that has not woken.
    """
    step = max(1, _PAIRS_A_RUN // max(1, pairs_each * grain)) * grain
    runs = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    left = iter(runs)
    others = [_pool(os.getpid()).submit(task, left) for _ in range(min(torch.get_num_threads(), len(runs)) - 1)]
    results = [task(left)]
    return results + [other.result() for other in others if not other.cancel()]


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One a process: threads do not survive a fork."""
    return ThreadPoolExecutor(os.cpu_count(), "readout")
