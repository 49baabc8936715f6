"""Latent spatial memory: tokens of image latents at world points (Eq. 3-10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.geometry.poses import check_cameras
from mirage_env.geometry.projection import backproject
from mirage_env.memory.depth_grid import DepthDownsample, depth_to_grid, straddles_edge
from mirage_env.memory.protocol import AnyMemoryConfig, ChunkRecord, Encode, MemoryReading, State, whole_number
from mirage_env.memory.splat import Cloud, check_kinds, frontmost, splat_many
from mirage_env.types import SKY_M, Cameras, Readout

WriteRule = Literal["paper", "novel"]
DepthEdges = Literal["reject", "first", "keep"]
TokenDtype = Literal["float16", "float32", "uint8"]
_KINDS = (("points", 2, torch.float32), ("footprint_m", 1, torch.float32), ("ids", 1, torch.int64))
_BLOCK = 2048
_COLUMNS = ("points", "tokens", "footprint_m", "ids")


@dataclass(frozen=True)
class Points(State):
    """Some points of a memory, ordered by id."""

    points: Float[Tensor, "N 3"]
    """World coordinates in metres."""
    tokens: Num[Tensor, "N C"]
    """The latent token of the cell that the point stands for."""
    footprint_m: Float[Tensor, " N"]
    """Side of the patch that a point describes: z-depth over latent focal length when it was written."""
    ids: Int64[Tensor, " N"]
    """Strictly increasing; a point keeps its id for life, and none is given twice."""

    def __post_init__(self) -> None:
        for name, dims, dtype in _KINDS:
            rows = getattr(self, name)
            if rows.dim() != dims or rows.dtype != dtype:
                got = f"{rows.dtype} of shape {tuple(rows.shape)}"
                raise InvalidValueError(f"memory {name} must be {dtype} of {dims} dimension(s), got {got}")
        if self.points.shape[1] != 3 or self.tokens.dim() != 2:
            raise InvalidValueError(
                f"a memory needs points (N, 3) and tokens (N, C), got {tuple(self.points.shape)} and "
                f"{tuple(self.tokens.shape)}"
            )
        for name in _COLUMNS:
            rows = getattr(self, name).shape[0]
            if rows != len(self):
                raise InvalidValueError(f"a memory needs one row of {name} a point, got {rows} for {len(self)} points")
        finite = torch.isfinite(self.points).all(1)
        if not bool(finite.all()):
            raise InvalidValueError(f"memory point {int((~finite).nonzero()[0])} is not finite")
        patch = self.footprint_m > 0
        if not bool(patch.all()):
            raise InvalidValueError(f"the footprint of memory point {int((~patch).nonzero()[0])} is not positive")

    def __len__(self) -> int:
        return self.points.shape[0]  # a tensor's own len takes microseconds

    @property
    def channels(self) -> int:
        return self.tokens.shape[1]

    def take(self, rows: slice | Int64[Tensor, " n"]) -> Points:
        """Some of the rows, in every column; a slice shares this one's storage."""
        return Points(*(getattr(self, name)[rows] for name in _COLUMNS))

    def split(self, rows: int) -> tuple[Points, ...]:
        """As many blocks of so many rows as it takes, one at least."""
        return tuple(self.take(slice(start, start + rows)) for start in range(0, max(1, len(self)), rows))


