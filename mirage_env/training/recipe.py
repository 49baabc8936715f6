"""The whole way from nothing to the weights of a preset.

render, codec, perception, latents; the refiner of the warp, the denoiser with it; then the denoiser walks by itself
and is fine-tuned on its own walks, and the codec's decoder learns to show them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast, get_type_hints

import numpy as np
import torch
from torch import nn

from mirage_env.codec.wan import WanCodec
from mirage_env.config import load_config
from mirage_env.denoise.denoiser import Denoiser
from mirage_env.errors import ImageError, InvalidValueError, UnknownNameError
from mirage_env.memory import Memory, make_memory
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception
from mirage_env.resources import ENVS_CONFIG, sha256_of
from mirage_env.training.clips import ClipConfig, ClipStore, render_clips
from mirage_env.training.codec import CodecLossConfig, CodecStage
from mirage_env.training.decoder import DecoderLossConfig, DecoderStage
from mirage_env.training.full_size import AdapterRecipe, run_adapter_stage
from mirage_env.training.latents import encode_latents, predict_depth, walk_clips
from mirage_env.training.loop import LoopConfig, Stage, train
from mirage_env.training.perception import PerceptionLossConfig, PerceptionStage
from mirage_env.training.photos import photo_crops
from mirage_env.training.world import WorldLossConfig, WorldStage, WorldStageName
from mirage_env.weights import load_weights
from mirage_env.world_model import Preset, WorldModel

STAGES = ("render", "codec", "perception", "latents", "refiner", "denoiser", "walks", "finetune", "decoder")
Report = Callable[[int, int, dict[str, float]], None]
"""(done, total, latest values)"""


@dataclass(frozen=True)
class CodecTraining:
    loop: LoopConfig
    loss: CodecLossConfig = field(default_factory=CodecLossConfig)


@dataclass(frozen=True)
class PerceptionTraining:
    loop: LoopConfig
    loss: PerceptionLossConfig = field(default_factory=PerceptionLossConfig)


@dataclass(frozen=True)
class WorldTraining:
    loop: LoopConfig
    loss: WorldLossConfig = field(default_factory=WorldLossConfig)


@dataclass(frozen=True)
class WalkTraining(WorldTraining):
    """Goes on from the denoiser's weights, on clips along which that denoiser has walked."""

    clips: int = 400
    """Walks a store, along its first clips."""
    chunk: int = 5


@dataclass(frozen=True)
class DecoderTraining:
    loop: LoopConfig
    loss: DecoderLossConfig = field(default_factory=DecoderLossConfig)


@dataclass(frozen=True)
class TrainingData:
    """`data.yaml` of a recipe."""

    preset: str
    """Of the model that is trained."""
    stores: tuple[ClipConfig, ...]
    photo_crops: int = 60
    """Random crops of each photograph."""

    def __post_init__(self) -> None:
        if not self.stores:
            raise InvalidValueError("a recipe needs at least one clip store")


@dataclass(frozen=True)
class Recipe:
    """A folder in `envs_config/train/`: one YAML for the data, one for each stage that learns."""

    stages: ClassVar[tuple[str, ...]] = STAGES
    data: TrainingData
    codec: CodecTraining
    perception: PerceptionTraining
    refiner: WorldTraining
    denoiser: WorldTraining
    finetune: WalkTraining
    decoder: DecoderTraining


def load_recipe(source: str | Path) -> Recipe | AdapterRecipe:
    """A recipe by its name in `envs_config/train`, or from the path of a folder; with `adapter.yaml`, at full size."""
    folder = ENVS_CONFIG / "train" / source
    if not _is_recipe(folder):
        folder = Path(source).expanduser()
    if not _is_recipe(folder):
        known = (path.name for path in (ENVS_CONFIG / "train").iterdir() if _is_recipe(path))
        raise UnknownNameError("recipe", str(source), known)
    cls = AdapterRecipe if (folder / "adapter.yaml").is_file() else Recipe
    parts = {name: part for name, part in get_type_hints(cls).items() if name != "stages"}
    return cls(**{name: load_config(folder / f"{name}.yaml", part) for name, part in parts.items()})


def _is_recipe(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("data.yaml", "adapter.yaml"))


