"""A memory of one's own: a postcard. It keeps the last picture and shows that to every camera. It wins nothing.

python examples/custom_memory.py        held-out walks with it, beside the built-in memory and none

A package makes it known to presets, training and evaluation by an entry point in its pyproject.toml, and a preset names
it by `memory: {kind: postcard, distance_m: 3.0}`:

    [project.entry-points."mirage_env.memories"]
    postcard = "my_package:Postcard"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mirage_env.evaluation.candidates import generate, with_memory
from mirage_env.evaluation.scores import Judge
from mirage_env.evaluation.suites import load_suite
from mirage_env.memory import ChunkRecord, MemoryReading, State
from mirage_env.memory.none import NoMemory
from mirage_env.memory.protocol import AnyMemoryConfig, Encode
from mirage_env.types import Cameras, Readout
from mirage_env.world_model import load_world


@dataclass(frozen=True)
class PostcardConfig(AnyMemoryConfig):
    kind: Literal["postcard"] = "postcard"
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
        everywhere = torch.ones_like(blank.visible)
        depth = torch.full_like(blank.depth_m, self.config.distance_m)
        return MemoryReading(Readout(tokens, everywhere, depth, blank.offset, torch.zeros_like(blank.index)))


if __name__ == "__main__":
    model = load_world()
    answers = {
        "latent": generate,
        "postcard": with_memory(lambda _: Postcard()),
        "none": with_memory(lambda _: NoMemory()),
    }
    for take in load_suite("novel-view").takes[:2]:
        walk = take.walk(model.size)
        judge = Judge.of(walk, model.latent_size)
        for name, answer in answers.items():
            values = judge.score(answer(model, walk)).values
            print(f"{take.id:<14} {name:<9} {values['psnr_db']:.2f} dB, invented {values['invented_psnr_db']:.2f} dB")
