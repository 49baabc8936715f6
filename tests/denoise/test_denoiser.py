from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mirage_env.denoise.denoiser import ChunkCondition, Denoiser, DenoiserConfig, ray_channels
from mirage_env.denoise.sampler import SamplerConfig, sample
from mirage_env.errors import InvalidValueError


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_before_training_the_sample_is_the_warp(config, make_chunk, steps):
    condition = make_chunk()
    noise = torch.randn(1, 2, 4, 4, 6)
    result = sample(Denoiser(config).eval(), condition, noise, SamplerConfig(steps=steps))
    torch.testing.assert_close(result, condition.base, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_the_solver_ends_on_a_constant_prediction(config, make_chunk, monkeypatch, steps, shift):
    denoiser, answer = Denoiser(config), torch.randn(1, 2, 4, 4, 6)
    monkeypatch.setattr(denoiser, "clean", lambda x, sigma, condition, kept: answer)
    result = sample(denoiser, make_chunk(), torch.randn_like(answer), SamplerConfig(steps, shift))
    torch.testing.assert_close(result, answer, atol=1e-3, rtol=1e-3)


def test_velocity_prediction_recovers_the_clean_latent(config, make_chunk, monkeypatch):
    """x_sigma = (1 - sigma) x_0 + sigma noise and v = noise - x_0 give x_0 = x_sigma - sigma v."""
    denoiser = Denoiser(replace(config, prediction="velocity")).eval()
    condition = make_chunk()
    clean, noise, sigma = torch.randn(1, 2, 4, 4, 6), torch.randn(1, 2, 4, 4, 6), torch.tensor([0.3])
    frames = torch.zeros(1, len(condition.noisy), 4, 4, 6)
    frames[:, condition.noisy] = noise - clean
    monkeypatch.setattr(denoiser.transformer, "forward", lambda *a, **k: frames.transpose(1, 2))
    torch.testing.assert_close(denoiser.clean(0.7 * clean + 0.3 * noise, sigma, condition), clean)


def test_base_is_the_readout_and_where_that_is_empty_the_overlap_frame(make_chunk):
    condition = make_chunk(targets=2, preceding=1, references=1)
    assert condition.noisy.tolist() == [False, False, True, True, False]
    seen = condition.readout_extra[0, 1:3, :1] > 0
    overlap = condition.clean[0, 1]
    expected = torch.where(seen, condition.readout[0, 1:3], overlap)
    assert torch.equal(condition.base[0], expected)


def test_a_token_read_where_it_was_written_is_left_alone(config, make_chunk):
    denoiser = Denoiser(config).eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight, std=0.1)
    condition = make_chunk()
    extra = condition.readout_extra.clone()
    extra[:, :, 1:3, :, :3] = 0.0  # the left half fell on the centres of its cells
    condition = replace(condition, readout_extra=extra)
    result = sample(denoiser, condition, torch.randn(1, 2, 4, 4, 6), SamplerConfig(1))
    kept = ((result - condition.base).abs() < 1e-5).all(2)
    seen = extra[:, 1:3, 0] > 0
    assert torch.equal(kept[..., :3], seen[..., :3]) and not kept[..., 3:].any()
    denoiser.config = replace(config, trust_cells=0.0)  # for readouts that tell no distance
    assert (
        not ((sample(denoiser, condition, torch.randn(1, 2, 4, 4, 6), SamplerConfig(1)) - condition.base).abs() < 1e-5)
        .all(2)
        .any()
    )


def test_what_the_memory_knows_for_certain_is_left_alone(config, make_chunk):
    denoiser = Denoiser(replace(config, refiner_width=8, refiner_blocks=1)).eval()
    for weight in (denoiser.transformer.proj_out.weight, denoiser.refiner.head.weight):
        torch.nn.init.normal_(weight, std=0.1)
    known = (torch.arange(6) < 2).expand(1, 2, 1, 4, 6).float()
    told = torch.cat([known, torch.randn(1, 2, 4, 4, 6)], 2)
    noise, condition = torch.randn(1, 2, 4, 4, 6), make_chunk()
    without, result = (
        sample(denoiser, chunk, noise, SamplerConfig(2)) for chunk in (condition, replace(condition, settled=told))
    )
    torch.testing.assert_close(result[..., :2], told[:, :, 1:, :, :2], atol=1e-5, rtol=1e-5)
    assert not torch.isclose(result[..., :2], without[..., :2]).any()
    both = ChunkCondition.cat([replace(condition, settled=told)] * 2)
    assert torch.equal(both.settled[1:], told) and torch.equal(both.to("cpu").settled, both.settled)


