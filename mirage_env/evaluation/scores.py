"""What a guess scores against a walk: static pixels, generated frames only; a score that does not exist is NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mirage_env.evaluation import lpips as lpips_metric
from mirage_env.evaluation.metrics import (
    abs_rel,
    cells_all,
    cells_to_pixels,
    gradient_energy,
    iou,
    kernel_distance,
    patch_features,
    pooled_psnr,
    psnr,
    ssim,
)
from mirage_env.evaluation.walk import Guess, Walk, seen_in_first_frame

LATER = 112
"""Frames from chunk 2 to chunk 16, which see the same views in the suite `long`."""
CHUNK = 8


@dataclass(frozen=True)
class Metric:
    """How a score reads."""

    label: str
    unit: str
    better: str
    """up, down, or one (closer to 1)."""
    about: str
    pooled: bool = False
    """Of all scenes together, by `Score.overlap_px`; else the mean over scenes."""


METRICS = {
    "psnr_db": Metric("PSNR", "dB", "up", "mean over frames, static pixels"),
    "ssim": Metric("SSIM", "", "up", "mean over frames, static pixels"),
    "lpips": Metric("LPIPS", "", "down", "mean over frames, all pixels; AlexNet"),
    "remembered_psnr_db": Metric("PSNR remembered", "dB", "up", "cells all of whose pixels the first picture shows"),
    "invented_psnr_db": Metric("PSNR invented", "dB", "up", "cells none of whose pixels the first picture shows"),
    "invented_gradient_ratio": Metric(
        "gradient ratio invented", "", "one", "gradient energy of invented cells over the truth's there; 0 is mush"
    ),
    "invented_kernel_distance": Metric(
        "kernel distance invented", "", "down",
        "squared MMD with KID's kernel between 16 x 16 patches of invented cells and of the truth there, on fixed "
        "random convolutional features",
    ),
    "depth_abs_rel": Metric("depth error", "", "down", "mean |d - d*| / d*, static pixels without sky, in metres"),
    "depth_aligned_abs_rel": Metric("depth error, aligned", "", "down", "the same after every frame's median ratio"),
    "revisit_psnr_db": Metric(
        "PSNR between visits", "dB", "up",
        "a candidate's own frames at equal poses, one against the other; static pixels, without what the first picture "
        "shows unless it is one of the two",
    ),
    "revisit_ssim": Metric("SSIM between visits", "", "up", "the same pixels"),
    "return_psnr_db": Metric("PSNR on return", "dB", "up", "the later frame of every pair against the truth"),
    "psnr_lost_db": Metric("PSNR lost", "dB", "down", "chunk 2 minus chunk 16, equal views"),
    "sharpness_ratio": Metric("sharpness", "", "one", "gradient energy of the frames over that of the given picture"),
    "sky_iou": Metric("sky IoU", "", "up", "intersection over union of all pixels of all walks together", True),
    "dynamic_iou": Metric("moving IoU", "", "up", "the same of things that move by themselves", True),
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """What one candidate scored on one walk."""

    values: dict[str, float]
    """Of every metric in `METRICS`."""
    psnr_db: list[float]
    """Of every frame."""
    depth_abs_rel: list[float]
    """Of every chunk of 8 frames."""
    overlap_px: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of every pooled metric that exists: pixels in both masks, and in either."""


