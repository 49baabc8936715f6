"""The released backbone, and what makes a Mirage of it: an adapter folder with the branch and LoRA.

adapter/
    config.json                                 kind, the backbone that it fits, branch, LoRA, how it was trained
    branch.safetensors                          the side branch
    pytorch_lora_weights.safetensors            LoRA of the backbone's self-attention, as peft writes it; optional
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from mirage_env.denoise.denoiser import RAY_CHANNELS, READOUT_CHANNELS, Denoiser, DenoiserConfig
from mirage_env.denoise.sampler import SamplerConfig
from mirage_env.denoise.transformer import BRANCH, MemoryTransformer
from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.weights import save_tensors
from mirage_env.weights.checkpoint import part_bytes, part_config

ADAPTER_CONFIG, BRANCH_FILE, LORA_FILE = "config.json", "branch.safetensors", "pytorch_lora_weights.safetensors"
LORA_TARGETS = r"blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
"""q, k, v, o of the backbone's self-attention; a list of names would also hit cross-attention and the branch."""


@dataclass(frozen=True)
class LoraShape:
    """The paper's, for its second stage."""

    rank: int = 64
    alpha: float = 64.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise InvalidValueError(f"LoRA needs rank >= 1, alpha > 0 and 0 <= dropout < 1, got {self}")


def backbone_shape(config: DenoiserConfig) -> dict[str, Any]:
    """What a backbone's config must say to be the one that `config` describes."""
    return {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.layers,
        "ffn_dim": config.ffn_dim,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "text_dim": config.text_dim,
        "patch_size": [1, config.patch_size, config.patch_size],
    }


def load_denoiser(
    checkpoint: Path, config: DenoiserConfig, dtype: torch.dtype, adapter: Path | None = None
) -> Denoiser:
    """The checkpoint's backbone with a fresh branch, or with the branch and LoRA of an adapter."""
    folder = checkpoint / "transformer"
    part_config(folder, backbone_shape(config))
    part_bytes(folder)
    backbone = WanTransformer3DModel.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
    )
    transformer = MemoryTransformer.from_backbone(
        backbone,
        config.memory_layers,
        READOUT_CHANNELS if config.extra_readout else 1,
        RAY_CHANNELS if config.rays else 0,
    )
    if adapter is not None:
        load_adapter(adapter, transformer)
    return Denoiser(config, transformer)


def check_scheduler(checkpoint: Path, config: SamplerConfig) -> None:
    """Raises `WeightsError` where the checkpoint was made for another schedule than the preset's."""
    scheduler = config.scheduler()
    names = ("prediction_type", "use_flow_sigmas", "num_train_timesteps", "flow_shift")
    expected = {name: scheduler.config[name] for name in names}
    part_config(checkpoint / "scheduler", {"_class_name": type(scheduler).__name__} | expected, "scheduler_config.json")


def add_lora(transformer: MemoryTransformer, shape: LoraShape) -> None:
    """Fresh LoRA, trainable, that changes nothing yet."""
    from peft import LoraConfig

    transformer.add_adapter(
        LoraConfig(r=shape.rank, lora_alpha=shape.alpha, lora_dropout=shape.dropout, target_modules=LORA_TARGETS)
    )


def freeze_backbone(transformer: MemoryTransformer, lora: LoraShape | None) -> None:
    """What the paper's stages train: the branch, and with `lora` fresh LoRA beside it; nothing of the backbone."""
    transformer.requires_grad_(False)
    if lora is not None:
        add_lora(transformer, lora)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(name.startswith(BRANCH) or ".lora_" in name)


