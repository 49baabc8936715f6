"""Held-out walks: a model continues a simulated scene, beside what geometry and the model's parts alone give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mirage_env.codec.wan import to_float, to_uint8
from mirage_env.errors import InvalidValueError
from mirage_env.evaluation.codec import reconstruct
from mirage_env.evaluation.metrics import (
    Interval,
    abs_rel,
    bootstrap,
    cells_all,
    cells_to_pixels,
    pooled_psnr,
    psnr,
    ssim,
)
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.geometry.projection import backproject, project
from mirage_env.memory.none import NoMemory
from mirage_env.memory.protocol import ChunkRecord, Memory, State
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY, TRAINING_SEED, make_scene, render, sample_trajectory
from mirage_env.simulator.trajectories import FOV_DEG, SECONDS_PER_FRAME
from mirage_env.types import Cameras, Frames, Readout, SceneSpec
from mirage_env.world_model import WorldModel

CHUNK = 8
FRAMES = 33
"""The first frame and four chunks."""
SKY_M = 1e4
"""A depth at which no walk has parallax."""


@dataclass(frozen=True)
class Walk:
    """A true walk through one scene, in the frame of an environment: the first camera is at the world's origin."""

    family: str
    seed: int
    truth: Frames
    """The given picture, then the frames to generate."""
    camera_height_m: float
    """The floor is the plane y = camera_height_m."""

    @property
    def scene(self) -> SceneSpec:
        """What a model is given."""
        first = self.truth.cameras[:1]
        return SceneSpec(
            first.world_from_camera[0], first.intrinsics_px[0], self.camera_height_m, self.truth.rgb[0].numpy()
        )

    @property
    def goal(self) -> Frames:
        """What it has to generate."""
        return self.truth[1:]


@dataclass(frozen=True)
class Guess:
    """What a candidate says that the frames of `Walk.goal` look like."""

    rgb: UInt8[Tensor, "T H W 3"]
    depth_m: Float[Tensor, "T H W"] | None = None
    """Metres; None where the candidate knows none."""


Candidate = Callable[[WorldModel, Walk], Guess]


# ---- candidates -----------------------------------------------------------------------------------------------------


def generate(model: WorldModel, walk: Walk) -> Guess:
    """The model itself, in chunks of `CHUNK` frames."""
    _, state = model.begin(walk.scene, walk.seed)
    chunks = []
    for start in range(0, len(walk.goal), CHUNK):
        frames, state = model.advance(state, walk.goal.cameras[start : start + CHUNK])
        chunks.append(frames)
    return Guess(torch.cat([x.rgb for x in chunks]).cpu(), torch.cat([x.depth_m for x in chunks]).cpu())


def with_memory(memory: Memory) -> Candidate:
    """The same model and weights with another memory."""
    return lambda model, walk: generate(model.with_memory(memory), walk)


def generate_without_memory(model: WorldModel, walk: Walk) -> Guess:
    """The same model with empty readouts; its preceding and reference frames stay."""
    return with_memory(NoMemory())(model, walk)


def repeat(model: WorldModel, walk: Walk) -> Guess:
    """The first frame, again and again."""
    return Guess(walk.truth.rgb[:1].expand_as(walk.goal.rgb))


@torch.inference_mode()
def warp_true_depth(model: WorldModel, walk: Walk) -> Guess:
    """What geometry alone gives: the first frame's tokens, written at their true places; holes get its mean colour."""
    first = walk.truth[:1]
    camera = first.cameras.to(model.device)
    rgb, depth, sky, dynamic = (x.to(model.device) for x in (first.rgb, first.depth_m, first.sky, first.dynamic))
    record = ChunkRecord(model.encode(to_float(rgb)), depth, sky, dynamic, camera, rgb)
    return _warp(model, walk, model.memory.write(model.memory.empty(model.codec.channels, model.device), record))


def warp_predicted_depth(model: WorldModel, walk: Walk) -> Guess:
    """The same, with the depth that the model sees in the first frame."""
    _, state = model.begin(walk.scene, walk.seed)
    return _warp(model, walk, state.memory)


