"""Everything that answers a walk: the model, what it is compared with, and the model with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mirage_env.codec.wan import to_float, to_uint8
from mirage_env.denoise.denoiser import ChunkCondition
from mirage_env.denoise.sampler import SamplerConfig, sample
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.evaluation.codec import reconstruct
from mirage_env.evaluation.metrics import cells_to_pixels
from mirage_env.evaluation.walk import Guess, Walk, seen_in_first_frame
from mirage_env.memory.latent import LatentMemory, MemoryConfig, MemoryState
from mirage_env.memory.none import NoMemory
from mirage_env.memory.protocol import ChunkRecord, Memory, State, make_memory, memory_class, memory_kinds
from mirage_env.memory.resampled import ResampledMemory
from mirage_env.memory.rgb import RgbMemory, RgbMemoryConfig
from mirage_env.perception.tiny import Perceived
from mirage_env.types import Cameras, Frames, Readout
from mirage_env.world_model import WorldModel

CHUNK = 8
Answer = Callable[[WorldModel, Walk], Guess]


@dataclass(frozen=True)
class Candidate:
    """A named answer to walks."""

    about: str
    """One sentence for people."""
    answer: Answer
    pictures: bool = False
    """Whether it needs the true pictures of the whole walk."""
    geometry: bool = False
    """Whether it needs true depth."""
    key: str | None = ""
    """Changes when its answers would, beyond the model's weights; None: never take an earlier answer for this one's."""

    def answers(self, walk: Walk) -> bool:
        """Whether enough of the walk is known for it."""
        return (walk.pictures or not self.pictures) and (walk.geometry or not self.geometry)


# ---- the model ------------------------------------------------------------------------------------------------------


def generate(model: WorldModel, walk: Walk) -> Guess:
    """The model itself, in chunks of `CHUNK` frames."""
    _, state = model.begin(walk.scene, walk.seed)
    chunks = []
    for start in range(0, len(walk.goal), CHUNK):
        frames, state = model.advance(state, walk.goal.cameras[start : start + CHUNK])
        chunks.append(frames)
    frames = Frames.cat(chunks)
    return Guess(frames.rgb.cpu(), frames.depth_m.cpu())


def with_memory(make: Callable[[WorldModel], Memory]) -> Answer:
    """The same model and weights with another memory."""
    return lambda model, walk: generate(model.with_memory(make(model)), walk)


def paper_memory(model: WorldModel) -> Memory:
    """Every admissible cell of every keyframe is added (Eq. 6), depth edges too; nothing is ever dropped."""
    return written(model, MemoryConfig(write_rule="paper", depth_edges="keep"))


def unbounded_memory(model: WorldModel) -> Memory:
    """As it is written, without a budget of points or of sky."""
    config = latent_config(model)
    return written(model, replace(config, max_points=None, sky_points=2**40 if config.sky_points else 0))


def tight_memory(model: WorldModel) -> Memory:
    """As it is written, with a budget that many a suite's walk exceeds; none exceeds the shipped one."""
    return written(model, replace(latent_config(model), max_points=1024))


def edge_memory(model: WorldModel) -> Memory:
    """As it is written, and of every frame the cells that hold more than one surface, at the median of their depth."""
    return written(model, replace(latent_config(model), depth_edges="keep", depth_downsample="median"))


def bare_memory(model: WorldModel) -> Memory:
    """As it is written, and read as the points lie: a cell's token is that of the point that falls into it."""
    return LatentMemory(latent_config(model))


def rgb_memory(model: WorldModel) -> Memory:
    """A point cloud of the same keyframes' pixels, written by the same rule; nothing is ever dropped."""
    config = latent_config(model)
    rule = RgbMemoryConfig(write_rule=config.write_rule, same_surface=config.same_surface, depth_downsample="nearest")
    return RgbMemory(rule, model.encode)


