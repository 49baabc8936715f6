"""Real videos become a store, the store trains both stages of an adapter, the adapter makes a world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mirage_env.artefacts import write_video
from mirage_env.cameras_io import write_realestate10k
from mirage_env.codec.wan import WanCodec, to_float
from mirage_env.config import load_config
from mirage_env.denoise.pretrained import LoraShape, load_denoiser
from mirage_env.denoise.text import PromptEncoder
from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.memory import make_memory
from mirage_env.perception import ComposedPerception
from mirage_env.training.adapter import AdapterLossConfig, AdapterStage
from mirage_env.training.loop import LoopConfig, train
from mirage_env.training.recipe import load_recipe, run_stage
from mirage_env.world_model import Preset, load_world
from tests.released.clips import pictures, sideways

pytest.importorskip("lmdb", reason="training on video needs mirage-env[video]")
from mirage_env.training.video import VideoClips, VideoConfig, VideoWriter, cropped, find_videos

SIZE = (64, 96)
CUT = VideoConfig(SIZE, chunk=2, chunks=2, key_stride=2)  # 5 latent frames, 17 pictures
LOOP = LoopConfig(
    steps=2, learning_rate=1e-2, warmup=1, ema=0.0, precision="fp32", log_every=1, falls="cosine", decay=1
)
LOSS = AdapterLossConfig(batch=2, chunks=(2,), keyframe_stride=2)


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """RealEstate10K text with a folder of pictures, a video with a caption, and three that cannot be used."""
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in {"house": 33, "hall": 18, "short": 9, "damaged": 17, "alone": 17}.items():
        write_realestate10k(folder / f"{name}.txt", sideways(frames))
    (folder / "house").mkdir()
    for i, picture in enumerate(pictures(33, 0)):
        Image.fromarray(picture).save(folder / "house" / f"{round(i / 30 * 1e6)}.png")
    write_video(folder / "hall.mp4", pictures(18, 1), fps=30)
    (folder / "hall.caption.txt").write_text("a walk")
    write_video(folder / "short.mp4", pictures(9, 2), fps=30)
    (folder / "damaged.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture(scope="session")
def codec(checkpoint) -> WanCodec:
    from benchmarks.tiny_checkpoints import CODEC
    from mirage_env.codec.wan import CodecConfig
    from mirage_env.config import build

    config = build(CodecConfig, CODEC, "tiny")
    return WanCodec.from_checkpoint(checkpoint, config, torch.float32).eval().requires_grad_(False)


def writer(folder: Path, checkpoint: Path, codec: WanCodec, **share: int) -> VideoWriter:
    wall = ComposedPerception(lambda images, cameras: (torch.full((len(images), *SIZE), 2.0), None))
    embed = PromptEncoder(checkpoint, "cpu", torch.float32).each
    return VideoWriter(folder, CUT, codec, wall, embed, torch.device("cpu"), **share)


@pytest.fixture(scope="session")
def store(videos, checkpoint, codec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for shard in range(2):
        writer(folder, checkpoint, codec, shard=shard, shards=2).add(find_videos(videos))
    return folder


def test_what_cannot_be_used_is_skipped_with_its_reason(videos, checkpoint, codec, tmp_path, monkeypatch):
    found = find_videos(videos)
    assert [video.name for video in found] == ["alone", "damaged", "hall", "house", "short"]
    shard = writer(tmp_path, checkpoint, codec)
    skipped = shard.add(found)
    assert skipped.keys() == {"alone", "damaged", "short"}
    assert skipped["alone"].startswith("there is no video or folder of pictures beside")
    assert skipped["short"] == "it has 9 frames and a clip needs 17; take fewer chunks"
    assert skipped["damaged"].endswith("damaged.mp4 is damaged or no video")
    monkeypatch.setattr(shard, "_clip", lambda *_: pytest.fail("was there already"))
    assert shard.add(found).keys() == skipped.keys()
    with pytest.raises(InvalidValueError, match="holds a store of other settings"):
        writer(tmp_path, checkpoint, codec, shards=2)
    with pytest.raises(InvalidValueError, match=r"no camera file below .*; a clip is NAME.txt"):
        find_videos(tmp_path / "shard-0000")


def test_a_clip_is_what_the_networks_see_in_the_pictures(videos, store, codec):
    clips = VideoClips(store)
    assert len(clips) == 3 and clips.frames == 5 and list(clips.overlaps(2)) == [0, 2]
    found = [clips.clip(i, None) for i in range(3)]
    texts = [[torch.equal(one.text, other.text) for other in found] for one in found]
    assert sorted(map(sum, texts)) == [1, 2, 2]  # the captioned video differs from the two clips of the other
    lens = sideways(1).intrinsics[0]
    rgb = np.stack([cropped(picture, lens, SIZE)[0] for picture in pictures(33, 0)])
    images = to_float(torch.from_numpy(rgb))
    first = codec.encode_video(images[None, :9])[0]
    clip = min(found, key=lambda c: float((c.latents[:3] - first).abs().max()))
    torch.testing.assert_close(clip.latents[:3], first, atol=2e-3, rtol=2e-3)
    second = codec.encode_video(images[None, 8:17])[0, 1:]  # each chunk is a short video of its own
    torch.testing.assert_close(clip.latents[3:], second, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(clip.held[2], codec.encode(images[8:9])[0], atol=2e-3, rtol=2e-3)
    assert clip.references == {0: [], 2: [0]}  # the first picture saw what the second chunk shows
    assert torch.equal(clip.held[1], clip.latents[1]) and clip.depth_m.shape == (3, *SIZE)
    assert np.abs(clip.rgb[1].astype(int) - rgb[8]).mean() < 4  # JPEG
    np.testing.assert_allclose(clip.cameras.world_from_camera[:, 0, 3], 0.02 * 4 * np.arange(5), atol=1e-6)


def test_pictures_are_cropped_to_shape_with_their_lens():
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 60:] = 255
    lens = np.array([[0.5, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
    part, pixels = cropped(picture, lens, (40, 40))
    assert part.shape == (40, 40, 3) and part[:, :15].max() == 0 and part[:, 25:].min() == 255
    np.testing.assert_allclose(pixels, [[40, 0, 20], [0, 40, 20], [0, 0, 1]])  # 60 px of focal length, scaled by 2/3


@pytest.fixture(scope="session")
def trained(store, checkpoint, codec, tmp_path_factory):
    """Two steps of both stages; the folder, and the model as training left it."""
    from benchmarks.tiny_checkpoints import preset

    folder = tmp_path_factory.mktemp("trained")
    path = preset(folder / "preset.yaml", checkpoint, adapter=str(folder / "lora"))
    config = load_config(path, Preset)
    stages = []
    for name in ("branch", "lora"):
        torch.manual_seed(0)
        before = folder / "branch" if name == "lora" else None
        denoiser = load_denoiser(checkpoint, config.denoiser, torch.float32, before)
        clips = VideoClips(store, LOSS.text_dropout)
        shape = LoraShape(rank=4, alpha=4.0, dropout=0.0)
        memory = make_memory(config.memory, codec.encode)
        stage = AdapterStage(
            name, denoiser, LOSS, shape, memory, [clips], clips.codec_hash, held_out=1, dtype=torch.float32
        )
        frozen = {n: p.clone() for n, p in denoiser.named_parameters() if not p.requires_grad}
        moving = {n: p.clone() for n, p in denoiser.named_parameters() if p.requires_grad}
        assert train(stage, LOOP, folder)
        now = dict(denoiser.named_parameters())
        assert all(torch.equal(now[n], p) for n, p in frozen.items())
        stages.append((stage, {n for n, p in moving.items() if not torch.equal(now[n], p)}))
    return folder, path, stages


def test_the_first_stage_trains_the_branch_the_second_lora_too(trained):
    _, _, ((_, first), (_, second)) = trained
    assert first and all("memory_blocks" in n or "readout_embedding" in n for n in first)
    assert any("lora_B" in n for n in second) and any("memory_blocks" in n for n in second)
    lora = {n.split(".lora_")[0] for n in second if "lora" in n}
    assert lora == {f"transformer.blocks.{i}.attn1.{p}" for i in range(4) for p in ("to_q", "to_k", "to_v", "to_out.0")}


def test_saved_and_reloaded_it_gives_the_same_output(trained, checkpoint):
    folder, path, (_, (stage, _)) = trained
    condition, clean = stage.chunks(0, np.array([0]), 2, 2, None)
    config = load_config(path, Preset)
    again = load_denoiser(checkpoint, config.denoiser, torch.float32, folder / "lora").eval()
    with torch.no_grad():
        expected = stage.model.eval().clean(clean, torch.tensor([0.7]), condition)
        assert torch.equal(again.clean(clean, torch.tensor([0.7]), condition), expected)
        plain = load_denoiser(checkpoint, config.denoiser, torch.float32).eval()
        assert not torch.equal(plain.clean(clean, torch.tensor([0.7]), condition), expected)
    assert load_world(str(path), SIZE, "cpu").preset.mode == "trained"


def test_the_shipped_recipe_is_the_papers():
    plan = load_recipe("wan2.2-ti2v-5b")
    assert (plan.adapter.lora, plan.adapter.preset) == (LoraShape(64, 64.0, 0.05), "wan2.2-ti2v-5b")
    for stage, rate in ((plan.branch, 1e-5), (plan.lora, 1e-4)):
        loop = stage.loop
        assert (loop.learning_rate, loop.betas, loop.weight_decay) == (rate, (0.0, 0.999), 1e-3)
        assert stage.loss.text_dropout == 0.2 and loop.precision == "bf16" and stage.loss.gradient_checkpointing
        assert loop.rate(5000) == pytest.approx(rate / 2) and loop.rate(0) < rate / 100  # cosine after a warm-up


def test_the_recipe_runs_both_stages_by_the_command_and_goes_on(store, checkpoint, tmp_path):
    from benchmarks.tiny_checkpoints import preset

    shape = preset(tmp_path / "preset.yaml", checkpoint)
    stage = {
        "loss": {"batch": 1, "chunks": [2], "keyframe_stride": 2},
        "loop": {"steps": 2, "ema": 0.0, "precision": "fp32", "accumulate": 2, "log_every": 1},
    }
    recipe = {"adapter": {"preset": str(shape), "lora": {"rank": 4}, "held_out": 1}, "branch": stage, "lora": stage}
    for name, values in recipe.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    plan, steps = load_recipe(tmp_path), []
    with pytest.raises(WeightsError, match=r"goes on from .*branch, which is not there; train stage branch first"):
        run_stage("lora", plan, tmp_path / "run", data=store)
    with pytest.raises(InvalidValueError, match="an adapter is trained on a store of videos; name it with --data"):
        run_stage("branch", plan, tmp_path / "run")
    told = {"data": store, "report": lambda step, total, values: steps.append(step)}
    assert not run_stage("branch", plan, tmp_path / "run", stop_after_s=0.0, **told)
    assert run_stage("branch", plan, tmp_path / "run", **told) and run_stage("lora", plan, tmp_path / "run", **told)
    assert steps == [1, 2, 1, 2]
    assert sorted(path.name for path in (tmp_path / "run" / "lora").iterdir()) == [
        "branch.safetensors", "config.json", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
