"""The embedded preset's tiny decoder: about what the codec would show, for a fraction of the price.

For frames that are never written to the memory: drafts, which are decoded one by one, and what lies between keyframes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError


@dataclass(frozen=True)
class TinyDecoderConfig:
    """Residual blocks at latent resolution and at twice as much, again and again; then every pixel a few channels."""

    widths: tuple[int, ...] = (96, 64, 32)
    blocks: int = 2
    """Residual blocks a level."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.blocks < 1:
            raise InvalidValueError(
                f"widths and blocks must be positive, got {self.widths} and {self.blocks}; the default is (96, 64, 32)"
            )


class Block(nn.Module):
    """Two convolutions beside the way straight on; nothing is normalised, as latents are already."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class TinyDecoder(nn.Module):
    """Normalised latents of `channels` to pictures of `stride` pixels a cell, in [-1, 1] but for overshoot.

    Raises `InvalidValueError` where the stride cannot be reached by so many widths.
    """

    def __init__(self, config: TinyDecoderConfig, channels: int, stride: int):
        super().__init__()
        doublings = len(config.widths) - 1
        self.patch, rest = divmod(stride, 2**doublings)
        if rest or not self.patch:
            raise InvalidValueError(
                f"{len(config.widths)} widths need a stride in multiples of {2**doublings}, got {stride}; take fewer"
            )
        self.config, widths = config, config.widths
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(nn.Sequential(*(Block(w) for _ in range(config.blocks))) for w in widths)
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 1) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 3 * self.patch**2, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        x = self.stem(latents.contiguous(memory_format=torch.channels_last))
        for index, level in enumerate(self.levels):
            x = level(x)
            if index < len(self.up):
                x = F.pixel_shuffle(self.up[index](x), 2)
        return F.pixel_shuffle(self.head(F.silu(x)), self.patch).float()
