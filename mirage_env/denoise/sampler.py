"""From noise to clean latents in a few steps of flow matching."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from mirage_env.denoise.denoiser import ChunkCondition, Denoiser
from mirage_env.denoise.transformer import Kept
from mirage_env.errors import InvalidValueError


@dataclass(frozen=True)
class SamplerConfig:
    steps: int = 2
    shift: float = 1.0
    """Resolution shift of the schedule, sigma = shift t / (1 + (shift - 1) t); the paper's 5 is a 704-pixel value."""

    replace: float = 0.0
    """Training-free memory: in this first share of the steps the cells that the memory shows are the readout, noised to
    the step's level, and the branch is not used. 0: the branch alone brings the memory in."""

    def __post_init__(self) -> None:
        if not 0 <= self.replace <= 1:
            raise InvalidValueError(f"replace is a share of the steps between 0 and 1, got {self.replace}")
        if self.steps < 1 or self.shift <= 0:
            raise InvalidValueError(f"a sampler needs steps >= 1 and shift > 0, got {self.steps} and {self.shift}")

    def scheduler(self) -> UniPCMultistepScheduler:
        """A fresh UniPC solver: it keeps the last steps' outputs, so no two samples may share one."""
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=self.shift
        )
        scheduler.set_timesteps(self.steps)
        return scheduler


@torch.no_grad()
def sample(
    denoiser: Denoiser, condition: ChunkCondition, noise: Float[Tensor, "b n c h w"], config: SamplerConfig
) -> Float[Tensor, "b n c h w"]:
    """Clean latents of the condition's target frames; overlap, preceding and reference frames stay as they are.

    With `config.replace`, what is predicted for cells that the memory shows gives way to their readout: from pure noise
    on, flow matching then leads these cells of the sample along (1 - sigma) readout + sigma noise.
    """
    scheduler, x, condition = config.scheduler(), noise, denoiser.refined(condition)
    told, kept = replace(condition, memory_scale=0.0) if config.replace else condition, Kept()
    for step, (timestep, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas, strict=False)):
        clean = denoiser.clean(x, sigma.to(x).expand(len(x)), told, kept)
        if step < config.replace * config.steps:
            clean = torch.where(condition.seen, condition.base, clean)
        x = scheduler.step((x - clean) / sigma, timestep, x, return_dict=False)[0]
    return x
