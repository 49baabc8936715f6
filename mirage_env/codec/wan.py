"""The image codec: diffusers' `AutoencoderKLWan`, as a still-image and a video codec.

A codec without temporal stride describes every frame alone. Its causal 3-D convolutions then only ever see zero padding
in the past, so all but their last temporal tap multiply zeros. `fold_frames` keeps that last tap as a 2-D convolution:
the same numbers for a third of the arithmetic and of the file, and every latent is an image latent. Norms and
upsampling it puts in forms that do less for the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    DupUp3D,
    WanCausalConv3d,
    WanResample,
    WanRMS_norm,
    patchify,
    unpatchify,
)
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError, check_stride
from mirage_env.weights.checkpoint import part_bytes, part_config


@dataclass(frozen=True)
class CodecConfig:
    """The shape of an `AutoencoderKLWan`."""

    channels: int = 16
    """Latent channels C."""
    base_dim: int = 32
    decoder_base_dim: int = 32
    dim_mult: tuple[int, ...] = (1, 2, 4)
    temporal_downsample: tuple[bool, ...] = (False, False)
    num_res_blocks: int = 2
    is_residual: bool = False
    patch_size: int = 2

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise InvalidValueError(
                "temporal_downsample needs one entry between two levels of dim_mult, "
                f"that is {len(self.dim_mult) - 1}, got {len(self.temporal_downsample)}"
            )

    @property
    def spatial_stride(self) -> int:
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.temporal_downsample)

    def build(self) -> AutoencoderKLWan:
        """The untrained network."""
        channels = self.channels
        return AutoencoderKLWan(**self.shape(), latents_mean=[0.0] * channels, latents_std=[1.0] * channels)

    def shape(self) -> dict[str, Any]:
        """The same in the words of `AutoencoderKLWan`."""
        return {
            "base_dim": self.base_dim,
            "decoder_base_dim": self.decoder_base_dim,
            "z_dim": self.channels,
            "dim_mult": list(self.dim_mult),
            "num_res_blocks": self.num_res_blocks,
            "temperal_downsample": list(self.temporal_downsample),
            "is_residual": self.is_residual,
            "in_channels": 3 * self.patch_size**2,
            "out_channels": 3 * self.patch_size**2,
            "patch_size": self.patch_size if self.patch_size > 1 else None,
            "scale_factor_temporal": self.temporal_stride,
            "scale_factor_spatial": self.spatial_stride,
        }


class FrameConv(nn.Conv2d):
    """The last temporal tap of a causal 3-D convolution: all that acts on a frame whose past is zero padding."""

    @classmethod
    def of(cls, conv: WanCausalConv3d) -> FrameConv:
        frame = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size[1:], conv.stride[1:], padding=conv._padding[0]
        ).to(conv.weight.device, conv.weight.dtype)
        frame.load_state_dict({"weight": conv.weight[:, :, -1], "bias": conv.bias})
        return frame

    def forward(self, x: Float[Tensor, "b c 1 h w"], cache_x: None = None) -> Float[Tensor, "b d 1 h2 w2"]:
        return super().forward(x[:, :, 0])[:, :, None]


class FrameNorm(nn.Module):
    """`WanRMS_norm` that stays in the precision of what it is given, but for the norm, and makes one copy of it.

    Float32 and bfloat16; in float16 what is near zero would overflow.
    """

    def __init__(self, norm: WanRMS_norm):
        super().__init__()
        self.gamma, self.scale = norm.gamma, norm.scale

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        with torch.autocast(x.device.type, enabled=False):  # it would copy all of x
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
        unit, gamma = x * (self.scale / norm).to(x.dtype), self.gamma.to(x.dtype)
        return unit * gamma if torch.is_grad_enabled() else unit.mul_(gamma)


class FrameSiLU(nn.Module):
    """SiLU of what a norm has just made, in its place where no gradient needs it."""

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class FrameUpConv(nn.Conv2d):
    """A 3 x 3 convolution of the picture that is twice as large, every pixel repeated, made from the small one.

    Of the nine taps at most four meet different pixels there: an even output row sees the rows i - 1, i, i, an odd one
    i, i, i + 1, and columns alike. So four convolutions of 2 x 2 taps, one for each parity, are the same numbers for
    four ninths of the arithmetic.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> FrameUpConv:
        assert conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.bias is not None
        up = cls(conv.in_channels, conv.out_channels, 3, padding=1)
        up.weight, up.bias = conv.weight, conv.bias
        return up

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        assert self.bias is not None
        height, width = x.shape[-2:]
        taps = _parities(_parities(self.weight, 3), 3)  # (row parity, column parity, d, c, 2, 2)
        taps = taps.flatten(0, 2).contiguous(memory_format=torch.channels_last)
        made = F.conv2d(x, taps, self.bias.repeat(4), padding=1).permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))
        whole = made.new_empty(len(x), 2 * height, 2 * width, self.out_channels)
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            whole[:, a::2, b::2] = made[:, a : a + height, b : b + width, a, b]
        return whole.permute(0, 3, 1, 2)


