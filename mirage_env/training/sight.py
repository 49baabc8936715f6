"""The last stage: perception goes on, now also shown what the finished denoiser makes, as a world shows it.

True pictures alone teach it that what is blurred is near: a camera that all but touches a wall sees no detail, either.
A world whose inventions are taken for walls close by is narrow, and what was written there narrows the next chunk.
Here the truth stands beside every generated picture: how the simulator's scene goes on.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirage_env.errors import InvalidValueError
from mirage_env.perception.tiny import TinyPerception, perception_inputs
from mirage_env.precision import fast_autocast
from mirage_env.training.clips import ClipStore
from mirage_env.training.latents import glimpse_name, glimpse_stride
from mirage_env.training.perception import Batch, PerceptionLossConfig, PerceptionStage, mirrored


class SightStage(PerceptionStage):
    """Goes on from `start`, with what the stores hold of the denoiser of that hash; see `glimpse_clips`."""

    name = "sight"

    def __init__(
        self,
        start: TinyPerception,
        loss: PerceptionLossConfig,
        stores: list[ClipStore],
        denoiser_hash: str,
        strides: tuple[int, ...],
        held_out: int = 32,
        device: str = "cpu",
    ):
        super().__init__(start.config, loss, stores, held_out, device)
        self.model.load_state_dict(start.state_dict())
        self.glimpses, self.strides = glimpse_name(denoiser_hash), strides
        rows = min(len(store.array(self.glimpses)) for store in stores)
        if rows <= held_out:
            raise InvalidValueError(f"walk along more clips than the {held_out} held out, got {rows}")

    def batch(self, generator: torch.Generator) -> tuple[Batch, Batch]:  # type: ignore[override]
        """True pictures, and as many generated ones."""
        rng = np.random.default_rng(np.random.SeedSequence([generator.initial_seed(), 1]))
        store = self.stores[int(rng.integers(len(self.stores)))]
        rows = rng.integers(0, len(store.array(self.glimpses)) - self.held_out, self.loss.batch)
        frames = np.array([rng.choice(self._moments(store, row)) for row in rows.tolist()])
        scales = np.exp(self.loss.scale_noise * rng.standard_normal(self.loss.batch)).astype(np.float32)
        made = self._generated(store, rows, frames, torch.from_numpy(scales))
        return super().batch(generator), mirrored(made) if rng.random() < 0.5 else made

    def losses(self, batch: tuple[Batch, Batch], generator: torch.Generator) -> dict[str, Tensor]:  # type: ignore[override]
        """Where little can be known, the relative error is least for an answer that is too near; its logarithm's is
        for the median, so that an invented place is neither narrow nor wide."""
        true, made = self.errors(batch[0], relative_share=0.5), self.errors(batch[1], relative_share=0.0)
        return {
            "loss": true["loss"] + made["loss"],
            "log_depth": true["log_depth"],
            "log_depth_generated": made["log_depth"],
        }

    def validate(self) -> dict[str, float]:
        """Also how far depth is off in generated pictures that training never draws, and to which side: mean absolute
        and median error of its natural logarithm where the memory shows nothing."""
        store = self.stores[0]
        rows = np.arange(len(store.array(self.glimpses)))[-self.held_out :]
        frames = np.array([self._moments(store, row)[-1] for row in rows.tolist()])
        inputs, depth, sky, _ = self._generated(store, rows, frames, torch.ones(len(rows)))
        with fast_autocast(self.device):
            log_depth = torch.cat([self.model.logits(x)[:, 0] for x in inputs.split(8)])
        unknown = (inputs[:, -1] == 0) & ~sky
        error = (log_depth - depth.clamp_min(1e-2).log())[unknown] if unknown.any() else torch.zeros(1)
        return super().validate() | {
            "log_error_generated": float(error.abs().mean()),
            "bias_generated": float(error.median()),
        }

    def _moments(self, store: ClipStore, row: int) -> np.ndarray:
        """The frames of a row that were generated: all that were walked but the first."""
        stride = glimpse_stride(row, self.strides)
        return np.arange(stride, store.config.frames, stride)

    def _generated(self, store: ClipStore, rows: np.ndarray, frames: np.ndarray, scales: Tensor) -> Batch:
        """Generated pictures with what the memory showed, off by `scales`, and the truth."""
        clips = len(store) - len(store.array(self.glimpses)) + rows
        images = torch.from_numpy(store.array(self.glimpses)[rows, frames].astype(np.float32)) / 127.5 - 1
        known = torch.from_numpy(store.array(f"{self.glimpses}-memory")[rows, frames].astype(np.float32))
        inputs = perception_inputs(images, store.cameras(clips, frames), scales[:, None, None] * known, 0.0)
        return inputs.to(self.device), *self.truth(store, clips, frames)
