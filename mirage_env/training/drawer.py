"""The drawer of unseen depth learns to be right as often as it says, from places that the simulator knows to the end.

Two draws a picture, one truth, and the energy score (Gneiting and Raftery 2007, eq. 21): mean distance of the draws
from the truth less half of their distance from one another. It is least in expectation where draws are distributed as
the truth is; nothing has to be told from anything, as with a critic, and nothing collapses.

First beside memories of true places, then also beside its own draws: what a world asks of it is mostly what goes on
from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mirage_env.contact_sheet import colour_depth
from mirage_env.errors import InvalidValueError
from mirage_env.geometry.projection import backproject
from mirage_env.memory import ChunkRecord
from mirage_env.memory.depth_grid import depth_to_grid
from mirage_env.perception.drawn import FAR_M, FEATURES, DepthDrawer, DrawerConfig, draw_features, noise, to_draw
from mirage_env.precision import fast_autocast
from mirage_env.training.clips import DYNAMIC, SKY, ClipStore
from mirage_env.training.latents import Report, glimpse_name, glimpse_stride, walk_along
from mirage_env.training.log import rows_of_pictures
from mirage_env.training.loop import Stage
from mirage_env.types import Readout
from mirage_env.values import moved
from mirage_env.weights import save_weights
from mirage_env.world_model import WorldModel

PERCEIVED, DOUBT, MEMORY, SHOWN, UNSEEN, RAY_X = (
    FEATURES.index(name) for name in ("perceived", "doubt", "memory", "shown", "unseen", "ray_x")
)
COLUMNS = len(FEATURES) + 3
"""Of an example: the features, where it lies (x, z), and ln of the true depth, NaN where it does not count."""

MOSTLY = 0.8
"""What is remembered around a cell is true if so much of it is."""


def examples_name(perception_hash: str, denoiser_hash: str) -> str:
    return f"unseen-{perception_hash[:12]}-{denoiser_hash[:12]}"


def asked_name(strides: tuple[int, ...], *hashes: str) -> str:
    """Of what the world of these weights is asked, the drawer's first."""
    return "asked-" + sha256(repr((strides, hashes)).encode()).hexdigest()[:24]