@dataclass(frozen=True)
class MemoryState(State):
    """M = {(p_i, f_i)} (Eq. 3): a value. Rows are ordered by id, so age is order.

    They lie in blocks that no write changes: what a write does not touch, the new state shares with the old one. So a
    write costs what it adds and replaces, and forks hold their common past once. Each of `points`, `tokens`,
    `footprint_m` and `ids` is a copy of all blocks', made when it is asked for.
    """

    blocks: tuple[Points, ...]
    """One at least; which row lies in which is no part of the value."""
    next_id: int
    sky: MemoryState | None = None
    """What is seen in the directions where no surface is: points at `SKY_M` around every camera alike."""

    def __post_init__(self) -> None:
        kinds = {(block.channels, block.tokens.dtype, block.tokens.device) for block in self.blocks}
        if len(kinds) != 1:
            got = "; ".join(sorted(f"{channels} of {dtype} on {device}" for channels, dtype, device in kinds)) or "none"
            raise InvalidValueError(f"a memory needs blocks, with channels of one number and kind, got {got}")
        ids = self.ids
        if not bool((ids[1:] > ids[:-1]).all()) or (len(ids) and int(ids[-1]) >= self.next_id):
            raise InvalidValueError(
                f"memory ids must increase and stay below next_id = {self.next_id}; sort the rows by id"
            )

    @classmethod
    def of(
        cls,
        points: Float[Tensor, "N 3"],
        tokens: Num[Tensor, "N C"],
        footprint_m: Float[Tensor, " N"],
        ids: Int64[Tensor, " N"],
        next_id: int,
        sky: MemoryState | None = None,
    ) -> MemoryState:
        """From whole columns; see `Points`. Raises InvalidValueError where they are no memory."""
        whole = Points(points, tokens, footprint_m, ids)
        return cls(whole.split(_rows_a_block(len(whole))), next_id, sky)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def channels(self) -> int:
        return self.blocks[0].channels

    @property
    def device(self) -> torch.device:
        return self.blocks[0].points.device

    @property
    def points(self) -> Float[Tensor, "N 3"]:
        return self.column("points")

    @property
    def tokens(self) -> Num[Tensor, "N C"]:
        return self.column("tokens")

    @property
    def footprint_m(self) -> Float[Tensor, " N"]:
        return self.column("footprint_m")

    @property
    def ids(self) -> Int64[Tensor, " N"]:
        return self.column("ids")

    def column(self, name: str, *further: Tensor) -> Tensor:
        """Of all points, with further rows behind."""
        parts = [*map(attrgetter(name), self.blocks), *further]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def tensors(self) -> dict[str, Tensor]:
        """Whole columns, `next_id`, and the sky's."""
        leaves = {name: self.column(name) for name in _COLUMNS} | {"next_id": torch.tensor(self.next_id)}
        return leaves | ({} if self.sky is None else {f"sky.{name}": x for name, x in self.sky.tensors().items()})

    @classmethod
    def from_tensors(cls, leaves: Mapping[str, Tensor]) -> MemoryState:
        """The inverse of `tensors`; raises InvalidValueError where names are missing or unknown."""
        sky = {name.removeprefix("sky."): leaf for name, leaf in leaves.items() if name.startswith("sky.")}
        rows = {name: leaf for name, leaf in leaves.items() if name != "next_id" and not name.startswith("sky.")}
        whole, next_id = Points.from_tensors(rows), whole_number(cls, "next_id", leaves)
        blocks = whole.split(_rows_a_block(len(whole)))
        return cls(blocks, next_id, cls.from_tensors(sky) if sky else None)

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(block.nbytes for block in self.blocks) + (self.sky.nbytes if self.sky else 0)


