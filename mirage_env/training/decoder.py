"""The last stage: the codec's decoder learns to show what a denoiser really hands it, and against a critic.

A denoiser that is unsure of a place predicts the mean of what it could be, and the codec's decoder, which learned from
true latents alone, shows that as fog. Here it sees latents of walks beside the true pictures, and a critic that tells
pictures from truths pays for detail. The encoder stays, and with it the latent space: memory and denoiser notice
nothing. True latents are decoded by the codec's own loss, so that the ceiling stays where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mirage_env.codec.wan import WanCodec, to_float, to_uint8
from mirage_env.errors import InvalidValueError
from mirage_env.training.clips import ClipStore
from mirage_env.training.codec import psnr, reconstruction_loss
from mirage_env.training.latents import denoised_name, latents_name
from mirage_env.training.log import rows_of_pictures
from mirage_env.training.loop import Stage
from mirage_env.weights import save_weights


@dataclass(frozen=True)
class DecoderLossConfig:
    walked: int = 5
    """Crops a batch that are decoded from a walk's latents."""
    frames: int = 3
    """Crops a batch of the simulator's frames, from true latents."""
    photos: int = 4
    """Crops a batch of photographs, from true latents."""
    crop_cells: int = 8
    """Side of the crops, in latent cells."""
    latent_noise: float = 0.1
    """Noise on true latents, in units of their spread, as the codec's own training has it."""
    gradient_weight: float = 0.5
    critic_weight: float = 0.02
    """Of the hinge loss: how much it pays to be taken for a true picture."""
    feature_weight: float = 0.5
    """Of the distance between the critic's features of the picture and of the truth."""
    critic_width: int = 40

    def __post_init__(self) -> None:
        if min(self.walked, self.frames, self.photos, self.crop_cells, self.critic_width) < 1:
            raise InvalidValueError("walked, frames, photos, crop_cells and critic_width must be positive")


