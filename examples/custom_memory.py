"""A memory of one's own: a postcard. It keeps the last picture and shows that to every camera. It wins nothing.

python examples/custom_memory.py        scores it on a held-out walk, beside the model with its own memory and with none

A package makes it known to presets, training and `mirage-env eval` by an entry point in its pyproject.toml, and a
preset names it by `memory: {kind: postcard, distance_m: 2.0}`:

    [project.entry-points."mirage_env.memories"]
    postcard = "my_package:Postcard"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mirage_env.memory import ChunkRecord, MemoryReading, State
from mirage_env.memory.protocol import MEMORIES, AnyMemoryConfig, Encode
from mirage_env.types import Cameras, Readout


@dataclass(frozen=True)
class PostcardConfig(AnyMemoryConfig):
    kind: str = "postcard"
    distance_m: float = 3.0


@dataclass(frozen=True)
class PostcardState(State):
    tokens: Tensor  # (0 or 1, C, h, w)

    def __len__(self) -> int:
        return len(self.tokens)


class Postcard(nn.Module):
    """An `nn.Module`, because its contrast is learned together with the denoiser; others need not be one."""

    config_class: ClassVar = PostcardConfig
    state_class: ClassVar = PostcardState

    def __init__(self, config: PostcardConfig | None = None, encode: Encode | None = None):
        super().__init__()
        self.config = config or PostcardConfig()
        self.contrast = nn.Parameter(torch.ones(()))

    def empty(self, channels: int, device: torch.device | str = "cpu") -> PostcardState:
        return PostcardState(torch.zeros(0, channels, 1, 1, device=device))

    def write(self, state: PostcardState, record: ChunkRecord) -> PostcardState:
        return PostcardState(record.latents[-1:])

    def read(self, state: PostcardState, cameras: Cameras) -> MemoryReading:
        if len(state) == 0:
            return MemoryReading()
        blank = Readout.blank(cameras, state.tokens.shape[1])
        tokens = self.contrast * state.tokens.expand_as(blank.tokens)
        everywhere, depth = torch.ones_like(blank.visible), torch.full_like(blank.depth_m, self.config.distance_m)
        return MemoryReading(Readout(tokens, everywhere, depth, blank.offset, torch.zeros_like(blank.index)))


if __name__ == "__main__":
    from mirage_env.cli import app

    MEMORIES["postcard"] = Postcard  # in place of an installed package
    app(["eval", "run", "--scenes", "1", "--size", "64", "--with", "postcard", "--out", "eval/postcard"])
