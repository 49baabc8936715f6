"""No memory: every view is blank. What the others are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mirage_env.memory.protocol import AnyMemoryConfig, ChunkRecord, Encode, MemoryReading, State
from mirage_env.types import Cameras


@dataclass(frozen=True)
class NoMemoryConfig(AnyMemoryConfig):
    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class NoMemoryState(State):
    def __len__(self) -> int:
        return 0


class NoMemory:
    """Writes nothing and has nothing to say; the denoiser's preceding and reference frames stay."""

    config_class: ClassVar = NoMemoryConfig
    state_class: ClassVar = NoMemoryState

    def __init__(self, config: NoMemoryConfig | None = None, encode: Encode | None = None):
        self.config = config or NoMemoryConfig()

    def empty(self, channels: int, device: torch.device | str = "cpu") -> NoMemoryState:
        return NoMemoryState()

    def write(self, state: NoMemoryState, record: ChunkRecord) -> NoMemoryState:
        return state

    def read(self, state: NoMemoryState, cameras: Cameras) -> MemoryReading:
        return MemoryReading()
