"""What the denoiser is told about a chunk, and the clean latents that it predicts from noisy ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mirage_env.denoise.refiner import WarpRefiner
from mirage_env.denoise.transformer import Kept, MemoryTransformer
from mirage_env.errors import InvalidValueError
from mirage_env.geometry.projection import camera_rays
from mirage_env.types import Cameras, Readout

READOUT_CHANNELS = 4
"""Visibility mask, sub-cell offset (x, y), inverse depth."""
RAY_CHANNELS = 6
"""Ray direction and camera centre of every cell, both in the overlap camera's frame."""


@dataclass(frozen=True)
class DenoiserConfig:
    """The shape of a memory-conditioned transformer and what its output means."""

    channels: int = 16
    heads: int = 4
    head_dim: int = 64
    ffn_dim: int = 1024
    layers: int = 6
    memory_layers: tuple[int, ...] = (0, 3)
    patch_size: int = 2
    text_dim: int = 64
    learned_text: bool = True
    """One learned token stands in for words; else the conditions bring the embedding of a prompt."""
    prediction: Literal["velocity", "residual"] = "residual"
    """`residual`: the output is how the clean latent differs from the warped readout; zero weights give the warp."""
    warp_error: float = 0.8
    """`residual`: mean square error of the warp in normalised latents; see `Denoiser._guess`."""
    trust_cells: float = 0.1
    """`residual`: a token read less than this far from where it was written is changed less, at no distance not at all.
    0: all are changed alike, for a memory whose readouts tell no distance."""
    refiner_width: int = 0
    """`residual`: channels of the network that refines the warp before all else; 0 leaves the warp as it is."""
    refiner_blocks: int = 3
    extra_readout: bool = True
    """Also show where inside its cell a point fell and how far it is; the paper shows the mask alone."""
    rays: bool = True
    """Also tell every cell's viewing ray; the paper tells the camera through the readout alone."""
    preceding: int = 2
    """Clean latent frames before the overlap frame."""
    references: int = 2
    """At most this many clean keyframes that saw what the targets will see."""

    def __post_init__(self) -> None:
        if min(self.channels, self.heads, self.head_dim, self.layers, self.patch_size) < 1:
            raise InvalidValueError("channels, heads, head_dim, layers and patch_size of the denoiser must be positive")
        if self.trust_cells < 0:
            raise InvalidValueError(f"trust_cells must not be negative, got {self.trust_cells}")
        if self.refiner_width < 0 or self.refiner_width % 8 or self.refiner_blocks < 1:
            raise InvalidValueError(
                f"refiner_width must be 0 or a multiple of 8 and refiner_blocks positive, got {self.refiner_width} and "
                f"{self.refiner_blocks}"
            )
        if min(self.preceding, self.references) < 0:
            raise InvalidValueError("preceding and references of the denoiser must not be negative")

    def build(self) -> MemoryTransformer:
        """The untrained network; in `residual` mode it predicts no change to the warp."""
        model = MemoryTransformer(
            patch_size=(1, self.patch_size, self.patch_size),
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            in_channels=self.channels,
            out_channels=self.channels,
            text_dim=self.text_dim,
            ffn_dim=self.ffn_dim,
            num_layers=self.layers,
            memory_layers=self.memory_layers,
            readout_channels=READOUT_CHANNELS if self.extra_readout else 1,
            ray_channels=RAY_CHANNELS if self.rays else 0,
            learned_text=self.learned_text,
            rope_max_seq_len=256,
        )
        if self.prediction == "residual":
            nn.init.zeros_(model.proj_out.weight)
            nn.init.zeros_(model.proj_out.bias)
        return model


