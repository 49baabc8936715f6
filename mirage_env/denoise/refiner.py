"""What a readout lacks to be a picture: tokens moved into the middle of their cells, seams and small holes closed.

A token keeps describing the patch it was written from, while the readout shows it up to half a cell away from there. To
move it is local work on known offsets, which a few convolutions learn in minutes and attention hardly learns at all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mirage_env.layers import ResidualBlock


class WarpRefiner(nn.Module):
    """How a warp should change, frame by frame; untrained it changes nothing."""

    def __init__(self, channels: int, extra: int, width: int, blocks: int):
        super().__init__()
        self.stem = nn.Conv2d(channels + extra, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.head = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        self.head.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, warp: Float[Tensor, "b n c h w"], extra: Float[Tensor, "b n e h w"]
    ) -> Float[Tensor, "b n c h w"]:
        """`extra` says where tokens were hit, where inside their cells, and how near (see `readout_channels`)."""
        inputs = torch.cat([warp, extra.to(warp.dtype)], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.head(self.blocks(self.stem(inputs))).unflatten(0, warp.shape[:2]).to(warp.dtype)
