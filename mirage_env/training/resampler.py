"""What a resampled memory reads with: the token in the middle of a cell, from those around the point that shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mirage_env.codec.wan import WanCodec
from mirage_env.memory.resampled import ResampledMemory, View
from mirage_env.precision import fast_autocast
from mirage_env.training.chunks import draw_chunks, past_of
from mirage_env.training.clips import ClipStore
from mirage_env.training.loop import Stage
from mirage_env.training.world import WorldLossConfig, pixel_error, pixel_metric, simulator_clips
from mirage_env.weights import save_weights

Batch = tuple[View, Float[Tensor, "V c h w"]]
"""What memories show to views, and the latents of the true pictures there."""


class ResamplerStage(Stage):
    """Trains on all clips of the stores but the last `held_out` of each; those of the first validate."""

    name = "memory"

    def __init__(
        self,
        memory: ResampledMemory,
        loss: WorldLossConfig,
        stores: list[ClipStore],
        codec: WanCodec,
        codec_hash: str,
        perception_hash: str,
        held_out: int = 32,
        device: str = "cpu",
    ):
        self.memory, self.loss, self.held_out, self.device = memory, loss, held_out, device
        self.model = memory.resampler.to(device)
        self.codec_hash = codec_hash
        self.sources = simulator_clips(stores, loss, codec_hash, perception_hash, None)
        self.metric = pixel_metric(codec, torch.from_numpy(np.array(stores[0].array("rgb")[:8, 0]))).to(device)

    def batch(self, generator: torch.Generator) -> Batch:
        rng = np.random.default_rng(generator.initial_seed())
        return self._views(*draw_chunks(self.sources, self.loss, self.held_out, rng), rng)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        view, truth = batch
        return {"loss": self._error(self.model(view), view, truth)}

    def validate(self) -> dict[str, float]:
        """Square error, as pixels show it, of what is shown of the last frames of clips: what is read, and the points'
        own tokens."""
        source = self.sources[0]
        n = min(8, source.frames - 1)
        clips = np.arange(len(source) - self.held_out, len(source))
        view, truth = self._views(0, clips, source.frames - 1 - n, n, None)
        with fast_autocast(self.device):
            read = self.model(view)
        own = view.around[:, : truth.shape[1]]
        return {"error": float(self._error(read, view, truth)), "own_error": float(self._error(own, view, truth))}

    def export(self, folder: Path, card: dict) -> None:
        card = {"kind": "memory", "config": self.memory.config, "codec_hash": self.codec_hash, **card}
        save_weights(folder / f"{self.name}.safetensors", self.memory, card)

    def _views(self, which: int, clips: np.ndarray, overlap: int, n: int, rng: np.random.Generator | None) -> Batch:
        """What the n frames after frame `overlap` see of the memory there."""
        source, views, truths = self.sources[which], [], []
        for number in clips.tolist():
            clip = source.clip(number, rng)
            _, _, record = past_of(clip, source.key_stride, overlap, self.loss, rng)
            state = self.memory.write(self.memory.empty(clip.latents.shape[1]), record)
            coming = slice(overlap + 1, overlap + 1 + n)
            h, w = clip.latents.shape[2:]
            cameras = clip.cameras[coming].resized((h, w))
            grid = self.memory.points.read(state, cameras).grid
            assert grid is not None
            views.append(self.memory.view(state, cameras, grid))
            truths.append(clip.latents[coming])
        together = View(*(torch.cat(parts).to(self.device) for parts in zip(*views, strict=True)))
        return together, torch.cat(truths).to(self.device)

    def _error(self, read: Tensor, view: View, truth: Tensor) -> Tensor:
        """Mean of e^T G e over the cells that are shown; see `pixel_metric`."""
        error = pixel_error(read - truth, self.metric) * view.shown
        return error.sum() / view.shown.sum().clamp_min(1)