@dataclass(frozen=True)
class ChunkCondition:
    """All that is known of a chunk before it is denoised: B worlds, f = R + 1 + n + P frames.

    Frame order [R references | overlap, n targets | P preceding]; the readout covers the g = f - R frames after the
    references.
    """

    clean: Float[Tensor, "b f c h w"]
    """Clean latents of references, overlap and preceding; targets hold the warp (see `base`)."""
    noisy: Bool[Tensor, " f"]
    """Which frames are targets."""
    readout: Float[Tensor, "b g c h w"]
    readout_extra: Float[Tensor, "b g 4 h w"]
    rays: Float[Tensor, "b f 6 h w"]
    references: int
    context: Float[Tensor, "b l d"] | None = None
    """What the memory has to say besides the readout, to attend to beside the text; d is `text_dim`."""
    text: Float[Tensor, "b l d"] | None = None
    """The prompt's embedding, where the backbone reads words."""
    memory_scale: float = 1.0
    """How much of the branch's hints the backbone gets; 0 switches the branch off."""
    settled: Float[Tensor, "b n _ h w"] | None = None
    """What the memory knows of the targets for certain: a mask and, where it is 1, the latents."""
    past_sigma: Float[Tensor, " b"] | None = None
    """Noise level of the frames that are called clean, told through their timestep; None: they are."""

    @property
    def base(self) -> Float[Tensor, "b n c h w"]:
        """The warp: the readout, and where that is empty the overlap frame."""
        return self.clean[:, self.noisy]

    @property
    def seen(self) -> Bool[Tensor, "b n 1 h w"]:
        """The target cells that the memory shows."""
        return self.readout_extra[:, self.noisy[self.references :], :1] > 0

    @property
    def known(self) -> Bool[Tensor, "b n 1 h w"]:
        """The target cells that the memory shows or knows for certain."""
        return self.seen if self.settled is None else self.seen | (self.settled[:, :, :1] > 0)

    def with_noise(self, sigma: Float[Tensor, " b"], noise: Float[Tensor, "b f c h w"]) -> ChunkCondition:
        """Noise on the clean frames, and told; targets and memory stay as they are."""
        level = sigma[:, None, None, None, None]
        noised = (1 - level) * self.clean + level * noise
        return replace(self, clean=torch.where(self.noisy[:, None, None, None], self.clean, noised), past_sigma=sigma)

    def to(self, device: torch.device | str) -> ChunkCondition:
        """The same condition on another device."""
        names = ("clean", "noisy", "readout", "readout_extra", "rays", "context", "text", "settled", "past_sigma")
        return replace(self, **{x: getattr(self, x).to(device) for x in names if getattr(self, x) is not None})

    @staticmethod
    def cat(conditions: list[ChunkCondition]) -> ChunkCondition:
        """Worlds with equal segment lengths side by side."""
        names = ("clean", "readout", "readout_extra", "rays", "context", "text", "settled", "past_sigma")
        given = [x for x in names if getattr(conditions[0], x) is not None]
        worlds: dict[str, Any] = {x: torch.cat([getattr(c, x) for c in conditions]) for x in given}
        return replace(conditions[0], **worlds)


def make_condition(
    readout: Readout,
    targets: Cameras,
    history: Float[Tensor, "k c h w"],
    history_cameras: Cameras,
    references: Float[Tensor, "r c h w"],
    reference_cameras: Cameras,
    context: Float[Tensor, "l d"] | None = None,
    text: Float[Tensor, "1 l d"] | None = None,
    settled: Readout | None = None,
) -> ChunkCondition:
    """The condition of one world's next chunk.

    `readout` shows the memory to [overlap, n targets, P preceding]; `history` holds the latents of the P preceding
    frames and, last, of the overlap frame; `targets` are the n target cameras. All cameras are at latent resolution.
    `settled` is what the memory knows of the targets for certain.
    """
    n, overlap, preceding = len(targets), history[-1:], history[:-1]
    seen = readout.visible[1 : 1 + n, None]
    warp = torch.where(seen, readout.tokens[1 : 1 + n].to(overlap.dtype), overlap)
    clean = torch.cat([references, overlap, warp, preceding])
    noisy = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    noisy[len(references) + 1 : len(references) + 1 + n] = True
    cameras = Cameras.cat([reference_cameras, history_cameras[-1:], targets, history_cameras[:-1]])
    return ChunkCondition(
        clean=clean[None],
        noisy=noisy,
        readout=readout.tokens[None].to(overlap.dtype),
        readout_extra=readout_channels(readout)[None],
        rays=ray_channels(cameras, history_cameras[-1:])[None],
        references=len(references),
        context=None if context is None else context[None],
        text=text,
        settled=None if settled is None else torch.cat([settled.visible[:, None].to(overlap), settled.tokens], 1)[None],
    )


def readout_channels(readout: Readout) -> Float[Tensor, "g 4 h w"]:
    """Mask, sub-cell offset and inverse depth (1/m, at most 4); zero where nothing was hit."""
    visible = readout.visible[:, None].float()
    nearness = visible / readout.depth_m[:, None].clamp_min(0.25)
    return torch.cat([visible, readout.offset.float(), nearness], 1)


def ray_channels(cameras: Cameras, origin: Cameras) -> Float[Tensor, "f 6 h w"]:
    """Unit ray direction and camera centre (metres) of every cell, in the frame of camera `origin`."""
    origin_from_camera = origin.camera_from_world @ cameras.world_from_camera
    rays = torch.einsum("fij,fhwj->fihw", origin_from_camera[:, :3, :3], camera_rays(cameras))
    rays = rays / rays.norm(dim=1, keepdim=True)
    centres = origin_from_camera[:, :3, 3, None, None].expand_as(rays)
    return torch.cat([rays, centres], 1)


