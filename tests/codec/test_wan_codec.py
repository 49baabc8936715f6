from __future__ import annotations

import pytest
import torch

from mirage_env.codec.wan import CodecConfig, WanCodec, to_float, to_uint8, unfold_frames
from mirage_env.errors import InvalidValueError

TINY = CodecConfig(channels=6, base_dim=8, decoder_base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, is_residual=True)
VIDEO = CodecConfig(channels=6, base_dim=8, decoder_base_dim=8, temporal_downsample=(True, True), num_res_blocks=1)


@pytest.mark.parametrize("plain", [True, False])
def test_folded_codec_equals_the_stock_class_on_single_frames(plain):
    config = CodecConfig(channels=6, base_dim=8, decoder_base_dim=8, num_res_blocks=1) if plain else TINY
    codec = WanCodec(config).eval()
    stock = unfold_frames(codec.vae, config)
    images = torch.rand(3, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = codec.encode(images)
        theirs = stock.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
        torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=1e-4)
        decoded = stock.decode(theirs[:, :, None]).sample[:, :, 0]
        torch.testing.assert_close(codec.decode(latents[None])[0], decoded, atol=1e-5, rtol=1e-4)


def test_folded_codec_equals_the_stock_class_on_a_video():
    """With zeros in every past tap, frames of a video do not touch each other."""
    codec = WanCodec(TINY).eval()
    stock = unfold_frames(codec.vae, TINY)
    latents = torch.randn(1, 3, 6, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            codec.decode(latents), stock.decode(latents.transpose(1, 2)).sample.transpose(1, 2), atol=1e-5, rtol=1e-4
        )


def test_strides_follow_from_the_shape():
    assert (TINY.spatial_stride, TINY.temporal_stride) == (8, 1)
    assert (VIDEO.spatial_stride, VIDEO.temporal_stride) == (8, 4)


def test_video_codec_decodes_the_frames_after_the_overlap():
    codec = WanCodec(VIDEO).eval()
    with torch.no_grad():
        overlap, latents = torch.randn(1, 1, 6, 4, 4), torch.randn(1, 2, 6, 4, 4)
        frames = codec.decode_after(overlap, latents)
        whole = codec.decode(torch.cat([overlap, latents], 1))
    assert frames.shape == (1, 2 * codec.temporal_stride, 3, 32, 32)
    torch.testing.assert_close(frames, whole[:, 1:])


def test_statistics_normalise_latents():
    codec = WanCodec(TINY).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        plain = codec.encode(images)
        decoded = codec.decode(plain[None])
        codec.mean.fill_(0.5)
        codec.std.fill_(2.0)
        torch.testing.assert_close(codec.encode(images), (plain - 0.5) / 2.0)
        torch.testing.assert_close(codec.decode(codec.encode(images)[None]), decoded, atol=1e-5, rtol=1e-4)


def test_size_that_the_stride_does_not_divide_names_the_nearest():
    with pytest.raises(InvalidValueError, match=r"multiple of 8 pixels a side, got 100 x 130; .* is 96 x 128"):
        WanCodec(TINY).latent_size((100, 130))


def test_pictures_survive_the_way_in_and_out():
    rgb = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_float(rgb)), rgb)


def test_config_refuses_levels_that_do_not_match():
    with pytest.raises(InvalidValueError, match=r"temporal_downsample needs one entry .* that is 2, got 1"):
        CodecConfig(temporal_downsample=(False,))