@torch.inference_mode()
def _warp(model: WorldModel, walk: Walk, memory: State) -> Guess:
    views = walk.goal.cameras.to(model.device).resized(model.latent_size)
    shown = model.memory.read(memory, views).grid or Readout.blank(views, model.codec.channels)
    colour = walk.truth.rgb[0].float().mean((0, 1)).round().to(torch.uint8)
    plain = colour.expand(1, *model.size, 3)
    with model.precision():
        hole = model.codec.encode(to_float(plain.to(model.device))).float()
        latents = torch.where(shown.visible[:, None], shown.tokens.float(), hole)
        rgb = to_uint8(model.codec.decode(latents[:, None])[:, 0]).cpu()
    visible = cells_to_pixels(shown.visible.cpu(), model.size)
    return Guess(torch.where(visible[..., None], rgb, plain))


def reconstruct_truth(model: WorldModel, walk: Walk) -> Guess:
    """The true frames through the codec: the ceiling."""
    return Guess(reconstruct(model, walk.goal.rgb))


@torch.inference_mode()
def see_truth(model: WorldModel, walk: Walk) -> Guess:
    """The true frames themselves, with the depth that the model's perception sees in each of them alone."""
    goal = walk.goal
    nothing = torch.zeros(len(goal), *model.latent_size, device=model.device)
    with model.precision():
        images = to_float(goal.rgb.to(model.device))
        seen = model.perception(images, goal.cameras.to(model.device), nothing, walk.camera_height_m)
    return Guess(goal.rgb, seen.depth_m.float().cpu())


CANDIDATES: Mapping[str, Candidate] = {
    "model": generate,
    "no memory": generate_without_memory,
    "first frame": repeat,
    "warp, true depth": warp_true_depth,
    "warp, predicted depth": warp_predicted_depth,
    "codec": reconstruct_truth,
    "truth": see_truth,
}


# ---- scores ---------------------------------------------------------------------------------------------------------

METRICS = ("psnr_db", "seen_psnr_db", "unseen_psnr_db", "ssim", "depth_abs_rel")
"""psnr_db: mean over frames, static pixels. seen, unseen: pooled over the static pixels of a walk's cells that the
first frame showed whole, or not at all. ssim: mean over frames, all pixels. depth_abs_rel: mean over frames, static
pixels that are not sky."""
Scores = dict[str, dict[str, float]]
"""candidate -> metric -> value"""


@dataclass(frozen=True)
class WalkResult:
    """One walk, what the candidates made of it, and their scores."""

    walk: Walk
    guesses: dict[str, Guess]
    scores: Scores


def evaluate_walk(model: WorldModel, walk: Walk, candidates: Mapping[str, Candidate] = CANDIDATES) -> WalkResult:
    """Every candidate on one walk."""
    guesses = {name: candidate(model, walk) for name, candidate in candidates.items()}
    return WalkResult(walk, guesses, {name: score(guess, walk, model.latent_size) for name, guess in guesses.items()})


def score(guess: Guess, walk: Walk, grid: tuple[int, int]) -> dict[str, float]:
    """The metrics of one guess; `grid` is the size (h, w) of the cells that are told apart as seen and unseen.

    NaN stands for what a guess has no score in: depth that it does not give, cells that the walk does not have.
    """
    goal = walk.goal
    static = ~goal.dynamic
    seen = seen_in_first_frame(walk.truth)
    shown, hidden = (cells_to_pixels(cells_all(x, grid), walk.truth.cameras.size) for x in (seen, ~seen))
    depth_error = torch.tensor(torch.nan)
    if guess.depth_m is not None:
        depth_error = abs_rel(guess.depth_m, goal.depth_m, static & ~goal.sky).nanmean()
    values = (
        psnr(guess.rgb, goal.rgb, static).nanmean(),
        pooled_psnr(guess.rgb, goal.rgb, static & shown),
        pooled_psnr(guess.rgb, goal.rgb, static & hidden),
        ssim(guess.rgb, goal.rgb).mean(),
        depth_error,
    )
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