class Denoiser(nn.Module):
    """Flow matching on top of the transformer: x_sigma = (1 - sigma) x_0 + sigma noise, velocity = noise - x_0."""

    def __init__(self, config: DenoiserConfig, transformer: MemoryTransformer | None = None):
        super().__init__()
        self.config = config
        self.transformer = config.build() if transformer is None else transformer
        self.refiner = (
            WarpRefiner(config.channels, READOUT_CHANNELS, config.refiner_width, config.refiner_blocks)
            if config.refiner_width
            else None
        )

    def refined(self, condition: ChunkCondition) -> ChunkCondition:
        """The condition with a better warp: done once a chunk, before its first `clean`."""
        if self.refiner is None and condition.settled is None:
            return condition
        warp, extra = condition.base, condition.readout_extra[:, condition.noisy[condition.references :]]
        if self.refiner is not None:
            warp = warp + self._doubt(condition) * self.refiner(warp, extra)
        if condition.settled is not None:
            known, latents = condition.settled[:, :, :1] > 0, condition.settled[:, :, 1:]
            warp = torch.where(known, latents.to(warp.dtype), warp)
        clean = condition.clean.clone()
        clean[:, condition.noisy] = warp.to(clean.dtype)
        return replace(condition, clean=clean)

    def clean(
        self,
        sample: Float[Tensor, "b n c h w"],
        sigma: Float[Tensor, " b"],
        condition: ChunkCondition,
        kept: Kept | None = None,
    ) -> Float[Tensor, "b n c h w"]:
        """Predicted clean target latents x_0 at noise level `sigma` in (0, 1].

        Several calls with one condition may share one `kept`: what does not change between them is made once.
        """
        noisy = condition.noisy
        frames = condition.clean.clone()
        if self.config.prediction == "residual":
            frames[:, noisy] = self._guess(sample, sigma, condition.base).to(frames.dtype)
        else:
            frames[:, noisy] = sample.to(frames.dtype)
        past_sigma = torch.zeros_like(sigma) if condition.past_sigma is None else condition.past_sigma
        timestep = 1000.0 * torch.where(noisy, sigma[:, None].float(), past_sigma[:, None].float())
        extra = condition.readout_extra if self.config.extra_readout else condition.readout_extra[:, :, :1]
        output = self.transformer(
            frames.transpose(1, 2),
            timestep,
            self._text(condition),
            readout=condition.readout.transpose(1, 2),
            readout_extra=extra.to(frames.dtype).transpose(1, 2),
            rays=condition.rays.to(frames.dtype).transpose(1, 2) if self.config.rays else None,
            references=condition.references,
            memory_scale=condition.memory_scale,
            kept=kept,
        ).transpose(1, 2)[:, noisy]
        if self.config.prediction == "residual":
            return condition.base + self._doubt(condition) * output.float()
        return sample - sigma[:, None, None, None, None] * output.float()

    def _text(self, condition: ChunkCondition) -> Float[Tensor, "b l d"] | None:
        """What the transformer attends to besides frames; None is its learned null text alone."""
        text, context = condition.text, condition.context
        if context is None:
            return text
        if text is None:
            assert self.transformer.null_text is not None
            text = self.transformer.null_text.expand(len(context), -1, -1)
        return torch.cat([text, context.to(text.dtype)], 1)

    def _guess(
        self, sample: Float[Tensor, "b n c h w"], sigma: Float[Tensor, " b"], base: Float[Tensor, "b n c h w"]
    ) -> Float[Tensor, "b n c h w"]:
        """The linear estimate of x_0 from noisy sample and warp, which the network sees instead of raw noise.

        If the warp errs with variance e and x_sigma / (1 - sigma) with (sigma / (1 - sigma))^2, the best blend gives
        the latter the weight e (1 - sigma)^2 / (e (1 - sigma)^2 + sigma^2): at sigma = 1 this is the warp itself.
        """
        level = sigma[:, None, None, None, None]
        signal = self.config.warp_error * (1.0 - level)
        total = signal * (1.0 - level) + level.square()
        return base + signal / total * (sample - (1.0 - level) * base)

    def _doubt(self, condition: ChunkCondition) -> Float[Tensor, "b n 1 h w"]:
        """How freely each target cell may leave the warp: 0 where the memory knows it, or the camera is back where a
        token was written."""
        targets = condition.readout_extra[:, condition.noisy[condition.references :]]
        distance = targets[:, :, 1:3].norm(dim=2, keepdim=True)
        doubt = torch.ones_like(distance)
        if self.config.trust_cells:
            doubt = torch.where(condition.seen, (distance / self.config.trust_cells).clamp(max=1.0), doubt)
        return doubt if condition.settled is None else doubt * (condition.settled[:, :, :1] == 0)