def test_worlds_in_a_batch_do_not_touch_each_other(config, make_chunk):
    denoiser = Denoiser(config).eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight, std=0.1)
    chunks, noise = [make_chunk(), make_chunk()], torch.randn(2, 2, 4, 4, 6)
    together = sample(denoiser, ChunkCondition.cat(chunks), noise, SamplerConfig(2))
    alone = torch.cat([sample(denoiser, c, noise[i : i + 1], SamplerConfig(2)) for i, c in enumerate(chunks)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_clean_frames_matter_and_stay(config, make_chunk):
    denoiser = Denoiser(config).eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight, std=0.1)
    condition, noise = make_chunk(), torch.randn(1, 2, 4, 4, 6)
    before = condition.clean.clone()
    first = sample(denoiser, condition, noise, SamplerConfig(1))
    assert torch.equal(condition.clean, before)
    changed = condition.clean.clone()
    changed[:, 0] += 1.0  # the reference frame
    second = sample(denoiser, replace(condition, clean=changed), noise, SamplerConfig(1))
    assert not torch.allclose(first, second)


def test_rays_are_told_in_the_overlap_frame(some_cameras):
    cameras = some_cameras(3)
    rays = ray_channels(cameras, cameras[:1])
    torch.testing.assert_close(rays[:, :3].norm(dim=1), torch.ones(3, 4, 6))
    torch.testing.assert_close(rays[:, 5, 0, 0], torch.tensor([0.0, 0.1, 0.2]))
    moved = replace(
        cameras,
        world_from_camera=torch.eye(4).index_put((torch.tensor([0]), torch.tensor([3])), torch.tensor(7.0))
        @ cameras.world_from_camera,
    )
    torch.testing.assert_close(ray_channels(moved, moved[:1]), rays, atol=1e-5, rtol=1e-5)


def test_configs_check_themselves():
    with pytest.raises(InvalidValueError, match="steps >= 1 and shift > 0, got 0"):
        SamplerConfig(steps=0)
    with pytest.raises(InvalidValueError, match="must be positive"):
        DenoiserConfig(layers=0)
    with pytest.raises(InvalidValueError, match=r"trust_cells must not be negative, got -0\.1"):
        DenoiserConfig(trust_cells=-0.1)


def test_what_no_step_changes_is_made_once_a_chunk(config, make_chunk, monkeypatch):
    denoiser = Denoiser(replace(config, learned_text=False, prediction="velocity")).eval()
    network = denoiser.transformer
    for block in network.memory_blocks:
        torch.nn.init.normal_(block.proj_out.weight)
    condition, noise = replace(make_chunk(), text=torch.randn(1, 5, 8)), torch.randn(1, 2, 4, 4, 6)

    calls: Counter[str] = Counter()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    rotary = network.rotary
    monkeypatch.setattr(network, "rotary", lambda *where: calls.update(["rotary"]) or rotary(*where))
    once = sample(denoiser, condition, noise, SamplerConfig(steps=3))
    words = [f"{block}.attn2.{part}" for block in words_of(network) for part in ("to_k", "norm_k", "to_v")]
    constant = ["rotary", "condition_embedder.text_embedder", "readout_embedding", "ray_embedding", *words]
    assert {name: calls[name] for name in constant} == dict.fromkeys(constant, 1)
    assert calls["patch_embedding"] == 3 + 1  # the frames of every step, and the readout
    assert calls["blocks.0.attn1.to_q"] == calls["memory_blocks.1.attn2.to_q"] == calls[""] == 3

    clean = Denoiser.clean
    monkeypatch.setattr(Denoiser, "clean", lambda self, x, sigma, told, kept: clean(self, x, sigma, told))
    assert torch.equal(once, sample(denoiser, condition, noise, SamplerConfig(steps=3)))
    assert calls["blocks.0.attn2.to_k"] == 1 + 3


def words_of(network):
    """The names of all blocks that read the prompt."""
    return [f"{kind}.{i}" for kind in ("blocks", "memory_blocks") for i in range(len(getattr(network, kind)))]


def test_noise_on_clean_frames_is_told_through_their_timestep(config, make_chunk, monkeypatch):
    denoiser, told = Denoiser(config).eval(), []

    def forward(frames, timestep, *rest, **named):
        told.append((frames.transpose(1, 2), timestep))
        return torch.zeros_like(frames)

    monkeypatch.setattr(denoiser.transformer, "forward", forward)
    condition, sample_, sigma = make_chunk(targets=2, preceding=2, references=1), torch.randn(1, 2, 4, 4, 6), 0.5
    noise = torch.randn_like(condition.clean)
    for past in (condition, condition.with_noise(torch.tensor([0.2]), noise)):
        denoiser.clean(sample_, torch.tensor([sigma]), past)
    (clean, silent), (noisy, loud) = told
    assert silent.tolist() == [[0, 0, 500, 500, 0, 0]]
    assert torch.allclose(loud, torch.tensor([[200.0, 200, 500, 500, 200, 200]]))
    assert torch.equal(clean[:, condition.noisy], noisy[:, condition.noisy])  # the targets are as noisy as before
    past = ~condition.noisy
    torch.testing.assert_close(noisy[:, past], 0.8 * condition.clean[:, past] + 0.2 * noise[:, past])
    both = ChunkCondition.cat([condition.with_noise(torch.tensor([level]), noise) for level in (0.1, 0.3)])
    assert both.past_sigma is not None and torch.allclose(both.past_sigma, torch.tensor([0.1, 0.3]))