class _UnitConv(nn.Conv2d):
    """A convolution whose filters have length 1, which bounds how steep the critic can be."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-6)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Critic(nn.Module):
    """How true each patch of about 30 pixels looks; also gives what it looked at."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                _UnitConv(3, width, 4, 2, 1),
                _UnitConv(width, 2 * width, 4, 2, 1),
                _UnitConv(2 * width, 3 * width, 4, 2, 1),
                _UnitConv(3 * width, 3 * width, 3, 1, 1),
            ]
        )
        self.head = _UnitConv(3 * width, 1, 3, 1, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> tuple[Float[Tensor, "n 1 h w"], list[Tensor]]:
        features, x = [], images
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * 2**0.5
            features.append(x)
        return self.head(x), features


class _Decoder(nn.Module):
    """What is trained: the decoder, and the critic that it has to convince."""

    def __init__(self, codec: WanCodec, width: int):
        super().__init__()
        self.decoder = codec.decoder
        self.critic = Critic(width)


Batch = tuple[Tensor, Tensor]
"""Normalised latents of walks (walked, C, h, w); true pictures (walked + frames + photos, 3, H, W), theirs first."""


class DecoderStage(Stage):
    """Trains on the walks of `walked_by` (the hash of a denoiser) but the last `held_out`, which validate.

    `photos` is a uint8 stack (n, H, W, 3); of it, too, the last `held_out` are kept apart.
    """

    name = "decoder"

    def __init__(
        self,
        codec: WanCodec,
        codec_hash: str,
        loss: DecoderLossConfig,
        stores: list[ClipStore],
        walked_by: str,
        photos: np.ndarray,
        held_out: int = 16,
        device: str = "cpu",
    ):
        self.codec, self.codec_hash, self.loss = codec.to(device).eval(), codec_hash, loss
        self.model: _Decoder = _Decoder(codec, loss.critic_width).to(device).requires_grad_(True)
        self.stores, self.photos, self.held_out, self.device = stores, photos, held_out, device
        self.walks = [store.array(denoised_name(walked_by)) for store in stores]
        self.latents = [store.array(latents_name(codec_hash)) for store in stores]
        side = min(min(walk.shape[-2:]) for walk in self.walks)
        if side < loss.crop_cells:
            raise InvalidValueError(f"crop_cells is {loss.crop_cells}, but the clips are only {side} cells wide")
        if min(map(len, self.walks)) <= held_out:
            raise InvalidValueError(f"{held_out} walks of every store validate; walk along more clips than that")

    def batch(self, generator: torch.Generator) -> Batch:
        rng, loss = np.random.default_rng(generator.initial_seed()), self.loss
        cell, side = self.codec.spatial_stride, loss.crop_cells
        which = int(rng.integers(len(self.stores)))
        rgb, walks = self.stores[which].array("rgb"), self.walks[which]
        count = loss.walked + loss.frames
        clips = rng.integers(0, len(walks) - self.held_out, count)
        frames = rng.integers(1, walks.shape[1], count)  # a walk's first frame is the truth itself
        top, left = (int(rng.integers(0, cells - side + 1)) for cells in walks.shape[-2:])
        walked = slice(loss.walked)
        latents = walks[clips[walked], frames[walked], :, top : top + side, left : left + side].astype(np.float32)
        window = (slice(top * cell, (top + side) * cell), slice(left * cell, (left + side) * cell))
        pictures = rgb[clips, frames, *window]
        top, left = (int(rng.integers(0, pixels - side * cell + 1)) for pixels in self.photos.shape[1:3])
        chosen = np.sort(rng.integers(0, len(self.photos) - self.held_out, loss.photos))
        photos = self.photos[chosen, top : top + side * cell, left : left + side * cell]
        images = to_float(torch.from_numpy(np.concatenate([pictures, photos])))
        return torch.from_numpy(latents).to(self.device), images.to(self.device)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        walked, truth = batch
        with torch.no_grad():
            true = self.codec.encode(truth[len(walked) :])
            noise = torch.randn(true.shape, generator=generator, device=true.device)
            latents = torch.cat([walked, true.float() + self.loss.latent_noise * noise])
        pictures = self.codec.decode_raw(self.codec.denormalise(latents)).float()
        reconstruction = reconstruction_loss(pictures, truth, self.loss.gradient_weight)
        shown, wanted = pictures[: len(walked)], truth[: len(walked)]

        critic = self.model.critic
        frozen = {name: p.detach() for name, p in critic.named_parameters()}
        score, seen = functional_call(critic, frozen, (shown,))
        with torch.no_grad():
            _, expected = critic(wanted)
        features = torch.stack(
            [(a.float() - b.float()).abs().mean() / b.float().abs().mean() for a, b in zip(seen, expected, strict=True)]
        ).mean()
        on_truth, on_shown = critic(truth)[0].float(), critic(shown.detach())[0].float()
        judgement = F.relu(1.0 - on_truth).mean() + F.relu(1.0 + on_shown).mean()
        decoding = reconstruction - self.loss.critic_weight * score.float().mean() + self.loss.feature_weight * features
        return {
            "loss": decoding + judgement,  # neither reaches the other's parameters
            "reconstruction": reconstruction.detach(),
            "features": features.detach(),
            "judgement": judgement.detach(),
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR in dB and gradient energy over the truth's, of walks and of true latents, on the first store."""
        truth, walked = self._unseen(self.held_out)
        truth = to_float(truth).to(self.device)
        result = {}
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            for name, latents in (("walks", walked), ("codec", self.codec.encode(truth))):
                pictures = torch.cat([self.codec.decode(x[None])[0] for x in latents.split(8)]).float()
                result[f"psnr_{name}"] = float(psnr(pictures, truth).mean())
                result[f"detail_{name}"] = _detail(pictures) / _detail(truth)
        return result

    @torch.no_grad()
    def strip(self) -> UInt8[np.ndarray, "H W 3"]:
        """True pictures above what is shown of them."""
        truth, walked = self._unseen(8)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            shown = self.codec.decode(walked[None])[0]
        return rows_of_pictures(truth.numpy(), to_uint8(shown).cpu().numpy())

    def _unseen(self, count: int) -> tuple[UInt8[Tensor, "n H W 3"], Float[Tensor, "n c h w"]]:
        """Pictures and walks' latents of clips that training never draws, at various lengths of walk."""
        rgb, walks = self.stores[0].array("rgb"), self.walks[0]
        clips = np.arange(len(walks) - self.held_out, len(walks))[:count]
        frames = 1 + np.arange(len(clips)) * 4 % (walks.shape[1] - 1)
        latents = torch.from_numpy(walks[clips, frames].astype(np.float32)).to(self.device)
        return torch.from_numpy(rgb[clips, frames]), latents

    def export(self, folder: Path, card: dict) -> None:
        card = {"kind": "decoder", "config": self.codec.config, "codec_hash": self.codec_hash, **card}
        save_weights(folder / "decoder.safetensors", self.model.decoder, card)


def _detail(images: Float[Tensor, "n 3 H W"]) -> float:
    """Mean square difference of neighbouring pixels, in colour."""
    return float(images.diff(dim=-1).square().mean() + images.diff(dim=-2).square().mean())
