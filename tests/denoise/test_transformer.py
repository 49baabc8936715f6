from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from mirage_env.denoise.transformer import MemoryTransformer
from mirage_env.errors import InvalidValueError

SHAPE = dict(
    num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=48,
    num_layers=4,
)  # fmt: skip


def inputs(frames: int = 5):
    return torch.randn(2, 4, frames, 4, 6), torch.full((2, frames), 500.0), torch.randn(2, 3, 8)


def test_without_memory_it_is_the_stock_backbone():
    backbone = WanTransformer3DModel(**SHAPE).eval()
    model = MemoryTransformer.from_backbone(backbone, (0, 2))
    x, timestep, text = inputs()
    with torch.no_grad():
        theirs = backbone(x, timestep.repeat_interleave(6, 1), text).sample
        torch.testing.assert_close(model(x, timestep, text), theirs, atol=1e-5, rtol=1e-4)


def test_a_branch_copied_from_the_backbone_adds_nothing_until_it_is_trained():
    model = MemoryTransformer.from_backbone(WanTransformer3DModel(**SHAPE).eval(), (0, 2))
    assert torch.equal(model.memory_blocks[1].attn1.to_q.weight, model.blocks[2].attn1.to_q.weight)
    x, timestep, text = inputs()
    memory = dict(readout=torch.randn(2, 4, 4, 4, 6), readout_extra=torch.ones(2, 1, 4, 4, 6), references=1)
    with torch.no_grad():
        assert torch.equal(model(x, timestep, text, **memory), model(x, timestep, text, references=1))
        model.memory_blocks[0].proj_out.bias.fill_(0.1)
        assert not torch.equal(model(x, timestep, text, **memory), model(x, timestep, text, references=1))


def test_the_branch_does_not_see_references_and_scale_zero_switches_it_off():
    model = MemoryTransformer(**SHAPE, memory_layers=(0,)).eval()
    torch.nn.init.normal_(model.memory_blocks[0].proj_out.weight)
    x, timestep, text = inputs()
    readout = torch.randn(2, 4, 3, 4, 6)
    with torch.no_grad():
        with_memory = model(x, timestep, text, readout=readout, references=2)
        assert with_memory.shape == x.shape
        off = model(x, timestep, text, readout=readout, references=2, memory_scale=0.0)
        assert torch.equal(off, model(x, timestep, text, references=2))
        assert not torch.allclose(off, with_memory)


def test_segments_are_told_apart_by_their_positions():
    model = MemoryTransformer(**SHAPE, memory_layers=(0,))
    cosines, sines = model.rotary(torch.tensor([-1, 0, 1]), torch.tensor([2, 0, 0]), 2, 3)
    assert cosines.shape == sines.shape == (1, 3 * 2 * 3, 1, 24)
    time = slice(0, model.rope.t_dim)
    torch.testing.assert_close(sines[0, :6, 0, time], -sines[0, 12:, 0, time])  # time -1 is the conjugate of 1
    rows = slice(model.rope.t_dim, model.rope.t_dim + model.rope.h_dim)
    torch.testing.assert_close(cosines[0, 0, 0, rows], model.rope.freqs_cos[2, rows].float(), check_dtype=False)


def test_one_token_of_text_needs_no_attention():
    """Attention over two equal tokens is worked out, and gives what one token gives."""
    model = MemoryTransformer(**SHAPE, memory_layers=(0,), learned_text=True).eval()
    torch.nn.init.normal_(model.null_text)
    x, timestep, _ = inputs()
    with torch.no_grad():
        worked_out = model(x, timestep, model.null_text.expand(2, 2, -1))
        torch.testing.assert_close(model(x, timestep), worked_out, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    model = MemoryTransformer(**SHAPE, memory_layers=(0, 2))
    torch.nn.init.normal_(model.memory_blocks[0].proj_out.weight)
    x, timestep, text = inputs()
    gradients = []
    for checkpointed in (False, True):
        (model.enable_gradient_checkpointing if checkpointed else model.disable_gradient_checkpointing)()
        model.zero_grad()
        model(x, timestep, text, readout=torch.ones(2, 4, 5, 4, 6)).square().mean().backward()
        gradients.append(model.blocks[0].attn1.to_q.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_missing_text_and_wrong_layers_are_told():
    model = MemoryTransformer(**SHAPE, memory_layers=(0,))
    x, timestep, _ = inputs()
    with pytest.raises(InvalidValueError, match="no learned null text; pass encoder_hidden_states"):
        model(x, timestep)
    with pytest.raises(InvalidValueError, match=r"memory_layers must lie between 0 and 3, got \(0, 9\)"):
        MemoryTransformer(**SHAPE, memory_layers=(0, 9))
