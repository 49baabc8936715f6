"""What a readout lacks to be a picture: tokens moved into the middle of their cells, seams and small holes closed.

A token keeps describing the patch it was written from, while the readout shows it up to half a cell away from there. To
move it is local work on known offsets, which a few convolutions learn in minutes and attention hardly learns at all.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class WarpRefiner(nn.Module):
    """How a warp should change, frame by frame; untrained it changes nothing.

    With `harmonics` every token is first multiplied by the waves of its offset (`offset_waves`) and mixed, cell by
    cell: how a patch moves is a sum of such products, since to move a picture is to turn the phases of its waves.
    Told token and offset side by side, the blocks have to make that product of sums, which they are slow to learn.
    """

    def __init__(self, channels: int, extra: int, width: int, blocks: int, harmonics: int = 0):
        super().__init__()
        self.harmonics, inputs = harmonics, channels + extra
        if harmonics:
            waves = (2 * harmonics + 1) ** 2
            self.move = nn.Conv2d(channels * waves + waves - 1, width, 1)
            inputs += width
            self.direct = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
            nn.init.zeros_(self.direct.weight)
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.head = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        self.head.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, warp: Float[Tensor, "b n c h w"], extra: Float[Tensor, "b n e h w"]
    ) -> Float[Tensor, "b n c h w"]:
        """`extra` says where tokens were hit, where inside their cells, and how near (see `readout_channels`)."""
        inputs = torch.cat([warp, extra.to(warp.dtype)], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        if not self.harmonics:
            return self.head(self.blocks(self.stem(inputs))).unflatten(0, warp.shape[:2]).to(warp.dtype)
        tokens, hit, offset = warp.flatten(0, 1), extra.flatten(0, 1)[:, :1], extra.flatten(0, 1)[:, 1:3]
        waves = hit * offset_waves(offset, self.harmonics)
        products = (tokens[:, None] * waves[:, :, None].to(tokens.dtype)).flatten(1, 2)
        products = torch.cat([products, waves[:, 1:].to(tokens.dtype)], 1)
        inputs = torch.cat([self.move(products.contiguous(memory_format=torch.channels_last)), inputs], 1)
        change = self.head(self.blocks(self.stem(inputs))) + self.direct(inputs)
        return change.unflatten(0, warp.shape[:2]).to(warp.dtype)


def offset_waves(offset: Float[Tensor, "n 2 h w"], harmonics: int) -> Float[Tensor, "n k h w"]:
    """All products of {1, cos(j pi x), sin(j pi x)} and the same of y, j = 1 ... `harmonics`; the constant is first."""
    angles = math.pi * torch.arange(1, harmonics + 1, device=offset.device).view(1, -1, 1, 1, 1) * offset[:, None]
    along = torch.cat([torch.ones_like(offset[:, None]), angles.cos(), angles.sin()], 1)
    return (along[:, :, None, 0] * along[:, None, :, 1]).flatten(1, 2)