def save_adapter(
    folder: Path,
    transformer: MemoryTransformer,
    lora: LoraShape | None,
    about: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes an adapter folder, whole or not at all; `about` says how it was trained."""
    staging = folder.parent / f".{folder.name}-{os.getpid()}"
    staging.mkdir(parents=True)
    try:
        state = transformer.state_dict()
        branch = {key: value.detach().to(dtype) for key, value in state.items() if key.startswith(BRANCH)}
        save_tensors(staging / BRANCH_FILE, {key: value.contiguous() for key, value in branch.items()})
        if lora is not None:
            transformer.save_lora_adapter(staging, weight_name=LORA_FILE)
            shutil.copymode(staging / BRANCH_FILE, staging / LORA_FILE)
        config = {
            "kind": "mirage-adapter",
            "backbone": backbone_identity(transformer),
            "memory_layers": list(transformer.config.memory_layers),
            "lora": asdict(lora) if lora is not None else None,
            **about,
        }
        (staging / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_adapter(folder: Path, transformer: MemoryTransformer) -> dict[str, Any]:
    """Puts an adapter on the backbone that it was trained on; returns its config.

    Raises `WeightsError` for another backbone, other layers, another LoRA rank, and for missing or damaged files.
    """
    config = part_config(folder, {"kind": "mirage-adapter"}, ADAPTER_CONFIG)
    own = backbone_identity(transformer)
    if config.get("backbone") != own:
        trained = config.get("backbone") or {}
        other = next((key for key in own if trained.get(key) != own[key]), "identity")
        raise WeightsError(
            f"the adapter {folder} was trained on another backbone: {other} is {trained.get(other)!r} there and "
            f"{own.get(other)!r} here; name the checkpoint that it was trained on"
        )
    if config.get("memory_layers") != list(transformer.config.memory_layers):
        raise WeightsError(
            f"the adapter {folder} has its branch at layers {config.get('memory_layers')}, the preset at "
            f"{list(transformer.config.memory_layers)}; set memory_layers to the adapter's"
        )
    branch = _tensors(folder / BRANCH_FILE)
    expected = {key: value for key, value in transformer.state_dict().items() if key.startswith(BRANCH)}
    wrong = sorted(key for key in branch.keys() | expected.keys() if _shape(branch, key) != _shape(expected, key))
    if wrong:
        raise WeightsError(f"{folder / BRANCH_FILE} does not fit: {len(wrong)} tensors differ, the first is {wrong[0]}")
    transformer.load_state_dict({key: value.to(expected[key]) for key, value in branch.items()}, strict=False)
    if config.get("lora") is not None:
        lora, rank = _tensors(folder / LORA_FILE), config["lora"]["rank"]
        sites = {name for name, _ in transformer.named_modules() if re.fullmatch(LORA_TARGETS, name)}
        stored = {f"{site}.lora_{part}.weight" for site in sites for part in "AB"}
        if wrong := sorted(stored ^ lora.keys()):
            raise WeightsError(
                f"{folder / LORA_FILE} does not fit: {len(wrong)} tensors differ, the first is {wrong[0]}"
            )
        ranks = {value.shape[0] for key, value in lora.items() if "lora_A" in key}
        if ranks != {rank}:
            raise WeightsError(
                f"{folder / LORA_FILE} holds LoRA of rank {sorted(ranks)}, {ADAPTER_CONFIG} says {rank}; "
                "both must come from one training run"
            )
        transformer.load_lora_adapter(folder, prefix=None, weight_name=LORA_FILE, local_files_only=True)
    return config


def backbone_identity(transformer: MemoryTransformer) -> dict[str, Any]:
    """Shape of a backbone and a hash over some of its tensors, cheap to take and different for every training run."""
    digest = hashlib.sha256()
    for name in ("scale_shift_table", "patch_embedding.weight", "blocks.0.scale_shift_table"):
        tensor = transformer.get_parameter(name).detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(tensor.view(torch.int16).numpy().tobytes())
    names = [name for name in backbone_shape(DenoiserConfig()) if name != "_class_name"]
    shape = {name: transformer.config[name] for name in names}
    return {**shape, "patch_size": list(shape["patch_size"]), "fingerprint": digest.hexdigest()[:16]}


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"the adapter lacks {path}; copy its whole folder") from None
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}); copy it again") from None


def _shape(tensors: Mapping[str, torch.Tensor], key: str) -> torch.Size | None:
    return tensors[key].shape if key in tensors else None
