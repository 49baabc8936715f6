"""Tiny random instances of the real classes, saved as the released checkpoints are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.utils.logging import disable_progress_bar
from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

from benchmarks.tiny_checkpoints import preset, wan
from mirage_env.config import load_config
from mirage_env.denoise.pretrained import LoraShape, add_lora, load_denoiser, save_adapter
from mirage_env.world_model import Preset

disable_progress_bar()
disable_transformers_progress_bar()
FREE = {"denoiser": {"memory_layers": [], "preceding": 0, "references": 0}, "sampler": {"replace": 0.5}}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return wan(tmp_path_factory.mktemp("released") / "wan")


@pytest.fixture(scope="session")
def adapter(checkpoint, tmp_path_factory) -> Path:
    """A branch and LoRA of rank 4 that were never trained but do something."""
    folder = tmp_path_factory.mktemp("adapter")
    config = load_config(preset(folder / "any.yaml", checkpoint), Preset)
    torch.manual_seed(1)
    transformer = load_denoiser(checkpoint, config.denoiser, torch.float32).transformer
    for block in transformer.memory_blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=0.1)
    lora = LoraShape(rank=4, alpha=4.0)
    add_lora(transformer, lora)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(folder / "adapter", transformer, lora, {"steps": 0})
    return folder / "adapter"


@pytest.fixture
def make_preset(tmp_path, checkpoint):
    def make(**changes) -> str:
        path = tmp_path / f"preset-{len(list(tmp_path.iterdir()))}.yaml"
        return str(preset(path, changes.pop("checkpoint", checkpoint), **changes))

    return make


@pytest.fixture
def free() -> dict:
    return FREE