@dataclass(frozen=True)
class Judge:
    """All that scoring needs to know of a walk, worked out once for all candidates."""

    walk: Walk
    static: Bool[Tensor, "T H W"]
    remembered: Bool[Tensor, "T H W"]
    """Static pixels of cells that the first picture shows whole."""
    invented: Bool[Tensor, "T H W"]
    """Static pixels of cells of which the first picture shows nothing."""

    @staticmethod
    def of(walk: Walk, grid: tuple[int, int]) -> Judge:
        """`grid` is the size (h, w) of the cells that are told apart as remembered and invented."""
        static = ~walk.goal.dynamic
        if not walk.geometry:
            return Judge(walk, static, torch.zeros_like(static), torch.zeros_like(static))
        seen = seen_in_first_frame(walk.truth)
        shown, hidden = (cells_to_pixels(cells_all(x, grid), walk.truth.cameras.size) for x in (seen, ~seen))
        return Judge(walk, static, static & shown, static & hidden)

    def score(self, guess: Guess) -> Score:
        """All metrics of one candidate."""
        frames, values = ([math.nan] * len(self.static), {}) if guess.rgb is None else self._pictures(guess.rgb)
        errors, depth = ([], {}) if guess.depth_m is None or not self.walk.geometry else self._depth(guess.depth_m)
        values |= depth
        overlap_px = {}
        if self.walk.geometry and guess.sky is not None and guess.dynamic is not None:
            goal = self.walk.goal
            masks = {"sky_iou": (guess.sky, goal.sky), "dynamic_iou": (guess.dynamic, goal.dynamic)}
            values |= {name: iou(*pair) for name, pair in masks.items()}
            overlap_px = {name: (int((a & b).sum()), int((a | b).sum())) for name, (a, b) in masks.items()}
        return Score({**dict.fromkeys(METRICS, math.nan), **values}, frames, errors, overlap_px)

    def _pictures(self, rgb: UInt8[Tensor, "T H W 3"]) -> tuple[list[float], dict[str, float]]:
        """PSNR of every frame, and all that pictures are scored by."""
        goal, visits = self.walk.goal, self._visits(rgb)
        if not self.walk.pictures:
            sharpness = gradient_energy(rgb) / gradient_energy(self.walk.truth.rgb[:1])
            return [math.nan] * len(goal), {"sharpness_ratio": float(sharpness.mean()), **visits}
        each = psnr(rgb, goal.rgb, self.static)
        values = {
            "psnr_db": float(each.nanmean()),
            "ssim": float(ssim(rgb, goal.rgb, self.static).nanmean()),
            "remembered_psnr_db": float(pooled_psnr(rgb, goal.rgb, self.remembered)),
            "invented_psnr_db": float(pooled_psnr(rgb, goal.rgb, self.invented)),
            **self._invention(rgb),
            **visits,
        }
        if len(goal) >= LATER + 2 * CHUNK:
            values["psnr_lost_db"] = float((each[CHUNK : 2 * CHUNK] - each[CHUNK + LATER :][:CHUNK]).nanmean())
        if lpips_metric.found():
            values["lpips"] = float(lpips_metric.lpips(rgb, goal.rgb).mean())
        return each.tolist(), values

    def _depth(self, depth_m: Float[Tensor, "T H W"]) -> tuple[list[float], dict[str, float]]:
        """The error of every chunk, and over the walk as it is and after every frame's median ratio."""
        goal = self.walk.goal
        solid = self.static & ~goal.sky
        errors = abs_rel(depth_m, goal.depth_m, solid)
        ratio = torch.where(solid, goal.depth_m / depth_m, torch.nan).flatten(1).nanmedian(1).values
        aligned = abs_rel(depth_m * ratio[:, None, None], goal.depth_m, solid)
        values = {"depth_abs_rel": float(errors.nanmean()), "depth_aligned_abs_rel": float(aligned.nanmean())}
        return [float(chunk.nanmean()) for chunk in errors.split(CHUNK)], values

    def _invention(self, rgb: UInt8[Tensor, "T H W 3"]) -> dict[str, float]:
        goal = self.walk.goal
        if not bool(self.invented.any()):
            return {}
        energy, truth = (_pooled_energy(x, self.invented) for x in (rgb, goal.rgb))
        features = (patch_features(x, self.invented) for x in (rgb, goal.rgb))
        return {
            "invented_gradient_ratio": energy / truth if truth else math.nan,
            "invented_kernel_distance": kernel_distance(*features),
        }

    def _visits(self, rgb: UInt8[Tensor, "T H W 3"]) -> dict[str, float]:
        """Frames of one pose against one another, and the later against the truth."""
        pairs = self.walk.pairs
        if not pairs:
            return {}
        rgb = torch.cat([self.walk.truth.rgb[:1], rgb])
        static = ~self.walk.truth.dynamic
        early, late = (torch.tensor(side) for side in zip(*pairs, strict=True))
        counted = static[early] & static[late]
        if self.walk.geometry:
            counted &= (early == 0)[:, None, None] | self.invented[(early - 1).clamp_min(0)]
        values = {
            "revisit_psnr_db": float(pooled_psnr(rgb[late], rgb[early], counted)),
            "revisit_ssim": float(ssim(rgb[late], rgb[early], counted).nanmean()),
        }
        if self.walk.pictures:
            values["return_psnr_db"] = float(pooled_psnr(rgb[late], self.walk.truth.rgb[late], counted))
        return values


def _pooled_energy(rgb: Tensor, mask: Tensor) -> float:
    """Gradient energy over the masked pixels of all frames together."""
    each, count = gradient_energy(rgb, mask), (mask[:, 1:, :-1] & mask[:, :-1, 1:] & mask[:, :-1, :-1]).sum((1, 2))
    return float((each.nan_to_num() * count).sum() / count.sum().clamp_min(1))
