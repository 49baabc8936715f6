from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mirage_env.codec.tiny import TinyDecoder, TinyDecoderConfig
from mirage_env.codec.wan import to_float
from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.images import load_image
from mirage_env.training.codec import psnr
from mirage_env.types import Cameras, SceneSpec
from mirage_env.weights import read_card, save_weights
from mirage_env.weights.checkpoint import find
from mirage_env.world_model import load_world

SHIPPED = find("mirage-tiny")


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
    with pytest.raises(InvalidValueError, match=r"widths and blocks must be positive, got \(\) and 1; the default is"):
        TinyDecoderConfig(widths=(), blocks=1)


def test_a_folder_may_have_none_and_none_of_another_codec(tmp_path):
    for file in SHIPPED.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    own = tmp_path / "tiny_decoder.safetensors"
    card = read_card(own)
    own.unlink()
    assert load_world("mirage-tiny", (64, 64), "cpu", weights=tmp_path).tiny_decoder is None
    decoder = TinyDecoder(TinyDecoderConfig(blocks=1), channels=24, stride=8)
    save_weights(own, decoder, card | {"codec_hash": "0" * 64})
    with pytest.raises(WeightsError, match="was trained for the codec 000000000000, but the codec in use is"):
        load_world("mirage-tiny", (80, 64), "cpu", weights=tmp_path)


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