class PixelLiftedMemory(LatentMemory):
    """A cell's token at the point of every one of its pixels, by that pixel's own depth."""

    def write(self, state: MemoryState, record: ChunkRecord) -> MemoryState:
        rows, columns = (p // c for p, c in zip(record.cameras.size, record.latents.shape[2:], strict=True))
        pixels = record.latents.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
        return super().write(state, replace(record, latents=pixels))


def pixel_lifted_memory(model: WorldModel) -> Memory:
    return PixelLiftedMemory(replace(latent_config(model), max_points=None))


def latent_config(model: WorldModel) -> MemoryConfig:
    """How the model's memory is written, or the default where it remembers something else than latent points."""
    config = model.preset.memory
    if not isinstance(config, MemoryConfig) or isinstance(config, RgbMemoryConfig):
        return MemoryConfig()
    return MemoryConfig(**{f.name: getattr(config, f.name) for f in fields(MemoryConfig) if f.name != "kind"})


def written(model: WorldModel, config: MemoryConfig) -> Memory:
    """The model's memory, written otherwise."""
    if not isinstance(model.memory, ResampledMemory):
        return LatentMemory(config)
    kept = ("kind", "token_dtype")
    rule = {f.name: getattr(config, f.name) for f in fields(MemoryConfig) if f.name not in kept}
    other = ResampledMemory(replace(model.memory.config, **rule))
    other.load_state_dict(model.memory.state_dict())
    return other


def generate_without_filter(model: WorldModel, walk: Walk) -> Guess:
    """Moving things are remembered where they stood."""

    def at_rest(part: str, *inputs: Any) -> Perceived:
        seen = model.parts[part](*inputs)
        return replace(seen, dynamic=torch.zeros_like(seen.dynamic))

    return generate(model.with_parts(see=partial(at_rest, "see"), glance=partial(at_rest, "glance")), walk)


def generate_with_true_depth(model: WorldModel, walk: Walk) -> Guess:
    """The memory is written at true depth, with true masks."""
    poses = walk.truth.cameras.world_from_camera
    coming = list(range(len(walk.truth)))

    def see(images: Tensor, cameras: Cameras, *_: Any) -> Perceived:
        now = []
        for pose in cameras.world_from_camera.cpu():  # keyframes may come before the frames between them
            now.append(next(index for index in coming if torch.equal(poses[index], pose)))
            coming.remove(now[-1])
        depth, sky, dynamic = (
            x[now].to(images.device) for x in (walk.truth.depth_m, walk.truth.sky, walk.truth.dynamic)
        )
        return Perceived(depth, sky, dynamic)

    return replace(generate(model.with_parts(see=see), walk), depth_m=None)


def generate_from_video_latents(model: WorldModel, walk: Walk) -> Guess:
    """Remembers the latents that it denoised, not those of its decoded pictures encoded anew."""
    denoised: list[Tensor] = []

    def denoise(*inputs: Any) -> Tensor:
        denoised[:] = [model.parts["denoise"](*inputs)]
        return denoised[0]

    def encode(images: Tensor) -> Tensor:
        if not denoised:
            return model.parts["encode"](images)
        latents = denoised[0][0].float()
        every = 1 if len(latents) == len(images) else model.preset.keyframe_stride  # keyframes alone, or a whole chunk
        return latents.flip(0)[::every].flip(0)

    return generate(model.with_parts(denoise=denoise, encode=encode), walk)


def generate_with_perfect_recall(model: WorldModel, walk: Walk) -> Guess:
    """What no memory of one picture can exceed with this codec and these inventions: the codec's own picture of the
    truth wherever the first frame shows the place, the model's elsewhere."""
    seen, guess = seen_in_first_frame(walk.truth)[..., None], generate(model, walk).rgb
    assert guess is not None
    return Guess(torch.where(seen, reconstruct(model, walk.goal.rgb), guess))


def generate_training_free(model: WorldModel, walk: Walk) -> Guess:
    """The branch switched off; in the first half of four steps the sample's visible cells give way to the readout."""

    def denoise(noise: Tensor, condition: ChunkCondition) -> Tensor:
        return sample(model.denoiser, condition, noise, SamplerConfig(steps=4, replace=0.5))

    return generate(model.with_parts(denoise=denoise), walk)


# ---- what it is compared with --------------------------------------------------------------------------------------


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
    memory = LatentMemory(latent_config(model))
    return _warp(model, walk, memory, memory.write(memory.empty(model.codec.channels, model.device), record))


def warp_predicted_depth(model: WorldModel, walk: Walk) -> Guess:
    """The same, with the depth that the model sees in the first frame."""
    plain = model.with_memory(LatentMemory(latent_config(model)))
    _, state = plain.begin(walk.scene, walk.seed)
    return _warp(plain, walk, plain.memory, state.memory)


@torch.inference_mode()
def _warp(model: WorldModel, walk: Walk, memory: Memory, state: State) -> Guess:
    views = walk.goal.cameras.to(model.device).resized(model.latent_size)
    shown = memory.read(state, views).grid or Readout.blank(views, model.codec.channels)
    colour = walk.truth.rgb[0].float().mean((0, 1)).round().to(torch.uint8)
    plain = colour.expand(1, *model.size, 3)
    hole = model.encode(to_float(plain.to(model.device)))
    latents = torch.where(shown.visible[:, None], shown.tokens.float(), hole)
    with model.precision():
        rgb = to_uint8(model.codec.decode(latents[:, None])[:, 0]).cpu()
    visible = cells_to_pixels(shown.visible.cpu(), model.size)
    return Guess(torch.where(visible[..., None], rgb, plain))


def reconstruct_truth(model: WorldModel, walk: Walk) -> Guess:
    """The true frames through the codec: the ceiling."""
    return Guess(reconstruct(model, walk.goal.rgb))


@torch.inference_mode()
def see_truth(model: WorldModel, walk: Walk) -> Guess:
    """What the model's perception sees in each of the true frames alone."""
    goal = walk.goal
    nothing = torch.zeros(len(goal), *model.latent_size, device=model.device)
    images = to_float(goal.rgb.to(model.device))
    with model.precision():
        seen = model.perception(images, goal.cameras.to(model.device), nothing, walk.camera_height_m)
    return Guess(None, seen.depth_m.float().cpu(), seen.sky.cpu(), seen.dynamic.cpu())


STANDARD = {
    "model": Candidate("as shipped", generate),
    "no-memory": Candidate("the same weights, every readout empty", with_memory(lambda model: NoMemory())),
    "warp-true-depth": Candidate("the first picture moved by true depth", warp_true_depth, geometry=True),
    "warp-predicted-depth": Candidate("the first picture moved by the depth that is seen in it", warp_predicted_depth),
    "first-frame": Candidate("the first picture, repeated", repeat),
    "codec": Candidate("the true pictures encoded and decoded: the ceiling", reconstruct_truth, pictures=True),
    "perception": Candidate("depth and masks seen in the true pictures", see_truth, True, True, "2"),
}
"""What every run scores."""
REFERENCES = tuple(name for name in STANDARD if name not in ("model", "no-memory"))
"""What stands beside the frames of another system."""
ABLATIONS = {
    "paper-write": Candidate("the paper's write rule: every cell is added", with_memory(paper_memory)),
    "unbounded": Candidate("the memory has no budget: nothing is ever dropped", with_memory(unbounded_memory)),
    "depth-edges": Candidate("cells with a depth edge are remembered of every frame", with_memory(edge_memory)),
    "tight-budget": Candidate("the memory holds 1,024 points at most", with_memory(tight_memory)),
    "rgb-memory": Candidate("colours are remembered, rendered and encoded at every read", with_memory(rgb_memory)),
    "bare-points": Candidate("points do not know their neighbours: tokens as they lie", with_memory(bare_memory)),
    "pixel-lifted": Candidate("tokens lifted at pixel resolution", with_memory(pixel_lifted_memory)),
    "no-dynamic-filter": Candidate("moving things are remembered, too", generate_without_filter),
    "true-depth": Candidate("the memory is written at true depth", generate_with_true_depth, geometry=True),
    "video-latents": Candidate(
        "denoised latents are remembered, not those of the decoded pictures", generate_from_video_latents
    ),
    "perfect-recall": Candidate(
        "the codec's picture of the truth wherever the first picture shows the place: no memory can do better",
        generate_with_perfect_recall,
        pictures=True,
        geometry=True,
    ),
    "training-free": Candidate("the branch is off, readout tokens replace parts of the sample", generate_training_free),
}
"""One thing changed, the weights kept; `--beside NAME=FOLDER` adds models that were trained otherwise."""


def choose_ablations(names: list[str]) -> dict[str, Candidate]:
    """The named ablations and memories (`memory_kinds`); raises `UnknownNameError` for one that does not exist."""
    kinds = memory_kinds()
    for name in names:
        if name not in ABLATIONS and name not in kinds:
            raise UnknownNameError("ablation", name, {*ABLATIONS, *kinds})
    return {name: ABLATIONS[name] if name in ABLATIONS else other_memory(name) for name in names}


def other_memory(kind: str) -> Candidate:
    """The same model and weights with a memory of another kind, yours too, as its defaults make it."""

    def make(model: WorldModel) -> Memory:
        if memory_class(kind) is not ResampledMemory:
            return make_memory(memory_class(kind).config_class(), model.encode)
        if not isinstance(model.memory, ResampledMemory):
            raise InvalidValueError(
                f'the memory "{kind}" reads with weights, and this model has none; train them first'
            )
        return model.memory

    return Candidate(f'the memory "{kind}" in place of its own', with_memory(make), key=None)


def other_model(model: WorldModel, folder: Path) -> Candidate:
    """A model that was trained otherwise (two stages, another memory), loaded from its own weights."""
    key = " ".join([*model.weights.values(), repr(model.preset)])
    return Candidate(f"weights of {folder.name}, preset {model.name}", lambda _, walk: generate(model, walk), key=key)


def submission(folder: Path) -> Candidate:
    """Frames that any other system made; see `exchange.py` for how they lie."""
    from mirage_env.evaluation.exchange import read_frames

    if not folder.is_dir():
        raise InvalidValueError(f"no folder of frames at {folder}; `mirage-env eval export` shows how they should lie")
    return Candidate(f"frames in {folder.name}", lambda _, walk: Guess(read_frames(folder, walk)), key=None)
