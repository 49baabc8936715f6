"""The tiny decoder learns to show what the codec shows, of pictures and of what a memory makes of them.

A draft is a mosaic: tokens of several frames side by side, each where its point fell. So a part of every example is
taken from elsewhere in its clip, in single cells and in patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mirage_env.codec.tiny import TinyDecoder, TinyDecoderConfig
from mirage_env.codec.wan import WanCodec, to_uint8
from mirage_env.errors import InvalidValueError
from mirage_env.precision import fast_autocast
from mirage_env.training.clips import ClipStore
from mirage_env.training.codec import psnr, reconstruction_loss
from mirage_env.training.latents import latents_name
from mirage_env.training.log import rows_of_pictures
from mirage_env.training.loop import Stage
from mirage_env.weights import save_weights


@dataclass(frozen=True)
class TinyDecoderLossConfig:
    batch: int = 12
    cells: int = 8
    """Side of the training crops, in latent cells."""
    patches: tuple[int, ...] = (1, 3, 5)
    """How many cells wide what comes from elsewhere is, about."""
    gradient_weight: float = 0.5

    def __post_init__(self) -> None:
        if min(self.batch, self.cells, *self.patches, len(self.patches)) < 1 or not all(p % 2 for p in self.patches):
            raise InvalidValueError(
                "batch and cells must be positive and patches odd numbers, "
                f"got {self.batch}, {self.cells} and {self.patches}; the defaults are 12, 8 and (1, 3, 5)"
            )


class TinyDecoderStage(Stage):
    """Trains on the latents of all clips but the last `held_out` of each store; those of the first store validate."""

    name = "tiny_decoder"

    def __init__(
        self,
        config: TinyDecoderConfig,
        loss: TinyDecoderLossConfig,
        stores: list[ClipStore],
        codec: WanCodec,
        codec_hash: str,
        held_out: int = 32,
        device: str = "cpu",
    ):
        self.codec, self.codec_hash, self.latents = codec.to(device), codec_hash, latents_name(codec_hash)
        self.model = TinyDecoder(config, codec.channels, codec.spatial_stride).to(device)
        self.config, self.loss, self.stores, self.held_out, self.device = config, loss, stores, held_out, device
        side = min(min(store.array(self.latents).shape[-2:]) for store in stores)
        if loss.cells > side:
            raise InvalidValueError(f"crops of {loss.cells} cells do not fit the clips' {side}; set cells to {side}")
        if min(map(len, stores)) <= held_out:
            raise InvalidValueError(
                f"every store needs more clips than the {held_out} held out, got {min(map(len, stores))}; render more"
            )

    def batch(self, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        rng = np.random.default_rng(generator.initial_seed())
        sizes = np.array([len(store) * store.config.frames for store in self.stores])
        store = self.stores[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        clips = rng.integers(0, len(store) - self.held_out, self.loss.batch)
        return self._mosaics(store, clips, self.loss.cells, rng).to(self.device)

    def losses(self, batch: Float[Tensor, "n c h w"], generator: torch.Generator) -> dict[str, Tensor]:
        made, target = self.model(batch), self._target(batch)
        return {
            "loss": reconstruction_loss(made, target, self.loss.gradient_weight),
            "psnr": psnr(made.detach(), target).mean(),
        }

    def validate(self) -> dict[str, float]:
        """PSNR against the codec's own pictures, of mosaics that training never draws."""
        latents = self._unseen(self.held_out)
        return {"psnr_codec": float(psnr(self._shown(latents), self._target(latents)).mean())}

    def strip(self) -> UInt8[np.ndarray, "H W 3"]:
        """The codec's pictures above this decoder's."""
        latents = self._unseen(min(8, self.held_out))
        return rows_of_pictures(*(to_uint8(x).cpu().numpy() for x in (self._target(latents), self._shown(latents))))

    def export(self, folder: Path, card: dict) -> None:
        about = {"kind": self.name, "config": self.config, "codec_hash": self.codec_hash, **card}
        save_weights(folder / f"{self.name}.safetensors", self.model, about)

    @torch.no_grad()
    def _shown(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        with fast_autocast(self.device):
            return self.model(latents).clamp(-1.0, 1.0)

    @torch.no_grad()
    def _target(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        with fast_autocast(self.device):
            return self.codec.decode(latents[:, None])[:, 0].float()

    def _unseen(self, count: int) -> Float[Tensor, "n c h w"]:
        store = self.stores[0]
        clips = np.arange(len(store) - self.held_out, len(store))[:count]
        return self._mosaics(store, clips, None, np.random.default_rng(0)).to(self.device)

    def _mosaics(
        self, store: ClipStore, clips: np.ndarray, side: int | None, rng: np.random.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Crops of `side` cells, or whole frames, of the given clips, with something from elsewhere in them."""
        latents, count = store.array(self.latents), len(clips)
        height, width = latents.shape[-2:] if side is None else (side, side)

        def crops() -> Tensor:
            frames = rng.integers(0, store.config.frames, count).tolist()
            tops = rng.integers(0, latents.shape[-2] - height + 1, count)
            lefts = rng.integers(0, latents.shape[-1] - width + 1, count)
            places = zip(clips.tolist(), frames, tops.tolist(), lefts.tolist(), strict=True)
            cut = [latents[clip, frame, :, y : y + height, x : x + width] for clip, frame, y, x in places]
            return torch.from_numpy(np.stack(cut).astype(np.float32))

        patch = int(rng.choice(self.loss.patches))
        field = torch.from_numpy(rng.standard_normal((count, 1, height, width)).astype(np.float32))
        field = patch * F.avg_pool2d(field, patch, 1, patch // 2)  # about as large as before
        above = torch.from_numpy(rng.uniform(-0.5, 3.0, (count, 1, 1, 1)).astype(np.float32))
        return torch.where(field > above, crops(), crops()).contiguous(memory_format=torch.channels_last)
