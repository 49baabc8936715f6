"""Reading points into views: the frontmost point of every cell (Eq. 5, 9, 10).

This is the hot path. Its results are defined to the bit, whatever computes them and in whatever company: products and
sums are written out in one order, which BLAS does not promise for a point in another batch, and the winner is a minimum
over (depth, id), or (misfit, id) with `Fit`, which no order of the points can change. `reference.py` states the same as
plain loops.

    splat_cpu.py      one compiled pass over the points; loaded by the first read that is large enough to repay it
    splat_triton.py   CUDA
    splat_torch.py    small reads before that, and every other device
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64, Num
from torch import Tensor

from mirage_env.errors import InvalidValueError
from mirage_env.memory import splat_torch
from mirage_env.memory.splat_torch import Scene
from mirage_env.types import Cameras, Readout

_PAIRS_REPAY = 1 << 23
"""View-point pairs whose reading in torch has cost what loading numba does (0.5 s a process), so that a short walk
never waits for it and a long one loses no more than the load."""


class Cloud(NamedTuple):
    """Points with what they carry."""

    points: Float[Tensor, "N 3"]
    tokens: Num[Tensor, "N C"] | tuple[Num[Tensor, "_ C"], ...]
    """In one or in several blocks, one behind another."""
    ids: Int64[Tensor, " N"]
    footprint_m: Float[Tensor, " N"] | None = None
    """Side of the patch that a point describes; only asked for where `same_surface` is above 0."""


def splat(
    points: Float[Tensor, "N 3"],
    tokens: Num[Tensor, "N C"],
    ids: Int64[Tensor, " N"],
    cameras: Cameras,
    footprint_m: Float[Tensor, " N"] | None = None,
    same_surface: float = 0.0,
) -> Readout:
    """What the points show to the cameras, on the grid `cameras.size` (Eq. 5).

    In every cell the point with the smallest positive z-depth wins, and among equals the one with the smallest id.
    Where `same_surface` is above 0, points at most that share of depth behind the frontmost one count as one surface
    with it; of them the one wins whose `footprint_m` is nearest, as a ratio, to the side of the cell at that depth.
    Cells that no point falls into are zero. Points and cameras are float32; tokens of any kind come back as float32.
    Raises InvalidValueError where devices or dtypes are mixed, or footprints are needed and missing.
    """
    return splat_many([Cloud(points, tokens, ids, footprint_m)], [cameras], same_surface)[0]


def splat_many(clouds: Sequence[Cloud], cameras: Sequence[Cameras], same_surface: float = 0.0) -> list[Readout]:
    """`splat` of several clouds, each into its own cameras, of any numbers of points and views, on one grid size."""
    if len(clouds) != len(cameras):
        raise InvalidValueError(f"{len(clouds)} clouds need as many lists of cameras, got {len(cameras)}")
    pairs = list(zip(clouds, cameras, strict=True))
    for cloud, views in pairs:
        check_kinds(cloud, views)
        if same_surface and cloud.footprint_m is None:
            raise InvalidValueError("points of one surface are told apart by their footprints; pass footprint_m")
    if len({(views.size, cloud.points.device) for cloud, views in pairs}) > 1:
        raise InvalidValueError("clouds that are read together need cameras of one size, and one device")
    scenes = [_scene(cloud.points, cloud.ids, views, cloud.footprint_m, same_surface) for cloud, views in pairs]
    winners = _frontmost_many(scenes)
    return [_readout(cloud, *won) for cloud, won in zip(clouds, winners, strict=True)]


def frontmost(
    points: Float[Tensor, "N 3"],
    ids: Int64[Tensor, " N"],
    cameras: Cameras,
    footprint_m: Float[Tensor, " N"] | None = None,
    same_surface: float = 0.0,
) -> tuple[Int[Tensor, "V h w"], Float[Tensor, "V 2 h w"], Float[Tensor, "V h w"]]:
    """Row of the winner (-1 for none), its (x, y) offset from the cell's centre in cells, and its z-depth in metres."""
    return _frontmost_many([_scene(points, ids, cameras, footprint_m, same_surface)])[0]


def landed(
    points: Float[Tensor, "N 3"], group: Int64[Tensor, " N"], groups: int, cameras: Cameras
) -> Bool[Tensor, "G V h w"]:
    """Which cells any point of every group falls into; `group` says which each point is of, below `groups`."""
    scene = _scene(points, group, cameras, None, 0.0)
    return (_kernel(scene) or splat_torch).landed(scene, groups)