@torch.inference_mode()
def find_unseen(
    store: ClipStore,
    model: WorldModel,
    perception_hash: str,
    denoiser_hash: str,
    strides: tuple[int, ...],
    chunks: tuple[int, ...],
    report: Report,
) -> None:
    """Adds what the drawer is told on the walks of `glimpse_clips`, and the truth, once for the weights that made them.

    An array (rows, T, `COLUMNS`, h, w), NaN at frames that were left out. The pictures are those of the walks; the
    memory is written anew from true depth, so that what is asked for goes on where the memory ends.
    """
    name, glimpses = examples_name(perception_hash, denoiser_hash), store.array(glimpse_name(denoiser_hash))

    def fill(out: np.ndarray) -> None:
        out[:] = np.nan
        for row in range(len(glimpses)):
            moments = np.arange(0, store.config.frames, glimpse_stride(row, strides))
            chunk = chunks[row // len(strides) % len(chunks)]
            clip = len(store) - len(glimpses) + row
            out[row, moments[1:]] = _examples(store, model, clip, moments, chunk, glimpses[row]).numpy()
            report(row + 1, len(glimpses))

    if not store.has(name):
        store.add({name: (COLUMNS, *model.latent_size)}, fill, rows=len(glimpses))


def _examples(
    store: ClipStore, model: WorldModel, clip: int, moments: np.ndarray, chunk: int, pictures: np.ndarray
) -> Float[Tensor, "t k h w"]:
    cameras = store.cameras(np.full(len(moments), clip), moments)
    grid, size = cameras.resized(model.latent_size), model.latent_size
    depth = torch.from_numpy(store.array("depth")[clip][moments].astype(np.float32))
    masks = torch.from_numpy(store.array("masks")[clip][moments])
    sky, dynamic = (masks & SKY) > 0, (masks & DYNAMIC) > 0
    rgb = torch.zeros(len(moments), *store.config.size, 3, dtype=torch.uint8)
    tokens, moves = torch.zeros(len(moments), model.channels, *size), torch.zeros(len(moments), 6)

    def written(state, index):
        at = torch.tensor(index)
        return model.memory.write(
            state, ChunkRecord(tokens[at], depth[at], sky[at], dynamic[at], cameras[at], rgb[at], moves[at])
        )

    memory, shown = written(model.memory.empty(model.channels, torch.device("cpu")), [0]), []
    for start in range(1, len(moments), chunk):
        end = min(start + chunk, len(moments))
        reading = model.memory.read(memory, grid[torch.arange(start, end)])
        shown.append(reading.grid or Readout.blank(grid[torch.arange(start, end)], model.channels))
        for key in range(end - 1, start - 1, -model.preset.keyframe_stride)[::-1]:
            memory = written(memory, [key])
    visible, shown_m = (torch.cat([getattr(one, part) for one in shown]) for part in ("visible", "depth_m"))
    images = torch.from_numpy(pictures[moments[1:]].astype(np.float32)).to(model.device) / 127.5 - 1
    later = cameras[torch.arange(1, len(moments))]
    with model.precision():
        seen = model.perception(images, later.to(model.device), shown_m.to(model.device), 0.0)
    seen = moved(seen, torch.device("cpu"))
    features, places = draw_features(seen, to_draw(visible), shown_m, later, 0.0)
    return torch.cat([features, places, _truth(depth[1:], sky[1:], dynamic[1:], size)], 1)


def _truth(depth: Tensor, sky: Tensor, dynamic: Tensor, size: tuple[int, int]) -> Float[Tensor, "t 1 h w"]:
    """ln of the true depth of every cell, NaN where it does not count."""
    cells = F.adaptive_avg_pool2d(sky[:, None].float(), size)[:, 0]
    truth = depth_to_grid(depth, ~(sky | dynamic), size).clamp(0.05, FAR_M).log()
    return torch.where(cells > 0.5, math.log(FAR_M), torch.where(cells > 0.01, torch.nan, truth))[:, None]


def where_it_holds(examples: Float[Tensor, "B k h w"], near: float) -> Float[Tensor, "B k h w"]:
    """`examples` with no truth, NaN, wherever what the memory shows around is not within `near` (ln) of it.

    What was drawn before is one of many places that the clip's picture allows, and the truth beside it another: who
    learns from all of it learns that what is remembered means nothing, and then no wall and no window goes on.
    """
    memory, truth, (height, width) = examples[:, MEMORY], examples[:, -1], examples.shape[2:]
    told = (examples[:, SHOWN] > 0) & truth.isfinite()
    window = (height // 4 * 2 + 1, width // 2 * 2 + 1)
    beside = told.float(), (told & ((memory - truth).abs() < near)).float()
    shown, right = (F.avg_pool2d(x[:, None], window, 1, (window[0] // 2, window[1] // 2))[:, 0] for x in beside)
    holds = (right >= MOSTLY * shown) & (shown > 0)
    return torch.cat([examples[:, :-1], torch.where(holds, truth, torch.nan)[:, None]], 1)


@torch.inference_mode()
def find_asked(
    store: ClipStore,
    model: WorldModel,
    name: str,
    count: int,
    strides: tuple[int, ...],
    report: Report,
) -> None:
    """Adds what the drawer of `model` is asked on walks of its own along the last `count` clips, and the truth there,
    once for its weights; `name` is their `asked_name`.

    An array like that of `find_unseen`, but the memory is the walk's own, of what was drawn before: beside it a drawer
    that learned among true places alone takes its own draws for the truth, and every look about leads it further off.
    One frame at a time, as agents walk; NaN also at frames in which nothing is asked.
    """
    count = min(count, len(store))
    asked: list[Tensor] = []
    draw = model.parts["draw"]

    def noted(inputs: Tensor) -> Tensor:
        asked.append(inputs[:, : len(FEATURES)].float().cpu())
        return draw(inputs)

    model = model.with_parts(draw=noted)

    def fill(out: np.ndarray) -> None:
        out[:] = np.nan
        for row in range(count):
            clip, moments = len(store) - count + row, np.arange(0, store.config.frames, glimpse_stride(row, strides))
            depth = torch.from_numpy(store.array("depth")[clip][moments].astype(np.float32))
            masks = torch.from_numpy(store.array("masks")[clip][moments])
            truth = _truth(depth, (masks & SKY) > 0, (masks & DYNAMIC) > 0, model.latent_size)
            grid = store.cameras(np.full(len(moments), clip), moments).resized(model.latent_size)
            for step, _ in enumerate(walk_along(model, store, clip, moments, 1)):
                if step and asked:
                    features = asked[-1]
                    places = backproject(features[:, PERCEIVED].exp(), grid[step : step + 1])[..., ::2].movedim(3, 1)
                    example = torch.cat([features, places, truth[step : step + 1]], 1)
                    out[row, moments[step]] = example[0].numpy()
                asked.clear()
            report(row + 1, count)

    if not store.has(name) or len(store.array(name)) != count:
        store.add({name: (COLUMNS, *model.latent_size)}, fill, rows=count)


@dataclass(frozen=True)
class DrawerLossConfig:
    batch: int = 32
    scale_noise: float = 0.05
    """Spread of the log scale by which the memory is wrong."""
    cell_noise: float = 0.05
    """Spread of each remembered cell beside it: a memory of draws is rougher than one of true places."""
    least: int = 4
    """Cells to draw that a picture must have, else it teaches nothing."""
    holds: float = 0.3
    """How near (ln) a depth that was drawn before must be to the truth to count as true, see `where_it_holds`."""

    def __post_init__(self) -> None:
        if min(self.batch, self.least) < 1 or not self.holds > 0:
            raise InvalidValueError(
                f"batch and least must be at least 1, holds positive, got {self.batch}, {self.least} and {self.holds}"
            )


Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs of two draws (2, B, k, h, w), what the eyes think (B, h, w), the truth, and 1 where it counts."""


class DrawerStage(Stage):
    """Trains on the stores' examples for the weights of these hashes; the last `held_out` rows of each validate."""

    name: str = "drawer"

    def __init__(
        self,
        config: DrawerConfig,
        loss: DrawerLossConfig,
        stores: list[ClipStore],
        perception_hash: str,
        denoiser_hash: str,
        held_out: int = 32,
        device: str = "cpu",
        start: tuple[DepthDrawer, str] | None = None,
    ):
        """Goes on from `start`, where it is given: a drawer, and the name of the questions that it was asked beside its
        own draws, see `find_asked`. Half of what it learns on are then those."""
        self.model, self.config, self.loss, self.device = DepthDrawer(config).to(device), config, loss, device
        self._examples: list[Tensor] = []
        self._unseen: list[Tensor] = []
        names = [examples_name(perception_hash, denoiser_hash)]
        shares: list[float] = []
        if start is not None:
            self.name = "dreams"
            self.model.load_state_dict(start[0].state_dict())
            names.append(start[1])
        for name in names:
            sizes = []
            for store in stores:
                rows = torch.from_numpy(store.array(name).astype(np.float32))
                if len(rows) <= held_out:
                    raise InvalidValueError(f"walk along more clips than the {held_out} held out, got {len(rows)}")
                parts = [part.flatten(0, 1) for part in (rows[:-held_out], rows[-held_out:])]
                if name != names[0]:
                    parts = [where_it_holds(part, loss.holds) for part in parts]
                counts = [(x[:, UNSEEN].eq(1) & x[:, -1].isfinite()).flatten(1).sum(1) for x in parts]
                learned, unseen = (part[count >= loss.least] for part, count in zip(parts, counts, strict=True))
                if min(len(learned), len(unseen)):
                    self._examples.append(learned)
                    self._unseen.append(unseen)
                    sizes.append(len(learned))
                elif name == names[0]:
                    raise InvalidValueError("no walk shows anything that its memory does not know; take other strides")
            if not sizes:  # of short walks of its own some ask nothing
                raise InvalidValueError(
                    "no walk of its own asks the drawer anything that can be told; take longer clips"
                )
            shares += [size / sum(sizes) for size in sizes]
        self._shares = np.array(shares) / sum(shares)

    def batch(self, generator: torch.Generator) -> Batch:
        rng = np.random.default_rng(generator.initial_seed())
        examples = self._examples[int(rng.choice(len(self._shares), p=self._shares))]
        chosen = examples[torch.from_numpy(rng.integers(0, len(examples), self.loss.batch))].clone()
        wrong = self.loss.scale_noise * torch.from_numpy(rng.standard_normal((len(chosen), 1, 1)))
        wrong = wrong + self.loss.cell_noise * torch.from_numpy(rng.standard_normal(chosen[:, 0].shape))
        chosen[:, MEMORY] += wrong.float() * chosen[:, SHOWN]
        if rng.random() < 0.5:  # mirrored scenes are scenes, too
            chosen = chosen.flip(-1)
            chosen[:, RAY_X] *= -1
        return self._prepared(chosen, rng.integers(0, 2**31, (2, len(chosen))))

    def _prepared(self, examples: Float[Tensor, "B k h w"], seeds: np.ndarray) -> Batch:
        features, places, truth = examples.split((len(FEATURES), 2, 1), 1)
        inputs = torch.stack([torch.cat([features, noise(places, row.tolist())], 1) for row in seeds])
        counts = features[:, UNSEEN] * truth[:, 0].isfinite()
        prepared = inputs, features[:, PERCEIVED], truth[:, 0].nan_to_num(0.0), counts
        return tuple(x.to(self.device) for x in prepared)  # type: ignore[return-value]

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        one, other = self._draws(batch)
        _, _, truth, counts = batch
        return {"loss": energy_score(one, other, truth, counts)}

    def _draws(self, batch: Batch) -> Float[Tensor, "2 B h w"]:
        inputs, perceived, _, _ = batch
        return perceived + self.model(inputs.flatten(0, 1)).unflatten(0, (2, -1))

    def validate(self) -> dict[str, float]:
        """The score on rows that training never draws, that of the eyes' own answer, spread and roughness of draws
        over the truth's (each 1 at best), and how far draws lie from it in the median."""
        rows: dict[str, list[Tensor]] = {}
        for examples in self._unseen:
            batch = self._prepared(examples, np.arange(2 * len(examples)).reshape(2, -1))
            with torch.no_grad(), fast_autocast(self.device):
                draws = self._draws(batch)
            _, perceived, truth, counts = batch
            there, beside = counts > 0, counts[..., 1:] * counts[..., :-1]
            step = [(x.diff(dim=-1).abs() * beside).sum() / beside.sum().clamp_min(1) for x in (draws[0], truth)]
            values = {
                "energy_score": energy_score(draws[0], draws[1], truth, counts),
                "energy_score_eyes": energy_score(perceived, perceived, truth, counts),
                "spread": draws[0][there].std() / truth[there].std(),
                "roughness": step[0] / step[1].clamp_min(1e-6),
                "bias": (draws[0] - truth)[there].median(),
            }
            for key, value in values.items():
                rows.setdefault(key, []).append(value)
        return {key: float(torch.stack(values).mean()) for key, values in rows.items()}

    def strip(self) -> UInt8[np.ndarray, "H W 3"]:
        """The truth above what the eyes think above two draws, over one range; black where the memory shows it."""
        examples = self._unseen[0][:: max(1, len(self._unseen[0]) // 8)][:8]
        batch = self._prepared(examples, np.arange(2 * len(examples)).reshape(2, -1))
        with torch.no_grad():
            draws = self._draws(batch)
        _, perceived, truth, counts = batch

        def row(log_depth: Tensor) -> np.ndarray:
            depth, valid = log_depth.exp().float().cpu().numpy(), (counts > 0).cpu().numpy()
            return colour_depth(depth, valid, (0.3, 10.0)).repeat(8, -3).repeat(8, -2)

        return rows_of_pictures(*map(row, (truth, perceived, *draws)))

    def export(self, folder: Path, card: dict) -> None:
        save_weights(folder / f"{self.name}.safetensors", self.model, {"kind": "drawer", "config": self.config, **card})


def energy_score(
    one: Float[Tensor, "B h w"], other: Float[Tensor, "B h w"], truth: Float[Tensor, "B h w"], counts: Tensor
) -> Float[Tensor, ""]:
    """Half of each draw's distance from the truth less half of that between the two; less is better."""
    return (distance(one - truth, counts) + distance(other - truth, counts) - distance(one - other, counts)).mean() / 2


def distance(difference: Float[Tensor, "B h w"], counts: Float[Tensor, "B h w"]) -> Float[Tensor, " B"]:
    """Root mean squares over cells that count, in windows of a cell, 3 x 3 cells, a column, a row and the picture, so
    that cells must be right together, and the mean absolute difference of the steps between neighbours."""
    height, width = difference.shape[1:]
    weight = counts[:, None]
    square, total = difference.square()[:, None] * weight, difference.new_zeros(len(difference))
    for window in ((1, 1), (3, 3), (height, 1), (1, width), (height, width)):
        share = F.avg_pool2d(weight, window, 1)
        root = (F.avg_pool2d(square, window, 1) / share.clamp_min(1e-6) + 1e-8).sqrt() * (share > 0)
        total = total + root.sum((1, 2, 3)) / (share > 0).sum((1, 2, 3)).clamp_min(1)
    for axis in (1, 2):
        both = counts.narrow(axis, 1, counts.shape[axis] - 1) * counts.narrow(axis, 0, counts.shape[axis] - 1)
        total = total + (difference.diff(dim=axis).abs() * both).sum((1, 2)) / both.sum((1, 2)).clamp_min(1)
    return total
