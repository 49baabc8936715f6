"""Chunks cut out of clips as a rollout would meet them: what every training of a denoiser draws from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from mirage_env.denoise.denoiser import ChunkCondition, Denoiser, make_condition
from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import camera_motion
from mirage_env.memory.depth_grid import depth_to_grid
from mirage_env.memory.protocol import ChunkRecord, Memory, PastFrames
from mirage_env.memory.recall import recall
from mirage_env.training.clips import DYNAMIC, SKY
from mirage_env.training.loop import Stage
from mirage_env.types import Cameras, Readout


@dataclass(frozen=True)
class ChunkConfig:
    batch: int = 8
    chunks: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of target frames, drawn evenly a batch."""
    keyframe_stride: int = 4
    history_noise: float = 0.1
    """At most this much noise on tokens and clean frames, untold, as a rollout's own errors would put there."""
    references: int | None = None
    """At most so many reference frames, 0 too, drawn evenly a sample; None: as many as the denoiser is used with."""


@dataclass(frozen=True)
class Clip:
    """t latent frames and what is known of them. Depth, masks and pictures are those of every `key_stride`-th."""

    cameras: Cameras
    """At pixel resolution."""
    latents: Float[Tensor, "t c h w"]
    """The truth."""
    held: Float[Tensor, "t c h w"]
    """As a rollout would hold them: keyframes as image latents."""
    depth_m: Float[np.ndarray, "k H W"]
    masks: UInt8[np.ndarray, "k H W"]
    """Bits `SKY` and `DYNAMIC`."""
    rgb: UInt8[np.ndarray, "k H W 3"]
    text: Float[Tensor, "1 l d"] | None = None
    """The caption's embedding, where the backbone reads words."""
    references: Mapping[int, Sequence[int]] | None = None
    """Past keyframes that saw what comes after a frame, the best first; None: they are looked for when it is drawn."""


@runtime_checkable
class ClipSource(Protocol):
    """Clips of equal length and size."""

    frames: int
    """Latent frames of a clip."""
    key_stride: int
    """Every how many-th frame may be a keyframe."""

    def __len__(self) -> int: ...

    def overlaps(self, targets: int) -> Sequence[int]:
        """The frames after which a chunk of so many targets may come."""

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        """One clip; without `rng` nothing about it is left to chance."""


@dataclass(frozen=True)
class _Rollout:
    """A clip, and what a rollout along it would know before its next chunk; frames count from the clip's first."""

    cameras: Cameras
    """Of every frame, at latent resolution."""
    latents: Float[Tensor, "t c h w"]
    """The truth."""
    history: Float[Tensor, "t c h w"]
    """The same as the rollout holds them, with its errors."""
    references: PastFrames
    """Past frames that saw what the targets will see, the best first."""
    readout: Readout
    """The memory as the overlap frame, the targets and the preceding frames see it."""
    settled: Readout | None
    """What it knows of the targets for certain."""
    context: Float[Tensor, "l d"] | None
    """What else it has to say."""
    text: Float[Tensor, "1 l d"] | None


