"""The real configuration on the meta device: no weights, no memory, the published numbers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.full_size import build, count, forward, millions, parameters
from mirage_env.config import load_config
from mirage_env.world_model import Preset

SIZE, TARGETS = (704, 1280), 8


@pytest.fixture(scope="module")
def networks():
    return build(load_config("wan2.2-ti2v-5b", Preset))


def test_parameters_are_the_published_ones(networks):
    denoiser, codec = networks
    sizes = parameters(denoiser.transformer)
    assert sizes["backbone"] == 4_999_787_712  # "5B"
    block = 3072 * 3072 * 8 + 3072 * 8 + 3072 * 4 + 2 * 3072 * 14336 + 3072 + 14336 + 2 * 3072 + 6 * 3072
    assert sizes["branch"] == 8 * block + 9 * (3072 * 3072 + 3072) + 4 * 3072  # 8 blocks, 9 projections, the mask
    assert sizes["lora"] == 30 * 4 * 2 * 64 * 3072
    assert round(millions(codec.vae)) == 705
    assert (codec.channels, codec.spatial_stride, codec.temporal_stride) == (48, 16, 4)


def test_shapes_and_shares_of_a_chunk(networks):
    denoiser, codec = networks
    assert codec.latent_size(SIZE) == (44, 80)
    bf16 = {"device": "meta", "dtype": torch.bfloat16}
    decode = count(lambda: codec.decode(torch.empty(1, 1 + TARGETS, 48, 44, 80, **bf16)))
    assert decode.output == (1, 33, 3, *SIZE)
    encode = count(lambda: codec.encode(torch.empty(2, 3, *SIZE, **bf16)))
    assert encode.output == (2, 48, 44, 80)
    plain, full = (forward(denoiser, (44, 80), TARGETS, memory=memory) for memory in (False, True))
    assert full.output == (1, 48, 4 + 1 + TARGETS + 2, 44, 80)
    assert 1 < full.flops / plain.flops <= 1.35
    tokens, dim, ffn, words = 15 * 22 * 40, 3072, 14336, 512
    products = 2 * tokens * (6 * dim**2 + 2 * dim * ffn) + 2 * words * 2 * dim**2
    attention = 4 * dim * tokens * (tokens + words)
    assert plain.flops == pytest.approx(30 * (products + attention), rel=0.01)  # embeddings and modulation aside
    assert (decode.flops + encode.flops) / (40 * full.flops) < 0.15
