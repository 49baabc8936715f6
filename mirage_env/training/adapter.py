"""The paper's two stages at full size: the branch alone on a frozen backbone, then LoRA of its self-attention, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mirage_env.denoise.denoiser import ChunkCondition, Denoiser
from mirage_env.denoise.pretrained import LoraShape, freeze_backbone, save_adapter
from mirage_env.errors import InvalidValueError
from mirage_env.memory.protocol import Memory
from mirage_env.training.chunks import ChunkConfig, ChunkStage, ClipSource

AdapterStageName = Literal["branch", "lora"]


@dataclass(frozen=True)
class AdapterLossConfig(ChunkConfig):
    """Flow matching on the target frames."""

    batch: int = 1
    chunks: tuple[int, ...] = (8,)
    history_noise: float = 0.0
    text_dropout: float = 0.2
    """Share of samples that get the empty prompt."""
    shift: float = 5.0
    """Noise levels are drawn evenly and shifted as the sampler's are."""
    gradient_checkpointing: bool = True


class AdapterStage(ChunkStage):
    """Stage "branch" trains the side branch; stage "lora" fresh LoRA with the branch that it finds."""

    loss: AdapterLossConfig

    def __init__(
        self,
        name: AdapterStageName,
        denoiser: Denoiser,
        loss: AdapterLossConfig,
        lora: LoraShape,
        memory: Memory,
        sources: Sequence[ClipSource],
        codec_hash: str,
        held_out: int = 8,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        about: dict[str, Any] | None = None,
    ):
        """What is trained is held in float32 and exported as `dtype`; the backbone stays as it is."""
        transformer, self.lora = denoiser.transformer, lora if name == "lora" else None
        freeze_backbone(transformer, self.lora)
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if loss.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        super().__init__(denoiser, loss, memory, sources, held_out, device)
        self.name, self.codec_hash, self.dtype, self.about = name, codec_hash, dtype, about or {}
        for source in sources:
            if len(source) <= held_out:
                raise InvalidValueError(
                    f"the store has {len(source)} clips, training needs more than the {held_out} held out"
                )

    def losses(
        self, batch: tuple[ChunkCondition, Float[Tensor, "b n c h w"]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        condition, clean = batch
        level = torch.rand(len(clean), generator=generator, device=self.device)
        sigma = self.loss.shift * level / (1 + (self.loss.shift - 1) * level)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        return {"loss": self._flow_error(condition, clean, noise, sigma.clamp(min=1e-3)).mean()}

    def _flow_error(
        self,
        condition: ChunkCondition,
        clean: Float[Tensor, "b n c h w"],
        noise: Float[Tensor, "b n c h w"],
        sigma: Float[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """Mean square error of the velocity: that of the clean latents, over sigma."""
        error = self.denoised(condition, clean, noise, sigma) - clean
        return (error / sigma[:, None, None, None, None]).square().flatten(1).mean(1)

    def validate(self) -> dict[str, float]:
        """Flow-matching error on held-out clips at four noise levels, with the memory and without."""
        source, n = self.sources[0], max(self.loss.chunks)
        clips = np.arange(len(source) - self.held_out, len(source))[:4]
        condition, clean = self.chunks(0, clips, source.overlaps(n)[-1], n, None)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        result = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            for name, told in (("flow_error", condition), ("without_memory", replace(condition, memory_scale=0.0))):
                errors = [
                    self._flow_error(told, clean, noise, torch.full((len(clean),), sigma, device=self.device)).mean()
                    for sigma in (0.25, 0.5, 0.75, 1.0)
                ]
                result[name] = float(torch.stack(errors).mean())
        return result

    def exported(self, folder: Path) -> bool:
        return (folder / self.name).is_dir()

    def export(self, folder: Path, card: dict) -> None:
        about = {**self.about, "loss": asdict(self.loss), "codec_hash": self.codec_hash, **card}
        save_adapter(folder / self.name, self.model.transformer, self.lora, about, self.dtype)
