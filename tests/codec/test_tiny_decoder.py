from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mirage_env.codec.tiny import TinyDecoder, TinyDecoderConfig
from mirage_env.codec.wan import to_float
from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.images import load_image
from mirage_env.training.codec import psnr
from mirage_env.types import Cameras, SceneSpec
from mirage_env.world_model import load_world


@pytest.mark.parametrize(("widths", "stride"), [((8,), 2), ((8, 8), 8), ((16, 12, 8), 8)])
def test_a_cell_becomes_a_square_of_the_codecs_stride(widths, stride):
    torch.manual_seed(0)
    decoder = TinyDecoder(TinyDecoderConfig(widths, blocks=1), channels=6, stride=stride)
    latents = torch.randn(2, 6, 4, 3)
    pictures = decoder(latents)
    assert pictures.shape == (2, 3, 4 * stride, 3 * stride) and pictures.dtype == torch.float32
    more = decoder(torch.cat([latents, torch.randn(1, 6, 4, 3)]))[:2]
    torch.testing.assert_close(more, pictures)  # every picture by itself


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(InvalidValueError, match="3 widths need a stride in multiples of 4, got 6; take fewer"):
        TinyDecoder(TinyDecoderConfig(), channels=6, stride=6)
    with pytest.raises(InvalidValueError, match=r"positive widths and blocks, got \(\) and 1"):
        TinyDecoderConfig(widths=(), blocks=1)


@pytest.mark.parametrize("side", [64, 128])
def test_a_draft_is_about_what_the_codec_would_show(side):
    model = load_world("mirage-tiny", (side, side), "cpu")
    assert model.tiny_decoder is not None
    camera = Cameras(torch.eye(4)[None], intrinsics_from_fov(1.2, (side, side))[None], (side, side))
    picture = load_image("room", (side, side)).rgb
    _, state = model.begin(SceneSpec(torch.eye(4), camera.intrinsics_px[0], 1.2, picture), seed=0)
    ahead = torch.eye(4)
    ahead[2, 3] = 0.2
    ahead = replace(camera, world_from_camera=ahead[None])
    by_the_codec = model.with_parts(sketch=model.parts["decode"])
    draft, exact = (to_float(m.draft(state, ahead).rgb) for m in (model, by_the_codec))
    assert 24 < float(psnr(draft, exact)) < 60