class ChunkStage(Stage):
    """Trains a denoiser on all clips but the last `held_out` of each source, which validate."""

    model: Denoiser

    def __init__(
        self,
        model: Denoiser,
        loss: ChunkConfig,
        memory: Memory,
        sources: Sequence[ClipSource],
        held_out: int,
        device: torch.device | str,
    ):
        self.model, self.loss, self.sources, self.held_out = model.to(device), loss, sources, held_out
        self.config, self.memory, self.device = model.config, memory, torch.device(device)
        for source in sources:
            if loss.keyframe_stride % source.key_stride:
                raise InvalidValueError(
                    f"the clips know every {source.key_stride}-th frame, which keyframe_stride {loss.keyframe_stride} "
                    "is no multiple of; set it to one"
                )

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of the denoiser, and those of the memory, which learns from the same loss."""
        if not isinstance(self.memory, nn.Module):
            return super().parameters()
        of_memory = {f"memory.{n}": p for n, p in self.memory.named_parameters() if p.requires_grad}
        return super().parameters() | of_memory

    def network(self) -> nn.Module:
        return self.model.transformer

    def batch(self, generator: torch.Generator) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"]]:
        rng = np.random.default_rng(generator.initial_seed())
        which, clips, overlap, n = self.draw(rng)
        return self.chunks(which, clips, overlap, n, rng)

    def draw(self, rng: np.random.Generator) -> tuple[int, np.ndarray, int, int]:
        """See `draw_chunks`."""
        return draw_chunks(self.sources, self.loss, self.held_out, rng)

    @abstractmethod
    def losses(
        self, batch: tuple[ChunkCondition, Float[Tensor, "b n c h w"]], generator: torch.Generator
    ) -> dict[str, Tensor]: ...

    def denoised(
        self,
        condition: ChunkCondition,
        clean: Float[Tensor, "b n c h w"],
        noise: Float[Tensor, "b n c h w"],
        sigma: Float[Tensor, " b"],
    ) -> Float[Tensor, "b n c h w"]:
        """The model's clean latents of x_sigma = (1 - sigma) clean + sigma noise (Eq. 3)."""
        level = sigma[:, None, None, None, None]
        return self.model.clean((1 - level) * clean + level * noise, sigma, condition)

    def chunks(
        self, which: int, clips: np.ndarray, overlap: int, n: int, rng: np.random.Generator | None
    ) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"]]:
        """Condition and clean latents of the n frames after frame `overlap`; no noise and no choice without `rng`."""
        source = self.sources[which]
        return self.chunks_of([source.clip(int(clip), rng) for clip in clips], source.key_stride, overlap, n, rng)

    def chunks_of(
        self, clips: Sequence[Clip], key_stride: int, overlap: int, n: int, rng: np.random.Generator | None
    ) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"]]:
        """See `chunks`."""
        worlds = [self._world(clip, key_stride, overlap, n, rng) for clip in clips]
        count = min(len(world.references.latents) for world in worlds)
        past, coming = slice(max(0, overlap - self.config.preceding), overlap + 1), slice(overlap + 1, overlap + 1 + n)
        conditions = []
        for world in worlds:
            references = world.references[:count]
            conditions.append(
                make_condition(
                    world.readout,
                    world.cameras[coming],
                    world.history[past],
                    world.cameras[past],
                    references.latents,
                    references.cameras,
                    world.context,
                    world.text,
                    world.settled,
                )
            )
        targets = torch.stack([world.latents[coming] for world in worlds])
        return ChunkCondition.cat(conditions).to(self.device), targets.to(self.device)

    def _world(self, clip: Clip, key_stride: int, overlap: int, n: int, rng: np.random.Generator | None) -> _Rollout:
        """The clip as a rollout that has come to frame `overlap` meets it."""
        h, w = clip.latents.shape[2:]
        grid_cameras = clip.cameras.resized((h, w))
        history, keys, record = past_of(clip, key_stride, overlap, self.loss, rng)
        state = self.memory.write(self.memory.empty(history.shape[1]), record)
        views = torch.cat(
            [torch.arange(overlap, overlap + 1 + n), torch.arange(max(0, overlap - self.config.preceding), overlap)]
        )
        reading = self.memory.read(state, grid_cameras[views])
        readout = reading.grid or Readout.blank(grid_cameras[views], history.shape[1])
        settled = reading.settled(slice(1, 1 + n)) if reading.settled else None
        count = self.config.references
        if rng is not None:
            most = count if self.loss.references is None else self.loss.references
            count = int(rng.integers(0, most + 1))
        if reading.frames is None:
            past = keys[:-1]
            if clip.references is None:
                grid = depth_to_grid(record.depth_m[:-1], record.static[:-1], (h, w))
                chosen = past[recall(grid, grid_cameras[past], grid_cameras[overlap + 1 : overlap + 1 + n], count)]
            else:
                chosen = torch.tensor(
                    [k for k in clip.references[overlap] if k in past.tolist()][:count], dtype=torch.int64
                )
            references = PastFrames(history[chosen], grid_cameras[chosen])
        else:
            references = reading.frames[:count]
        return _Rollout(grid_cameras, clip.latents, history, references, readout, settled, reading.tokens, clip.text)


def draw_chunks(
    sources: Sequence[ClipSource], loss: ChunkConfig, held_out: int, rng: np.random.Generator
) -> tuple[int, np.ndarray, int, int]:
    """A source, clips of it, the frame after which their chunks come, and how many frames these have."""
    shares = np.array([len(source) * source.frames for source in sources], dtype=float)
    which = int(rng.choice(len(sources), p=shares / shares.sum()))
    n = min(int(rng.choice(loss.chunks)), sources[which].frames - 1)
    overlaps = sources[which].overlaps(n)
    overlap = overlaps[int(rng.integers(0, len(overlaps)))]
    return which, rng.integers(0, len(sources[which]) - held_out, loss.batch), overlap, n


def past_of(
    clip: Clip, key_stride: int, overlap: int, loss: ChunkConfig, rng: np.random.Generator | None
) -> tuple[Float[Tensor, "t c h w"], Int64[Tensor, " k"], ChunkRecord]:
    """What a rollout that has come to frame `overlap` holds: every frame with its errors, which of them are keyframes,
    and these as it writes them."""
    history = clip.held
    if rng is not None:
        noise = torch.from_numpy(rng.standard_normal(history.shape, dtype=np.float32))
        history = history + float(rng.uniform(0, loss.history_noise)) * noise
    keys = torch.tensor(sorted({0, *range(overlap, -1, -loss.keyframe_stride)}))
    if rng is not None and rng.random() < 0.3:  # worlds that have seen little
        keys = keys[-1:]
    rows = (keys // key_stride).numpy()
    depth = torch.from_numpy(clip.depth_m[rows].astype(np.float32))
    masks = torch.from_numpy(np.array(clip.masks[rows]))
    sky, dynamic = (masks & SKY) > 0, (masks & DYNAMIC) > 0
    rgb = torch.from_numpy(np.array(clip.rgb[rows]))
    moves = camera_motion(clip.cameras[keys])
    return history, keys, ChunkRecord(history[keys], depth, sky, dynamic, clip.cameras[keys], rgb, moves)
