"""Stage 1: the image codec, on crops of simulator frames and photographs. Frozen ever after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mirage_env.codec.wan import CodecConfig, WanCodec, to_float, to_uint8
from mirage_env.precision import fast_autocast
from mirage_env.training.log import rows_of_pictures
from mirage_env.training.loop import Stage
from mirage_env.weights import save_weights


@dataclass(frozen=True)
class CodecLossConfig:
    batch: int = 16
    crop: int = 64
    """Side of the training crops, in pixels."""
    photo_share: float = 0.4
    latent_noise: float = 0.1
    """Noise on the latents, in units of their spread, so that decoding forgives a denoiser's small errors."""
    gradient_weight: float = 0.5
    size_weight: float = 1e-3
    """Keeps the latents near unit size; stands in for the KL term of a sampled posterior."""


def reconstruction_loss(
    prediction: Float[Tensor, "n 3 H W"], target: Float[Tensor, "n 3 H W"], gradient_weight: float
) -> Float[Tensor, ""]:
    """|e| + 2 e^2, and the same pull on differences of neighbours, which keeps edges sharp."""
    error = prediction.float() - target
    dx, dy = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2.0 * error.square().mean() + gradient_weight * (dx + dy)


def psnr(prediction: Tensor, target: Tensor) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio in dB of each picture in [-1, 1], shape (n, ...)."""
    return 10.0 * torch.log10(4.0 / (prediction.float() - target.float()).square().flatten(1).mean(1).clamp_min(1e-10))


class CodecStage(Stage):
    """`frames` and `photos` are uint8 stacks (n, H, W, 3); the last `held_out` of each are for validation only."""

    name = "codec"

    def __init__(
        self,
        config: CodecConfig,
        loss: CodecLossConfig,
        frames: np.ndarray,
        photos: np.ndarray,
        held_out: int = 64,
        device: str = "cpu",
    ):
        self.model: WanCodec = WanCodec(config).to(device)
        self.config, self.loss, self.device = config, loss, device
        self.sources = [(photos, loss.photo_share), (frames, 1.0 - loss.photo_share)]
        self.held_out = held_out

    def losses(self, batch: Float[Tensor, "n 3 h w"], generator: torch.Generator) -> dict[str, Tensor]:
        images = batch
        latents = self.model.moments(images)[:, : self.config.channels]
        spread = latents.detach().float().std(dim=(0, 2, 3), keepdim=True)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        noisy = latents + self.loss.latent_noise * spread * noise
        prediction = self.model.decode_raw(noisy)
        reconstruction = reconstruction_loss(prediction, images, self.loss.gradient_weight)
        size = latents.float().square().mean()
        return {
            "loss": reconstruction + self.loss.size_weight * size,
            "psnr": psnr(prediction.detach(), images).mean(),
            "latent_size": size.detach(),
        }

    def batch(self, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
        cpu = torch.Generator().manual_seed(generator.initial_seed())
        crops, side = [], self.loss.crop
        for _ in range(self.loss.batch):
            photo = torch.rand((), generator=cpu).item() < self.loss.photo_share
            pictures = self.sources[0 if photo else 1][0]
            height, width = pictures.shape[1:3]
            index = int(torch.randint(len(pictures) - self.held_out, (), generator=cpu))
            top = int(torch.randint(height - side + 1, (), generator=cpu))
            left = int(torch.randint(width - side + 1, (), generator=cpu))
            crops.append(torch.from_numpy(pictures[index, top : top + side, left : left + side].copy()))
        return to_float(torch.stack(crops)).to(self.device)

    def validate(self) -> dict[str, float]:
        result = {}
        for name, (pictures, _) in zip(("photos", "frames"), self.sources, strict=True):
            images = to_float(torch.from_numpy(np.array(pictures[-self.held_out :]))).to(self.device)
            with fast_autocast(self.device):
                prediction = self.model.decode_raw(self.model.moments(images)[:, : self.config.channels])
            result[f"psnr_{name}"] = float(psnr(prediction.clamp(-1, 1), images).mean())
        return result

    def strip(self) -> UInt8[np.ndarray, "H W 3"]:
        """Photographs and frames, above what the codec makes of them."""
        pictures = np.concatenate([p[-self.held_out :][:4] for p, _ in self.sources])
        images = to_float(torch.from_numpy(pictures)).to(self.device)
        with fast_autocast(self.device):
            decoded = self.model.decode_raw(self.model.moments(images)[:, : self.config.channels])
        return rows_of_pictures(pictures, to_uint8(decoded.float()).cpu().numpy())

    def measure_statistics(self) -> None:
        """Stores mean and spread per latent channel, so that the denoiser sees unit scale."""
        rng = np.random.default_rng(0)
        stack = np.concatenate([p[np.sort(rng.integers(0, len(p), 256))] for p, _ in self.sources])
        with torch.no_grad():
            z = torch.cat([self.model.moments(to_float(b).to(self.device)) for b in torch.from_numpy(stack).split(32)])
        z = z[:, : self.config.channels].float()
        self.model.mean.copy_(z.mean(dim=(0, 2, 3)))
        self.model.std.copy_(z.std(dim=(0, 2, 3)))

    def export(self, folder: Path, card: dict) -> None:
        self.measure_statistics()
        save_weights(folder / "codec.safetensors", self.model, {"kind": "codec", "config": self.config, **card})
