"""What the world remembers: the latent spatial memory, its readout, and the recall of past frames."""

from mirage_env.memory.alignment import align_log_scale
from mirage_env.memory.depth_grid import depth_to_grid, straddles_edge
from mirage_env.memory.latent import LatentMemory, MemoryConfig, MemoryState
from mirage_env.memory.protocol import ChunkRecord, Memory, MemoryReading, PastFrames, State, make_memory
from mirage_env.memory.recall import recall
from mirage_env.memory.splat import splat

__all__ = [
    "ChunkRecord",
    "LatentMemory",
    "Memory",
    "MemoryConfig",
    "MemoryReading",
    "MemoryState",
    "PastFrames",
    "State",
    "align_log_scale",
    "depth_to_grid",
    "make_memory",
    "recall",
    "splat",
    "straddles_edge",
]
