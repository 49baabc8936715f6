"""The full-size system's mechanics through the public preset path: worlds from checkpoints in diffusers' layout."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from transformers import UMT5EncoderModel

import mirage_env  # noqa: F401 (registers the ids)
from mirage_env import cli
from mirage_env.codec.wan import to_float
from mirage_env.denoise import text
from mirage_env.denoise.text import TEXT_TOKENS, PromptEncoder
from mirage_env.perception import ComposedPerception
from mirage_env.world_model import load_world
from tests.released.walks import SIZE, flat_wall, path, scene, walk


def test_training_free_image_to_chunk_to_update_to_second_chunk(make_preset, free):
    model = load_world(make_preset(**free), SIZE, "cpu")
    assert (model.preset.mode, model.temporal_stride, model.latent_size) == ("training-free", 4, (4, 6))
    rgb, state = walk(model)
    assert rgb.shape == (16, *SIZE, 3) and state.frame == 4
    assert len(state.memory) > 24  # the first picture's cells, and those that came into view
    assert torch.equal(rgb, walk(model)[0])


def test_with_an_adapter_the_memory_comes_in_by_the_branch(make_preset, adapter):
    model = load_world(make_preset(adapter=str(adapter)), SIZE, "cpu")
    assert model.preset.mode == "trained"
    rgb, state = walk(model)
    assert rgb.shape == (16, *SIZE, 3) and len(state.memory) > 24
    again = load_world(make_preset(adapter=str(adapter)), SIZE, "cpu")
    assert again is not model and torch.equal(rgb, walk(again)[0])
    model.denoiser.transformer.memory_blocks[0].proj_out.weight.zero_()
    model.denoiser.transformer.memory_blocks[1].proj_out.weight.zero_()
    assert not torch.equal(rgb, walk(model)[0])


def test_replaced_cells_end_as_their_readout(make_preset, free):
    model = load_world(make_preset(**free | {"sampler": {"replace": 1.0}}), SIZE, "cpu")
    model = model.with_perception(ComposedPerception(flat_wall))
    _, state = model.begin(scene(), seed=3)
    _, after = model.advance(state, path(4))
    assert after.drift < 1e-3  # where the memory was seen, the sample is what it showed


def test_words_matter_and_travel_with_the_state(make_preset, free):
    model = load_world(make_preset(**free), SIZE, "cpu")
    silent, kitchen = walk(model)[0], walk(model, "a kitchen")[0]
    assert not torch.equal(silent, kitchen)
    assert walk(model, "a kitchen")[1].prompt == "a kitchen"


def test_prompts_are_embedded_as_the_stock_pipeline_does(checkpoint):
    pipeline = WanPipeline.from_pretrained(checkpoint)
    theirs, _ = pipeline.encode_prompt("a  kitchen walk", None, False, max_sequence_length=TEXT_TOKENS)
    ours = PromptEncoder(checkpoint, "cpu", torch.float32)("a  kitchen walk")
    assert ours.shape == (1, TEXT_TOKENS, 16)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_codec_is_the_checkpoints_vae(make_preset, checkpoint, free):
    codec = load_world(make_preset(**free), SIZE, "cpu").codec
    vae = AutoencoderKLWan.from_pretrained(checkpoint / "vae").eval()
    images = to_float(torch.from_numpy(scene().image))[None]
    with torch.no_grad():
        theirs = (vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0] - 0.1) / 1.5
        ours = codec.float().encode(images)
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)  # our copy was rounded to bfloat16
        frames = codec.decode_after(ours[None], ours[None].expand(1, 2, -1, -1, -1))
    assert frames.shape == (1, 8, 3, *SIZE)


def test_the_text_encoder_stays_on_the_cpu_where_the_device_has_no_room(checkpoint, monkeypatch):
    monkeypatch.setattr(text, "free_bytes", lambda device: 0)
    moved = []
    monkeypatch.setattr(UMT5EncoderModel, "to", lambda self, place: moved.append(place) or self)
    embedding = PromptEncoder(checkpoint, "meta", torch.float32)("a walk")
    assert embedding.is_meta and moved == [torch.device("cpu")]


def test_info_says_the_mode(make_preset, adapter, free, monkeypatch, capsys):
    for changes, mode in [
        (free, "memory training-free"),
        ({"adapter": str(adapter)}, "memory trained, by the adapter"),
        ({}, "needs an adapter (none is named)"),
    ]:
        monkeypatch.setattr("sys.argv", ["mirage-env", "info", make_preset(**changes)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 0 and mode in " ".join(capsys.readouterr().out.split())


def test_the_environment_runs_it(make_preset, free):
    env = gymnasium.make(
        "Mirage-v0", preset=make_preset(**free), size=SIZE, obs=("rgb", "depth"), chunk=1, device="cpu", prompt="a walk"
    )
    observation, _ = env.reset(seed=0)
    observation, *_ = env.step(env.action_space.sample())
    assert observation["rgb"].shape == (*SIZE, 3) and np.isfinite(observation["depth"]).all()
    env.close()