def _parities(weight: Tensor, axis: int) -> Tensor:
    """The three taps along an axis as two, for even and for odd outputs (in front)."""
    before, middle, after = weight.unbind(axis)
    even, odd = (before, middle + after), (before + middle, after)
    return torch.stack([torch.stack(taps, axis) for taps in (even, odd)])


class FrameRepeat(nn.Module):
    """`DupUp3D` for as many channels as it is given: every pixel four times."""

    def forward(self, x: Float[Tensor, "b c 1 h w"], first_chunk: bool = False) -> Float[Tensor, "b c 1 h2 w2"]:
        return F.interpolate(x[:, :, 0], scale_factor=2.0, mode="nearest")[:, :, None]


def fold_frames(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Replaces, in place, every causal convolution by its last temporal tap; only exact for frames coded one by one.

    Norms and upsampling are replaced by faster ones. The weights keep their names.
    """
    for parent in list(vae.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, WanCausalConv3d):
                setattr(parent, name, FrameConv.of(child))
            elif isinstance(child, WanRMS_norm):
                setattr(parent, name, FrameNorm(child))
            elif isinstance(child, nn.SiLU):
                setattr(parent, name, FrameSiLU())
            elif isinstance(child, WanResample) and child.mode == "upsample2d":
                child.resample = nn.Sequential(nn.Identity(), FrameUpConv.of(child.resample[1]))
            elif isinstance(child, DupUp3D) and (child.factor_t, child.factor_s, child.repeats) == (1, 2, 4):
                setattr(parent, name, FrameRepeat())
    return vae


def unfold_frames(vae: AutoencoderKLWan, config: CodecConfig) -> AutoencoderKLWan:
    """The stock `AutoencoderKLWan` that a folded one stands for: the same taps, zeros in the past."""
    stock = config.build()
    state = {}
    for name, tensor in stock.state_dict().items():
        folded = vae.state_dict()[name]
        if tensor.shape != folded.shape:
            tensor = torch.zeros_like(tensor)
            tensor[:, :, -1] = folded
            folded = tensor
        state[name] = folded
    stock.load_state_dict(state)
    return stock.eval()


class WanCodec(nn.Module):
    """Images and short videos <-> normalised latents, (z - mean) / std per channel.

    `frames_alone` says that the network was folded: every frame is coded as a still image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: CodecConfig, vae: AutoencoderKLWan | None = None):
        super().__init__()
        self.config = config
        self.frames_alone = config.temporal_stride == 1
        vae = config.build() if vae is None else vae
        self.vae = fold_frames(vae) if self.frames_alone else vae
        if self.frames_alone:
            self.vae.to(memory_format=torch.channels_last)  # 2-D convolutions run fastest on channels-last images
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(vae.config.latents_std, dtype=torch.float32))

    @classmethod
    def from_checkpoint(cls, checkpoint: Path, config: CodecConfig, dtype: torch.dtype) -> WanCodec:
        """The VAE of a checkpoint in diffusers' layout; raises `WeightsError` where it is not the one of `config`."""
        folder = checkpoint / "vae"
        part_config(folder, {"_class_name": "AutoencoderKLWan"} | config.shape())
        part_bytes(folder)
        vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
        return cls(config, vae)

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def spatial_stride(self) -> int:
        return self.config.spatial_stride

    @property
    def temporal_stride(self) -> int:
        return self.config.temporal_stride

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of pictures of `size` = (H, W); raises `InvalidValueError` if the stride does not divide them."""
        stride = self.spatial_stride
        check_stride(size, stride)
        return size[0] // stride, size[1] // stride

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        """Image latents of pictures in [-1, 1], each coded as a single frame (the mode of the posterior)."""
        return self.normalise(self.moments(images)[:, : self.channels])

    def encode_video(self, videos: Float[Tensor, "b frames 3 H W"]) -> Float[Tensor, "b t c h w"]:
        """Latents of videos of 1 + (t - 1) * temporal_stride frames; the first is the image latent of its frame."""
        if self.frames_alone:
            return self.encode(videos.flatten(0, 1)).unflatten(0, videos.shape[:2])
        moments = self.vae.encode(videos.transpose(1, 2)).latent_dist.parameters
        return self.normalise(moments[:, : self.channels].transpose(1, 2))

    def decode(self, latents: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b frames 3 H W"]:
        """Videos in [-1, 1] of 1 + (t - 1) * temporal_stride frames, each decoded afresh."""
        z = self.denormalise(latents)
        if not self.frames_alone:
            return self.vae.decode(z.transpose(1, 2)).sample.transpose(1, 2)
        return self.decode_raw(z.flatten(0, 1)).clamp(-1.0, 1.0).unflatten(0, z.shape[:2])

    def decode_after(
        self, overlap: Float[Tensor, "b o c h w"], latents: Float[Tensor, "b t c h w"]
    ) -> Float[Tensor, "b frames 3 H W"]:
        """The t * temporal_stride frames that follow the overlap frame, decoded afresh with it as one short video.

        Without an overlap frame (o = 0) the first latent is an image latent, and one frame, itself.
        """
        if self.frames_alone:  # the overlap frame could not change them
            return self.decode(latents)
        return self.decode(torch.cat([overlap, latents], 1))[:, overlap.shape[1] :]

    def moments(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n d h w"]:
        """Mean and log-variance of the posterior, before normalisation."""
        x = images[:, :, None]
        if not self.frames_alone:
            return self.vae.encode(x).latent_dist.parameters[:, :, 0]
        x = patchify(x, self.config.patch_size)
        x = x[:, :, 0].contiguous(memory_format=torch.channels_last)[:, :, None]
        return self.vae.quant_conv(self.vae.encoder(x))[:, :, 0]

    def decode_raw(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """Pictures of raw latents, one by one and unclamped; the codec's own training calls this."""
        x = z.contiguous(memory_format=torch.channels_last)[:, :, None]
        return unpatchify(self.vae.decoder(self.vae.post_quant_conv(x)), self.config.patch_size)[:, :, 0]

    def normalise(self, z: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalise(self, latents: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """What `normalise` was given."""
        return latents * self.std[:, None, None] + self.mean[:, None, None]


def to_float(rgb: UInt8[Tensor, "*b H W 3"]) -> Float[Tensor, "*b 3 H W"]:
    """uint8 pictures outside -> [-1, 1] floats inside."""
    return rgb.movedim(-1, -3).float() / 127.5 - 1.0


def to_uint8(images: Float[Tensor, "*b 3 H W"]) -> UInt8[Tensor, "*b H W 3"]:
    """[-1, 1] floats inside -> uint8 pictures outside, rounded to nearest."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