def _frontmost_many(scenes: Sequence[Scene]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`frontmost` of many scenes, by the kernel of their device."""
    if scenes and scenes[0].points.device.type == "cuda" and (triton := _load_triton()):
        return triton.frontmost_many(scenes)
    return [(_kernel(scene) or splat_torch).frontmost(scene) for scene in scenes]


def _kernel(scene: Scene) -> ModuleType | None:
    """The compiled one, on a CPU and where it pays."""
    return _numba(len(scene.points) * len(scene.axes)) if scene.points.device.type == "cpu" else None


def _scene(points: Tensor, ids: Tensor, cameras: Cameras, footprint_m: Tensor | None, same_surface: float) -> Scene:
    axes, centres = view_axes(cameras)
    if not same_surface or footprint_m is None:
        return Scene(points, ids, axes, centres, cameras.size)
    k = cameras.intrinsics_px
    return Scene(points, ids, axes, centres, cameras.size, footprint_m, (k[:, 0, 0] * k[:, 1, 1]).sqrt(), same_surface)


def view_axes(cameras: Cameras) -> tuple[Float[Tensor, "V 3 3"], Float[Tensor, "V 3"]]:
    """The rows of K R^T and the camera's centre, so that (x z, y z, z) = K R^T (p - centre)."""
    rotation, k = cameras.world_from_camera[:, :3, :3].transpose(1, 2), cameras.intrinsics_px
    axes = k[:, :, :1] * rotation[:, :1] + k[:, :, 1:2] * rotation[:, 1:2] + k[:, :, 2:] * rotation[:, 2:]
    return axes, cameras.world_from_camera[:, :3, 3]


def _readout(cloud: Cloud, index: Tensor, offset: Tensor, depth: Tensor) -> Readout:
    """With the winners' tokens."""
    tokens, row = _in_use(cloud.tokens, index)
    kernel = _numba() if tokens.device.type == "cpu" and not tokens.requires_grad else None
    shown = (kernel or splat_torch).gather(tokens, row)
    return Readout(shown.float(), index >= 0, depth, offset, index)


def _in_use(tokens: Tensor | tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Tensor]:
    """In one block what `index` asks for, or more, and its rows there: a large memory is not copied to be read."""
    if isinstance(tokens, Tensor) or len(tokens) == 1:
        return tokens if isinstance(tokens, Tensor) else tokens[0], index
    starts = list(accumulate(map(len, tokens), initial=0))
    if starts[-1] <= index.numel():
        return torch.cat(tokens), index
    asked, row = index.unique(return_inverse=True)
    nothing = int((asked < 0).sum())  # -1 comes first, if at all
    asked, row = asked[nothing:], row - nothing
    bounds = torch.searchsorted(asked, torch.tensor(starts, device=asked.device)).tolist()
    runs = zip(tokens, starts[:-1], pairwise(bounds), strict=True)
    rows = [block.index_select(0, asked[a:b] - start) for block, start, (a, b) in runs if a < b]
    return torch.cat(rows) if rows else tokens[0][:0], row


def check_kinds(cloud: Cloud, cameras: Cameras) -> None:
    """Raises InvalidValueError where devices or dtypes are mixed."""
    poses, k = cameras.world_from_camera, cameras.intrinsics_px
    tokens = cloud.tokens if isinstance(cloud.tokens, tuple) else (cloud.tokens,)
    devices = {str(x.device) for x in (cloud.points, *tokens, cloud.ids, cloud.footprint_m, poses, k) if x is not None}
    if len(devices) > 1:
        raise InvalidValueError(f"points, tokens, ids and cameras must share a device, got {sorted(devices)}")
    dtypes = {str(x.dtype).removeprefix("torch.") for x in (cloud.points, poses, k)}
    if dtypes != {"float32"}:
        raise InvalidValueError(f"points and cameras must be float32, got {sorted(dtypes)}; call .float() on them")


_pairs_read = 0


def _numba(pairs: int = 0) -> ModuleType | None:
    """The compiled kernels, once they are loaded, or once so many pairs of views and points were read that they pay."""
    global _pairs_read
    _pairs_read += pairs
    return _load_numba() if _pairs_read >= _PAIRS_REPAY or "mirage_env.memory.splat_cpu" in sys.modules else None


@cache
def _load_numba() -> ModuleType | None:
    try:
        from mirage_env.memory import splat_cpu
    except ImportError:  # where numba does not support this numpy yet; the numbers stay the same
        return None
    return splat_cpu


@cache
def _load_triton() -> ModuleType | None:
    try:
        from mirage_env.memory import splat_triton
    except ImportError:  # it comes with torch for CUDA on Linux
        return None
    return splat_triton