def run_stage(
    stage: str,
    recipe: Recipe | AdapterRecipe,
    folder: Path,
    photos: Path | None = None,
    data: Path | None = None,
    device: str = "cpu",
    stop_after_s: float = math.inf,
    report: Report = lambda done, total, values: None,
) -> bool:
    """Runs one stage in `folder`, going on where it was cut off; True when it is whole.

    `photos` is a folder of pictures that the codec also learns from; without one it learns from the simulator alone.
    `data` is the store of videos that an adapter learns from, see `run_adapter_stage`.
    The trained weights lie in `folder` as codec.safetensors, perception.safetensors and, each a whole denoiser and
    better than the one before, refiner.safetensors, denoiser.safetensors and finetune.safetensors.
    """
    if isinstance(recipe, AdapterRecipe):
        return run_adapter_stage(stage, recipe, folder, data, device, stop_after_s, report)
    if stage not in STAGES:
        raise UnknownNameError("training stage", stage, STAGES)
    preset = load_config(recipe.data.preset, Preset)
    if stage == "render":
        for i, config in enumerate(recipe.data.stores):
            render_clips(folder / f"clips-{i}", config, report=lambda done, total: report(done, total, {}))
        return True
    stores = [ClipStore(folder / f"clips-{i}") for i in range(len(recipe.data.stores))]

    def counted(done: int, total: int) -> None:
        report(done, total, {})

    if stage == "latents":
        codec, codec_hash = _codec(preset, folder)
        perception, perception_hash = _perception(preset, folder)
        for store in stores:
            encode_latents(store, codec, codec_hash, counted, device)
            predict_depth(store, perception, perception_hash, codec.spatial_stride, counted, device)
        return True
    if stage == "walks":
        codec, _ = _codec(preset, folder)
        perception, _ = _perception(preset, folder)
        denoiser, denoiser_hash = _denoiser(preset, folder / "denoiser.safetensors")
        memory = _memory(preset, folder, codec)
        for store in stores:
            model = WorldModel(preset, codec, perception, denoiser, store.config.size, device, memory=memory)
            walk_clips(store, model, denoiser_hash, recipe.finetune.clips, recipe.finetune.chunk, counted)
        return True

    torch.manual_seed(0)  # the first weights
    training = getattr(recipe, stage)
    loop: LoopConfig = training.loop
    job: Stage
    if stage == "codec":
        job = CodecStage(preset.codec, training.loss, *_pictures(stores, recipe, photos, folder), device=device)
    elif stage == "perception":
        job = PerceptionStage(_eyes(preset), training.loss, stores, device=device)
    elif stage == "decoder":
        codec, codec_hash = _codec(preset, folder)
        walked_by = sha256_of(folder / "denoiser.safetensors")
        _, photographs = _pictures(stores, recipe, photos, folder)
        job = DecoderStage(codec, codec_hash, training.loss, stores, walked_by, photographs, device=device)
    else:
        codec, codec_hash = _codec(preset, folder)
        _, perception_hash = _perception(preset, folder)
        before = {"refiner": None, "denoiser": "refiner", "finetune": "denoiser"}[stage]
        start, start_hash = (None, None) if before is None else _denoiser(preset, folder / f"{before}.safetensors")
        memory = make_memory(preset.memory, codec.encode) if before is None else _memory(preset, folder, codec)
        job = WorldStage(
            preset.denoiser, training.loss, memory, stores, codec, codec_hash, perception_hash, device=device,
            name=cast("WorldStageName", stage), start=start, walked_by=start_hash if stage == "finetune" else None,
        )  # fmt: skip
    return train(job, loop, folder, device, stop_after_s, lambda step, values: report(step, loop.steps, values))


def _codec(preset: Preset, folder: Path) -> tuple[WanCodec, str]:
    path = folder / "codec.safetensors"
    codec = WanCodec(preset.codec).eval().requires_grad_(False)
    load_weights(path, codec, "codec")
    return codec, sha256_of(path)


def _eyes(preset: Preset) -> PerceptionConfig:
    if not isinstance(preset.perception, PerceptionConfig):
        raise InvalidValueError("a preset that sees by outside models has no perception to train")
    return preset.perception


def _perception(preset: Preset, folder: Path) -> tuple[TinyPerception, str]:
    path = folder / "perception.safetensors"
    perception = TinyPerception(_eyes(preset)).eval()
    load_weights(path, perception, "perception")
    return perception, sha256_of(path)


def _denoiser(preset: Preset, path: Path) -> tuple[Denoiser, str]:
    denoiser = Denoiser(preset.denoiser).eval()
    load_weights(path, denoiser, "denoiser", codec_hash=sha256_of(path.parent / "codec.safetensors"))
    return denoiser, sha256_of(path)


def _memory(preset: Preset, folder: Path, codec: WanCodec) -> Memory:
    memory = make_memory(preset.memory, codec.encode)
    if isinstance(memory, nn.Module):
        codec_hash = sha256_of(folder / "codec.safetensors")
        load_weights(folder / "memory.safetensors", memory, "memory", codec_hash=codec_hash)
    return memory


def _pictures(
    stores: list[ClipStore], recipe: Recipe, photos: Path | None, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Simulator frames and photographs; the simulator's stand in where there are no photographs."""
    rgb = stores[0].array("rgb")
    frames = rgb.reshape(-1, *rgb.shape[2:])
    if photos is None:
        return frames, frames
    cached = folder / "photos.npy"
    if not cached.exists():
        crops = np.stack(list(photo_crops(photos, stores[0].config.size[0], recipe.data.photo_crops, seed=0)))
        if len(crops) <= 64:
            raise ImageError(f"the pictures below {photos} gave {len(crops)} crops, too few to hold 64 out; add some")
        partial = folder / "photos.partial.npy"
        np.save(partial, crops)
        partial.replace(cached)  # a kill must not leave half a file behind
    return frames, np.load(cached, mmap_mode="r")
