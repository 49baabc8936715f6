"""The whole way from nothing to the weights of a preset: render, codec, perception, latents, denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mirage_env.codec.wan import WanCodec
from mirage_env.config import load_config
from mirage_env.errors import ImageError, InvalidValueError, UnknownNameError
from mirage_env.perception.tiny import TinyPerception
from mirage_env.resources import ENVS_CONFIG, sha256_of
from mirage_env.training.clips import ClipConfig, ClipStore, render_clips
from mirage_env.training.codec import CodecLossConfig, CodecStage
from mirage_env.training.loop import LoopConfig, Stage, train
from mirage_env.training.perception import PerceptionLossConfig, PerceptionStage
from mirage_env.training.photos import photo_crops
from mirage_env.training.world import WorldLossConfig, WorldStage, encode_store
from mirage_env.weights import load_weights, read_card
from mirage_env.world_model import Preset

STAGES = ("render", "codec", "perception", "latents", "denoiser")
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
class Recipe:
    """What a YAML in `envs_config/train/` describes."""

    preset: str
    stores: tuple[ClipConfig, ...]
    codec: CodecTraining
    perception: PerceptionTraining
    denoiser: WorldTraining
    photo_crops: int = 60

    def __post_init__(self) -> None:
        if not self.stores:
            raise InvalidValueError("a recipe needs at least one clip store")


def load_recipe(source: str) -> Recipe:
    """A recipe by its name in `envs_config/train`, or from the path of a YAML."""
    if source.endswith((".yaml", ".yml")):
        return load_config(source, Recipe)
    path = ENVS_CONFIG / "train" / f"{source}.yaml"
    if not path.is_file():
        raise UnknownNameError("recipe", source, (p.stem for p in path.parent.glob("*.yaml")))
    return load_config(path, Recipe)


def run_stage(
    stage: str,
    recipe: Recipe,
    folder: Path,
    photos: Path | None = None,
    device: str = "cpu",
    stop_after_s: float = math.inf,
    report: Report = lambda done, total, values: None,
) -> bool:
    """Runs one stage in `folder`, going on where it was cut off; True when it is whole.

    `photos` is a folder of pictures that the codec also learns from; without one it learns from the simulator alone.
    The trained weights lie in `folder` as codec.safetensors, perception.safetensors and denoiser.safetensors.
    """
    if stage not in STAGES:
        raise UnknownNameError("training stage", stage, STAGES)
    preset = load_config(recipe.preset, Preset)
    if stage == "render":
        for i, config in enumerate(recipe.stores):
            render_clips(folder / f"clips-{i}", config, report=lambda done, total: report(done, total, {}))
        return True
    stores = [ClipStore(folder / f"clips-{i}") for i in range(len(recipe.stores))]
    if stage == "latents":
        codec, codec_hash = _codec(preset, folder)
        perception = TinyPerception(preset.perception).eval()
        load_weights(folder / "perception.safetensors", perception, "perception")
        for store in stores:
            encode_store(store, codec, perception, codec_hash, _perception_hash(folder), lambda i, n: report(i, n, {}))
        return True

    torch.manual_seed(0)  # the first weights
    loop: LoopConfig = getattr(recipe, stage).loop
    job: Stage
    if stage == "codec":
        job = CodecStage(preset.codec, recipe.codec.loss, *_pictures(stores, recipe, photos, folder), device=device)
    elif stage == "perception":
        job = PerceptionStage(preset.perception, recipe.perception.loss, stores, device=device)
    else:
        codec, codec_hash = _codec(preset, folder)
        job = WorldStage(
            preset.denoiser,
            recipe.denoiser.loss,
            preset.memory,
            stores,
            codec,
            codec_hash,
            _perception_hash(folder),
            device=device,
        )
    return train(job, loop, folder, device, stop_after_s, lambda step, values: report(step, loop.steps, values))


def _codec(preset: Preset, folder: Path) -> tuple[WanCodec, str]:
    path = folder / "codec.safetensors"
    codec = WanCodec(preset.codec).eval().requires_grad_(False)
    load_weights(path, codec, "codec")
    return codec, sha256_of(path)


def _perception_hash(folder: Path) -> str:
    path = folder / "perception.safetensors"
    read_card(path)  # a missing or damaged file is told in a sentence
    return sha256_of(path)


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
        crops = np.stack(list(photo_crops(photos, stores[0].config.size[0], recipe.photo_crops, seed=0)))
        if len(crops) <= 64:
            raise ImageError(f"the pictures below {photos} gave {len(crops)} crops, too few to hold 64 out; add some")
        partial = folder / "photos.partial.npy"
        np.save(partial, crops)
        partial.replace(cached)  # a kill must not leave half a file behind
    return frames, np.load(cached, mmap_mode="r")