def seen_in_first_frame(truth: Frames, tolerance: float = 0.05) -> Bool[Tensor, "T H W"]:
    """Which pixels of the frames after the first one show a surface (or sky) that the first one shows, by true depth.

    A point was seen if it falls into the first frame and is at most `tolerance` farther than what that shows there,
    which is taken at the farthest of nine pixels: in doubt it was seen.
    """
    depth = torch.where(truth.sky, SKY_M, truth.depth_m)
    height, width = truth.cameras.size
    points = backproject(depth[1:], truth.cameras[1:])
    position, distance = project(points.reshape(-1, 3), truth.cameras[:1])
    x, y = position[0].unbind(-1)
    inside = (distance[0] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    farthest = F.max_pool2d(depth[:1], 3, 1, 1)[0]
    surface = farthest[torch.where(inside, y, 0.0).long(), torch.where(inside, x, 0.0).long()]
    return (inside & (distance[0] <= surface * (1.0 + tolerance))).view(points.shape[:3])


def summarise(results: Sequence[WalkResult]) -> dict[str, dict[str, Interval]]:
    """candidate -> metric -> mean over walks with its 95% bootstrap interval over scenes."""
    return {
        name: {metric: bootstrap([r.scores[name][metric] for r in results]) for metric in METRICS}
        for name in results[0].scores
    }


def margin(results: Sequence[WalkResult], better: str, worse: str, metric: str = "psnr_db") -> Interval:
    """How much more `better` scores than `worse`, walk by walk: pairs cancel how hard the scenes are."""
    return bootstrap([r.scores[better][metric] - r.scores[worse][metric] for r in results])


# ---- where walks come from ------------------------------------------------------------------------------------------

SMOOTH_KINDS = ("walk", "turn", "orbit", "loop")
STEP_M, TURN_DEG = 0.125, 5.0
"""At most so much motion a frame: half of what an action may do, so that the first frame stays in sight for a while."""


def held_out_walks(
    count: int, size: tuple[int, int] = (128, 128), frames: int = FRAMES, first_seed: int = 0
) -> Iterator[Walk]:
    """`count` scenes that training never drew, with one smooth walk each; families and kinds of walk take turns.

    A walk depends on its seed and size alone. Raises InvalidValueError where seeds would reach those of training.
    """
    if first_seed + count > TRAINING_SEED:
        raise InvalidValueError(
            f"evaluation seeds lie below {TRAINING_SEED}, got {first_seed} to {first_seed + count - 1}; start lower"
        )
    families = (*FAMILIES, HELD_OUT_FAMILY)
    for seed in range(first_seed, first_seed + count):
        family, kind = families[seed % len(families)], SMOOTH_KINDS[seed % len(SMOOTH_KINDS)]
        scene = make_scene(seed, family)
        rng = np.random.default_rng(seed)
        poses = sample_trajectory(scene, rng, kind, frames, STEP_M, TURN_DEG)
        lens = intrinsics_from_fov(math.radians(rng.uniform(*FOV_DEG)), size).expand(frames, 3, 3)
        time_s = SECONDS_PER_FRAME * torch.arange(frames, dtype=torch.float32)
        shown = render([scene], torch.zeros(frames, dtype=torch.int64), Cameras(poses, lens, size), time_s)
        yield from_first_camera(family, seed, shown)


def from_first_camera(family: str, seed: int, frames: Frames) -> Walk:
    """A simulated walk, given in its scene's world (floor at y = 0), moved to that of an environment.

    There the first camera is at the origin with no yaw, so that only its pitch and roll are left.
    """
    poses = frames.cameras.world_from_camera
    centre, forward = poses[0, :3, 3], poses[0, :3, 2]
    cos, sin = F.normalize(forward[[2, 0]], dim=0)
    here_from_scene = torch.eye(4)
    here_from_scene[:3, :3] = torch.stack(
        [torch.stack([cos, cos * 0, -sin]), torch.tensor([0.0, 1.0, 0.0]), torch.stack([sin, sin * 0, cos])]
    )
    here_from_scene[:3, 3] = -here_from_scene[:3, :3] @ centre
    cameras = replace(frames.cameras, world_from_camera=here_from_scene @ poses)
    parts = {f.name: getattr(frames, f.name) for f in fields(frames)} | {"cameras": cameras}
    return Walk(family, seed, Frames(**parts), float(-centre[1]))