@dataclass(frozen=True)
class MemoryConfig(AnyMemoryConfig):
    """How the memory is written. The paper's: `MemoryConfig(write_rule="paper", depth_edges="keep")`."""

    kind: Literal["latent"] = "latent"
    write_rule: WriteRule = "novel"
    """paper: every admissible cell of every frame is added (Eq. 6). novel: see `LatentMemory.write`."""
    finer: float = 1.5
    """novel: how many times smaller than the remembered patch a new one must be to replace it."""
    occluder: float = 0.1
    """novel: by what share of the remembered depth a cell must be nearer to count as a surface in front of it."""
    same_surface: float = 0.0
    """By what share of depth points may lie behind the frontmost of a cell and still count as one surface with it; of
    them the one wins whose footprint fits the cell best. 0: the frontmost wins, whatever its size (Eq. 5)."""
    depth_downsample: DepthDownsample = "bilinear"
    """How depth comes down to the latent grid; see `depth_to_grid`."""
    depth_edges: DepthEdges = "reject"
    """What becomes of cells that hold more than one surface: their token is a blend and their depth lies in the air.
    reject: they are left out. first: of the first frame, which somebody gave, they are remembered at the median of
    their depth, unless a pixel moves; what is made up from there on has edges in doubtful places. keep: they are cells
    like any other, as in the paper."""
    depth_step: float = 0.1
    """The relative jump of depth inside a cell that makes it an edge."""
    max_points: int | None = None
    """Budget. A write that exceeds it drops the points that describe the largest patches, the oldest first among
    equals, and of a large budget a 32nd more, so that the next writes need not; what this very write added goes last,
    so that a full memory still learns."""
    sky_points: int = 0
    """Budget of the sky, which is remembered by direction and shown wherever no surface is; 0: forgotten, as in the
    paper."""
    token_dtype: TokenDtype = "float32"
    """How tokens are stored. float32 reads back bit for bit; float16 halves the bytes and rounds to three digits;
    uint8 is for colours."""

    def __post_init__(self) -> None:
        choices = {
            "write_rule": WriteRule,
            "depth_downsample": DepthDownsample,
            "depth_edges": DepthEdges,
            "token_dtype": TokenDtype,
        }
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise UnknownNameError(name, getattr(self, name), get_args(known))
        if not self.finer > 1.0:
            raise InvalidValueError(
                f"finer must be above 1, got {self.finer}; at 1 a still camera would rewrite its own points"
            )
        for name in ("occluder", "depth_step"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InvalidValueError(f"{name} is a share of depth between 0 and 1, got {getattr(self, name)}")
        if not 0.0 <= self.same_surface < 1.0:
            raise InvalidValueError(f"same_surface is a share of depth from 0 to below 1, got {self.same_surface}")
        if self.sky_points < 0:
            raise InvalidValueError(f"sky_points must be at least 0, got {self.sky_points}")
        if self.max_points is not None and self.max_points < 1:
            raise InvalidValueError(f"max_points must be at least 1, got {self.max_points}; use null for no budget")


class LatentMemory:
    """Writes and reads a `MemoryState`; holds nothing but its config."""

    config_class: ClassVar = MemoryConfig
    state_class: ClassVar = MemoryState

    def __init__(self, config: MemoryConfig | None = None, encode: Encode | None = None):
        self.config = config or MemoryConfig()
        self._sky: LatentMemory | None = None
        if self.config.sky_points:  # a memory of its own, of cameras that only turn: directions are soon all known
            self._sky = LatentMemory(
                MemoryConfig(max_points=self.config.sky_points, token_dtype=self.config.token_dtype)
            )

    def empty(self, channels: int, device: torch.device | str = "cpu") -> MemoryState:
        """A memory of nothing, for tokens of `channels` channels."""
        return MemoryState.of(
            points=torch.zeros(0, 3, device=device),
            tokens=torch.zeros(0, channels, device=device, dtype=getattr(torch, self.config.token_dtype)),
            footprint_m=torch.zeros(0, device=device),
            ids=torch.zeros(0, device=device, dtype=torch.int64),
            next_id=0,
        )

    def read(self, state: MemoryState, cameras: Cameras) -> MemoryReading:
        """What the memory shows to the cameras (Eq. 5, 9, 10), on the grid `cameras.size`.

        Cameras come at the resolution of the grid to read: `memory.read(state, cameras.resized((h, w)))`.
        A memory that one view alone wrote, read from that view, returns the written tokens.
        """
        return self.read_many([state], [cameras])[0]

    def read_many(self, states: Sequence[MemoryState], cameras: Sequence[Cameras]) -> list[MemoryReading]:
        """`read` of many worlds of one grid size, each at its own cameras, in one call of the kernel."""
        for state, views in zip(states, cameras, strict=True):
            first = state.blocks[0]
            check_kinds(Cloud(first.points, first.tokens, first.ids), views)
            check_cameras(views)
        shown = self._splat(states, cameras)
        if self._sky is None:
            return [MemoryReading(one) for one in shown]
        skies = [state.sky or self._sky.empty(state.channels, state.device) for state in states]
        behind = self._sky._splat(skies, [_turning(views) for views in cameras])
        return [MemoryReading(_before(*layers)) for layers in zip(shown, behind, strict=True)]

    def _splat(self, states: Sequence[MemoryState], cameras: Sequence[Cameras]) -> list[Readout]:
        clouds = [
            Cloud(state.points, tuple(block.tokens for block in state.blocks), state.ids, state.footprint_m)
            for state in states
        ]
        return splat_many(clouds, cameras, self.config.same_surface)

    def write(self, state: MemoryState, record: ChunkRecord) -> MemoryState:
        """The memory after T keyframes.

        Moving things never enter it, and sky only by direction (`sky_points`), cells of nothing else. Any other
        cell is admissible where its depth is finite and positive and, but for `depth_edges`, it holds one surface.

        Rule "paper" adds every admissible cell (Eq. 6). Rule "novel" looks, frame by frame, at what the memory shows
        from there, and adds an admissible cell where it shows
          - nothing;
          - only something farther by the share `occluder`: this is a surface in front of it;
          - a patch `finer` times larger or more, which the cell then replaces.
        So a still camera adds nothing, a slightly nearer and perhaps wrong point wins nothing, and walking closer
        sharpens. Writing frames one after another equals writing them at once, but for when a budget is applied.

        Raises InvalidValueError for sizes or channels that do not fit, and for latents, cameras or static depth that
        are not finite; a depth that is not positive is one that nobody knows.
        """
        self.check(record, state.channels, state.device)
        return self.add(state, record)

    def add(self, state: MemoryState, record: ChunkRecord) -> MemoryState:
        """`write` of a record that was checked already."""
        after = self._write_surfaces(state, record)
        if self._sky is None:
            return after
        sky = state.sky if state.sky is not None else self._sky.empty(state.channels, state.device)
        known = self._sky.write(
            sky,
            replace(
                record,
                depth_m=torch.full_like(record.depth_m, SKY_M),
                sky=~record.sky,
                cameras=_turning(record.cameras),
            ),
        )
        return after if known is sky else replace(after, sky=known)

    def _write_surfaces(self, state: MemoryState, record: ChunkRecord) -> MemoryState:
        latents = record.latents
        frames, channels, height, width = latents.shape
        grid = record.cameras.resized((height, width))
        depth, rejected = self._depth(record, (height, width), first=len(state) == 0)
        lifted = backproject(depth, grid)
        admissible = torch.isfinite(lifted).all(3) & ~rejected

        # One table of what is and what may be; a memory is a choice of its rows.
        focal = (grid.intrinsics_px[:, 0, 0] * grid.intrinsics_px[:, 1, 1]).sqrt()
        count, cells = len(state), frames * height * width
        points = state.column("points", lifted.reshape(-1, 3))
        footprint = state.column("footprint_m", (depth / focal[:, None, None]).flatten())
        chosen = torch.cat([admissible.new_ones(count), admissible.flatten()])
        if self.config.write_rule == "novel":
            chosen[count:] = False
            for t, end in enumerate(range(count, len(points), height * width)):
                self._choose_novel(chosen, end, admissible[t], depth[t], points, footprint, grid[t : t + 1])
        if self.config.max_points is not None:
            self._within_budget(chosen, footprint, count)
        added = chosen[count:].nonzero()[:, 0]
        if len(added) == 0 and bool(chosen[:count].all()):
            return state

        tokens = latents.movedim(1, 3).reshape(cells, channels).index_select(0, added)
        new = Points(
            points=points.index_select(0, count + added),
            tokens=tokens.to(state.blocks[0].tokens.dtype),
            footprint_m=footprint.index_select(0, count + added),
            ids=torch.arange(state.next_id, state.next_id + len(added), device=added.device),
        )
        return MemoryState(_succeeding(state.blocks, chosen[:count], new), state.next_id + len(added), state.sky)

    def _depth(
        self, record: ChunkRecord, grid: tuple[int, int], first: bool
    ) -> tuple[Float[Tensor, "T h w"], Bool[Tensor, "T h w"]]:
        """Depth of every cell, and the cells with an edge that are left out; `first`: nothing is remembered yet."""
        depth_m, valid, config = record.depth_m, record.static, self.config
        depth = depth_to_grid(depth_m, valid, grid, config.depth_downsample)
        if config.depth_edges == "keep":
            return depth, torch.zeros_like(depth, dtype=torch.bool)
        rejected = straddles_edge(depth_m, valid, grid, config.depth_step)
        if config.depth_edges == "first" and first:
            median = depth_to_grid(depth_m, valid, grid, "median")
            still = F.adaptive_max_pool2d(record.dynamic.float(), grid) == 0
            some = median.isfinite() & (still | ~rejected)
            one = int(some.flatten(1).any(1).int().argmax())  # a frame with nothing to remember is not the first
            depth[one] = torch.where(rejected[one], median[one], depth[one])
            rejected[one] &= ~still[one]
        return depth, rejected

    def _choose_novel(
        self,
        chosen: Bool[Tensor, " M"],
        end: int,
        admissible: Bool[Tensor, "h w"],
        depth: Float[Tensor, "h w"],
        points: Float[Tensor, "M 3"],
        footprint: Float[Tensor, " M"],
        camera: Cameras,
    ) -> None:
        """Changes the choice for one more frame, whose cells are the rows from `end` on."""
        rows = torch.arange(end, device=points.device)  # they grow with age, so they serve as ids
        shown = points[:end]
        if not bool(chosen[:end].all()):
            shown = torch.where(chosen[:end, None], shown, torch.nan)
        found = frontmost(shown, rows, camera, footprint[:end], self.config.same_surface)
        index, _, seen_depth = (a[0] for a in found)
        seen = index.clamp_min(0) if end else index + 1  # of an empty table any row will do: none is seen
        frame = slice(end, end + depth.numel())
        cells = footprint[frame].view_as(depth)
        in_front = depth < seen_depth * (1.0 - self.config.occluder)
        refined = (index >= 0) & ~in_front & (footprint[seen] >= self.config.finer * cells) & admissible
        chosen[index[refined]] = False
        chosen[frame] = (admissible & ((index < 0) | in_front | refined)).flatten()

    def _within_budget(self, chosen: Bool[Tensor, " M"], footprint: Float[Tensor, " M"], count: int) -> None:
        """Drops what exceeds the budget: of the `count` old rows first, the coarsest, the oldest among equals.

        The coarsest lie in blocks everywhere, all of which are then made anew; so that this is seldom, it makes room
        for more than one write where there are many blocks.
        """
        budget = self.config.max_points
        assert budget is not None
        for part, ahead in ((slice(0, count), max(0, budget - _BLOCK) // 32), (slice(count, None), 0)):
            excess = int(chosen.sum()) - budget
            if excess <= 0:
                return
            excess += ahead
            coarse = torch.where(chosen[part], footprint[part], -1.0)
            if excess >= int(chosen[part].sum()):
                chosen[part] = False
                continue
            last = coarse.topk(excess).values[-1]
            drop = coarse > last
            equal = (coarse == last).nonzero()[:, 0]
            drop[equal[: excess - int(drop.sum())]] = True
            chosen[part] &= ~drop

    def check(self, record: ChunkRecord, channels: int, device: torch.device) -> None:
        """Raises InvalidValueError for a record that a memory of `channels` channels on `device` cannot hold."""
        (frames, given), cameras = record.latents.shape[:2], record.cameras
        maps = (record.depth_m, record.sky, record.dynamic)
        tensors = (record.latents, *maps, cameras.world_from_camera, cameras.intrinsics_px)
        devices = sorted({str(device), *(str(x.device) for x in tensors)})
        if len(devices) > 1:
            raise InvalidValueError(f"a memory and what is written to it must share a device, got {devices}")
        dtypes = sorted({str(x.dtype).removeprefix("torch.") for x in (record.depth_m, *tensors[4:])})
        if dtypes != ["float32"]:
            raise InvalidValueError(f"depth and cameras must be float32, got {dtypes}; call .float() on them")
        if given != channels:
            raise InvalidValueError(f"this memory holds tokens of {channels} channels, got latents of {given}")
        counts = [len(x) for x in (*maps, cameras)]
        if counts != [frames] * 4:
            raise InvalidValueError(
                f"{frames} latent frames need as many depth maps, sky and dynamic masks and cameras, got {counts}"
            )
        sizes = {tuple(x.shape[1:]) for x in maps} | {tuple(cameras.size)}
        if len(sizes) > 1:
            raise InvalidValueError(
                f"depth, masks and cameras must share one pixel size, got {sorted(sizes)}; cameras are given at pixel "
                "resolution"
            )
        finite = torch.isfinite(record.latents).flatten(1).all(1)
        if not bool(finite.all()):
            raise InvalidValueError(f"latent frame {int((~finite).nonzero()[0])} is not finite")
        check_cameras(cameras)
        unknown = ~torch.isfinite(record.depth_m) & record.static
        if bool(unknown.any()):
            frame, row, column = unknown.nonzero()[0].tolist()
            raise InvalidValueError(
                f"depth map {frame} is not finite at row {row}, column {column}; write 0 where depth is not known, or "
                "mask the pixel as sky or dynamic"
            )


def _succeeding(blocks: Sequence[Points], kept: Bool[Tensor, " N"], new: Points) -> tuple[Points, ...]:
    """The blocks with what is kept of them and the new points; neighbours that fit into one become one."""
    sizes = [len(block) for block in blocks]
    ends = torch.tensor(sizes, device=kept.device).cumsum(0)
    lost = torch.bucketize((~kept).nonzero()[:, 0], ends, right=True).bincount(minlength=len(blocks)).tolist()
    parts = [
        block.take(rows.nonzero()[:, 0]) if fewer else block
        for block, rows, fewer in zip(blocks, kept.split(sizes), lost, strict=True)
    ]
    room = _rows_a_block(len(kept))
    groups: list[list[Points]] = []
    filled = 0
    for part in [part for part in (*parts, new) if len(part)] or [new]:
        if not groups or filled + len(part) > room:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += len(part)
    return tuple(map(_joined, groups))


def _joined(parts: Sequence[Points]) -> Points:
    return parts[0] if len(parts) == 1 else Points(*(torch.cat([getattr(p, n) for p in parts]) for n in _COLUMNS))


def _rows_a_block(points: int) -> int:
    """Few enough that a write copies little, many enough that there are never more than a hundred blocks or so."""
    return max(_BLOCK, points // 32)


def _before(front: Readout, behind: Readout) -> Readout:
    """Where one layer shows nothing, the other does; rows are those of the first."""
    through = behind.visible & ~front.visible
    return Readout(
        tokens=torch.where(through[:, None], behind.tokens, front.tokens),
        visible=front.visible | through,
        depth_m=torch.where(through, behind.depth_m, front.depth_m),
        offset=torch.where(through[:, None], behind.offset, front.offset),
        index=front.index,
    )


def _turning(cameras: Cameras) -> Cameras:
    """The same directions of view from one place."""
    poses = cameras.world_from_camera.clone()
    poses[:, :3, 3] = 0.0
    return replace(cameras, world_from_camera=poses)
