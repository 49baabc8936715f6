"""The recipe of an adapter: which public checkpoint, which clips, and the two stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import torch

from mirage_env.codec.wan import WanCodec
from mirage_env.config import load_config
from mirage_env.denoise.pretrained import LoraShape, load_denoiser
from mirage_env.denoise.text import PromptEncoder
from mirage_env.errors import InvalidValueError, WeightsError, check_stride
from mirage_env.memory import make_memory
from mirage_env.perception import ComposedConfig
from mirage_env.training.adapter import AdapterLossConfig, AdapterStage, AdapterStageName
from mirage_env.training.loop import Training
from mirage_env.training.video import Report, VideoClips, VideoConfig, VideoWriter, codec_hash, find_videos
from mirage_env.weights.checkpoint import check_extra, find
from mirage_env.world_model import Preset, weight_dtype


@dataclass(frozen=True)
class AdapterTraining(Training):
    loss: AdapterLossConfig = field(default_factory=AdapterLossConfig)


@dataclass(frozen=True)
class AdapterData:
    """`adapter.yaml` of a recipe."""

    preset: str
    """Of the backbone."""
    lora: LoraShape = field(default_factory=LoraShape)
    held_out: int = 8
    """Clips that validate."""


@dataclass(frozen=True)
class AdapterRecipe:
    """A folder in `envs_config/train/`: one YAML for what is trained, one for each stage."""

    stages: ClassVar[tuple[AdapterStageName, ...]] = ("branch", "lora")
    adapter: AdapterData
    branch: AdapterTraining
    lora: AdapterTraining


def public_preset(name: str) -> Preset:
    """The preset, which must read a public checkpoint."""
    preset = load_config(name, Preset)
    if not isinstance(preset.perception, ComposedConfig) or preset.weights is None:
        raise InvalidValueError(f"{name} sees by its own network; name a preset that reads public checkpoints")
    return preset


def adapter_stage(stage: str, recipe: AdapterRecipe, folder: Path, data: Path | None, device: str) -> AdapterStage:
    """A stage on the store in `data`.

    The adapters lie in `folder` as folders "branch" and "lora"; the second goes on from the first and holds both.
    """
    if data is None:
        raise InvalidValueError("an adapter is trained on a store of videos; name it with --data (see mirage-env data)")
    check_extra("wan,video", "accelerate", "ftfy", "lmdb", "peft", "psutil", "transformers")
    preset = public_preset(recipe.adapter.preset)
    training: AdapterTraining = getattr(recipe, stage)
    checkpoint, before = find(str(preset.weights)), folder / "branch"
    dtype = torch.bfloat16 if training.loop.bf16(device) else torch.float32
    clips = VideoClips(data, training.loss.text_dropout)
    codec = WanCodec.from_checkpoint(checkpoint, preset.codec, dtype)
    if codec_hash(codec) != clips.codec_hash:
        raise WeightsError(f"the store {data} holds latents of another codec than {checkpoint}; make it anew")
    if stage == "lora" and not before.is_dir():
        raise WeightsError(f"stage lora goes on from {before}, which is not there; train stage branch first")
    return AdapterStage(
        cast("AdapterStageName", stage),
        load_denoiser(checkpoint, preset.denoiser, dtype, before if stage == "lora" else None),
        training.loss,
        recipe.adapter.lora,
        make_memory(preset.memory, codec.encode),
        [clips],
        clips.codec_hash,
        recipe.adapter.held_out,
        device,
        dtype,
        {"checkpoint": preset.weights, "clips": len(clips)},
    )


def fill_store(
    source: Path,
    folder: Path,
    preset_name: str,
    config: VideoConfig,
    device: str,
    shard: int = 0,
    shards: int = 1,
    report: Report = lambda done, total, note: None,
) -> dict[str, str]:
    """Turns the videos below `source` into a store, or one shard of it; returns what was skipped, and why."""
    videos, preset = find_videos(source), public_preset(preset_name)
    assert isinstance(preset.perception, ComposedConfig) and preset.weights is not None
    check_extra("wan,video", "ftfy", "lmdb", "psutil", "transformers")
    check_stride(config.size, preset.codec.spatial_stride * preset.denoiser.patch_size)
    place = torch.device(device)
    checkpoint, dtype = find(preset.weights), weight_dtype(place)
    codec = WanCodec.from_checkpoint(checkpoint, preset.codec, dtype).to(place).eval().requires_grad_(False)
    perception, embed = preset.perception.load(place, dtype), PromptEncoder(checkpoint, place, dtype).each
    return VideoWriter(folder, config, codec, perception, embed, place, shard, shards).add(videos, report)
