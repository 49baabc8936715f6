"""Every stage of the recipe on a made-up clip store: it runs, learns something, and its files load."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.custom_memory import Postcard
from mirage_env.codec.tiny import TinyDecoder, TinyDecoderConfig
from mirage_env.codec.wan import CodecConfig, WanCodec
from mirage_env.denoise.denoiser import Denoiser, DenoiserConfig
from mirage_env.denoise.pretrained import LoraShape
from mirage_env.denoise.sampler import SamplerConfig
from mirage_env.denoise.transformer import BRANCH
from mirage_env.errors import ImageError, InvalidValueError, WeightsError
from mirage_env.geometry.poses import intrinsics_from_fov, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import backproject
from mirage_env.memory import MemoryReading, PastFrames
from mirage_env.memory.latent import MemoryConfig
from mirage_env.memory.none import NoMemory
from mirage_env.memory.protocol import AnyMemoryConfig
from mirage_env.memory.resampled import ResampledMemory, ResampledMemoryConfig
from mirage_env.memory.rgb import RgbMemoryConfig
from mirage_env.perception.drawn import FAR_M, FEATURES, DepthDrawer, DrawerConfig
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception
from mirage_env.resources import sha256_of
from mirage_env.training.clips import SKY, ClipStore
from mirage_env.training.codec import CodecLossConfig, CodecStage
from mirage_env.training.drawer import (
    COLUMNS,
    DrawerLossConfig,
    DrawerStage,
    asked_name,
    energy_score,
    examples_name,
    find_asked,
    find_unseen,
    where_it_holds,
)
from mirage_env.training.invention import InventionLossConfig, InventionStage, _there_and_back
from mirage_env.training.latents import encode_latents, glimpse_clips, predict_depth, walk_clips
from mirage_env.training.loop import LoopConfig, train
from mirage_env.training.perception import PerceptionLossConfig, PerceptionStage, _other_hues, iou
from mirage_env.training.photos import photo_crops
from mirage_env.training.resampler import ResamplerStage
from mirage_env.training.sight import SightStage
from mirage_env.training.tiny_decoder import TinyDecoderLossConfig, TinyDecoderStage
from mirage_env.training.world import WorldLossConfig, WorldStage, merged_lora
from mirage_env.weights import load_weights, read_card
from mirage_env.world_model import Preset, WorldModel

CLIPS, FRAMES, SIDE = 6, 6, 32
LOOP = LoopConfig(steps=3, warmup=1, log_every=1, validate_every=3, save_seconds=1e9)
CODEC = CodecConfig(channels=6, base_dim=8, decoder_base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, is_residual=True)
PERCEPTION = PerceptionConfig(widths=(8, 16), blocks=1, doubt=True)
DENOISER = DenoiserConfig(channels=6, heads=2, head_dim=24, ffn_dim=48, layers=2, memory_layers=(0,), text_dim=8)

EYE = "e" * 64
"""Stands for the hash of the perception's weights."""


@pytest.fixture
def store(tmp_path) -> ClipStore:
    """A wall two metres ahead below a sky, and a camera that steps back."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    wall = rng.integers(0, 255, (CLIPS, 1, SIDE, SIDE, 3), dtype=np.uint8)
    masks = np.zeros((CLIPS, FRAMES, SIDE, SIDE), np.uint8)
    masks[:, :, :8] = SKY
    depth = np.full((CLIPS, FRAMES, SIDE, SIDE), 2.0, np.float16) + np.float16(0.1) * np.arange(FRAMES)[:, None, None]
    poses = np.tile(np.eye(4, dtype=np.float32), (CLIPS, FRAMES, 1, 1))
    poses[:, :, 2, 3] = -0.1 * np.arange(FRAMES)
    poses[:, :, 1, 3] = -1.2
    intrinsics = np.tile(intrinsics_from_fov(1.2, (SIDE, SIDE)).numpy(), (CLIPS, 1, 1))
    arrays = {
        "rgb": np.repeat(wall, FRAMES, 1),
        "depth": depth.astype(np.float16),
        "masks": masks,
        "poses": poses,
        "intrinsics": intrinsics,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    about = {"clips": CLIPS, "frames": FRAMES, "size": [SIDE, SIDE], "first_seed": 1_000_000}
    (folder / "clips.json").write_text(json.dumps(about))
    return ClipStore(folder)


@pytest.fixture
def trained(store, tmp_path):
    """A folder with a codec and a perception that went through their stages, and the store with latents."""
    pictures = store.array("rgb").reshape(-1, SIDE, SIDE, 3)
    codec_stage = CodecStage(CODEC, CodecLossConfig(batch=2, crop=16), pictures, pictures, held_out=4)
    assert train(codec_stage, LOOP, tmp_path)
    stage = PerceptionStage(PERCEPTION, PerceptionLossConfig(batch=2), [store], held_out=2)
    assert train(stage, LOOP, tmp_path)
    codec, perception = WanCodec(CODEC).eval(), TinyPerception(PERCEPTION).eval()
    load_weights(tmp_path / "codec.safetensors", codec, "codec")
    load_weights(tmp_path / "perception.safetensors", perception, "perception")
    codec_hash = sha256_of(tmp_path / "codec.safetensors")
    encode_latents(store, codec, codec_hash, lambda done, total: None)
    predict_depth(store, perception, EYE, codec.spatial_stride, lambda done, total: None)
    return tmp_path, codec, codec_hash


def test_exported_codec_gives_latents_of_unit_scale(trained, store):
    _, _, codec_hash = trained
    latents = store.array(f"latents-{codec_hash[:12]}").astype(np.float32)
    assert latents.shape == (CLIPS, FRAMES, 6, SIDE // 8, SIDE // 8)
    assert 0.5 < latents.std() < 2.0 and abs(latents.mean()) < 0.5


def test_predicted_depth_keeps_the_first_frames_error(trained, store):
    """A network that has learned next to nothing sees the same in every frame; all are brought to the first's error."""
    predicted, truth = (store.array(name).astype(np.float32) for name in (f"predicted-depth-{EYE[:12]}", "depth"))
    error = np.log(np.median(predicted[:, :, 8:], (2, 3)) / np.median(truth[:, :, 8:], (2, 3)))
    assert np.abs(error - error[:, :1]).max() < 0.02


def test_the_denoiser_trains_and_is_bound_to_its_codec(trained, store):
    folder, codec, codec_hash = trained
    loss = WorldLossConfig(batch=2, chunks=(1, 2), keyframe_stride=2)
    stage = WorldStage(DENOISER, loss, MemoryConfig(), [store], codec, codec_hash, EYE, held_out=2)
    first = stage.model.transformer.proj_out.weight.detach().clone()
    assert train(stage, LOOP, folder)
    assert not torch.equal(first, stage.model.transformer.proj_out.weight)
    row = json.loads((folder / "denoiser.jsonl").read_text().splitlines()[-1])
    assert {"psnr_codec", "psnr_warp", "psnr_repeat", "psnr_steps1", "psnr_steps2", "gap_closed"} <= row.keys()
    load_weights(folder / "denoiser.safetensors", Denoiser(DENOISER), "denoiser", codec_hash=codec_hash)
    with pytest.raises(WeightsError, match="take both from one training run"):
        load_weights(folder / "denoiser.safetensors", Denoiser(DENOISER), "denoiser", codec_hash="0" * 64)


def test_a_memory_with_weights_trains_along(trained, store):
    """examples/custom_memory.py: its one parameter learns, and is exported beside the denoiser."""
    postcard = Postcard()
    folder, codec, codec_hash = trained
    loss = WorldLossConfig(batch=2, chunks=(1, 2), keyframe_stride=2)
    stage = WorldStage(DENOISER, loss, postcard, [store], codec, codec_hash, EYE, held_out=2)
    assert train(stage, LOOP, folder)
    assert postcard.contrast.item() != 1.0
    again = Postcard()
    load_weights(folder / "memory.safetensors", again, "memory", codec_hash=codec_hash)
    assert again.contrast.item() == pytest.approx(postcard.contrast.item(), abs=1e-3)


def test_a_memory_of_pictures_trains_the_denoiser_too(trained, store):
    """It renders and encodes what it shows with the codec of the stage."""
    folder, codec, codec_hash = trained
    loss = WorldLossConfig(batch=2, chunks=(1, 2), keyframe_stride=2)
    stage = WorldStage(DENOISER, loss, RgbMemoryConfig(), [store], codec, codec_hash, EYE, held_out=2)
    condition, _ = stage.chunks(0, np.array([1, 3]), overlap=3, n=2, rng=None)
    assert bool(condition.readout.any())
    first = stage.model.transformer.proj_out.weight.detach().clone()
    assert train(stage, LOOP, folder)
    assert not torch.equal(first, stage.model.transformer.proj_out.weight)


class Whisper(torch.nn.Module):
    """A memory without a grid: the last two frames as references, and tokens to attend to."""

    config_class, state_class = AnyMemoryConfig, PastFrames

    def __init__(self):
        super().__init__()
        self.config = AnyMemoryConfig("whisper")
        self.words = torch.nn.Parameter(torch.randn(3, DENOISER.text_dim))

    def empty(self, channels, device="cpu"):
        return ()

    def write(self, state, record):
        grid = record.cameras.resized(record.latents.shape[2:])
        return PastFrames(record.latents, grid)

    def read(self, state, cameras):
        return MemoryReading(frames=state[-2:], tokens=self.words)


def test_references_and_tokens_reach_the_denoiser(trained, store):
    folder, codec, codec_hash = trained
    memory = Whisper()
    before = memory.words.detach().clone()
    loss = WorldLossConfig(batch=2, chunks=(1, 2), keyframe_stride=2)
    stage = WorldStage(DENOISER, loss, memory, [store], codec, codec_hash, EYE, held_out=2)
    condition, _ = stage.chunks(0, np.array([1, 3]), overlap=3, n=2, rng=None)
    assert condition.references == 2 and not bool(condition.readout.any())
    assert torch.equal(condition.context, memory.words.expand(2, -1, -1))
    assert train(stage, LOOP, folder)
    assert not torch.equal(before, memory.words)


def test_a_chunk_is_cut_as_a_rollout_would_meet_it(trained, store):
    _, codec, codec_hash = trained
    np.save(store.folder / f"predicted-depth-{EYE[:12]}.npy", store.array("depth"))  # an eye without error
    stage = WorldStage(DENOISER, WorldLossConfig(keyframe_stride=2), MemoryConfig(), [store], codec, codec_hash, EYE)
    condition, clean = stage.chunks(0, np.array([1, 3]), overlap=3, n=2, rng=None)
    latents = torch.from_numpy(store.array(f"latents-{codec_hash[:12]}")[[1, 3]].astype(np.float32))
    torch.testing.assert_close(clean, latents[:, 4:6])
    assert condition.noisy.tolist() == [False] * (condition.references + 1) + [True] * 2 + [False] * 2
    torch.testing.assert_close(condition.clean[:, condition.references], latents[:, 3])
    torch.testing.assert_close(condition.clean[:, -2:], latents[:, 1:3])
    # the camera steps straight back from a wall: what it saw stays in view
    assert float(condition.readout_extra[:, 1:3, 0, 2:].mean()) > 0.5


class Hoarder(Whisper):
    def read(self, state, cameras):
        return MemoryReading(frames=state)


def test_chunks_of_any_length_come_with_no_to_four_references(trained, store):
    _, codec, codec_hash = trained
    loss = WorldLossConfig(keyframe_stride=1, references=4)  # whatever it is used with
    stage = WorldStage(DENOISER, loss, Hoarder(), [store], codec, codec_hash, EYE, held_out=2)
    assert stage.chunks(0, np.array([0]), 4, 1, None)[0].references == DENOISER.references == 2
    for targets, overlap in ((1, 4), (5, 0)):
        drawn = set()
        for seed in range(40):
            condition, clean = stage.chunks(0, np.array([0]), overlap, targets, np.random.default_rng(seed))
            assert clean.shape[1] == targets == int(condition.noisy.sum())
            drawn.add(condition.references)
        assert drawn == set(range(min(4, overlap + 1) + 1))


def test_the_refiner_trains_alone_and_its_file_is_a_whole_denoiser(trained, store):
    folder, codec, codec_hash = trained
    config = replace(DENOISER, refiner_width=8, refiner_blocks=1)
    loss = WorldLossConfig(batch=2, chunks=(2,), keyframe_stride=2)
    stage = WorldStage(config, loss, MemoryConfig(), [store], codec, codec_hash, EYE, held_out=2, name="refiner")
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    assert train(stage, LOOP, folder)
    changed = {name for name, value in stage.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("refiner.") for name in changed)
    load_weights(folder / "refiner.safetensors", Denoiser(config), "denoiser", codec_hash=codec_hash)
    with pytest.raises(InvalidValueError, match="has no refiner to train"):
        WorldStage(DENOISER, loss, MemoryConfig(), [store], codec, codec_hash, EYE, held_out=2, name="refiner")


def test_the_papers_two_stages(trained, store):
    """A backbone that no memory reaches; then the branch alone learns, from a copy; then LoRA, which ends merged."""
    folder, codec, codec_hash = trained
    config = replace(DENOISER, refiner_width=8, refiner_blocks=1)
    loss = WorldLossConfig(batch=2, chunks=(2,), keyframe_stride=2)

    def stage(name, memory, **told):
        return WorldStage(config, loss, memory, [store], codec, codec_hash, EYE, held_out=2, name=name, **told)

    def learns(job):
        before = {name: value.clone() for name, value in job.model.state_dict().items()}
        assert train(job, LOOP, folder)
        return {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}

    def result(name):
        denoiser = Denoiser(config).eval()
        load_weights(folder / f"{name}.safetensors", denoiser, "denoiser", codec_hash=codec_hash)
        return denoiser

    ours = ("refiner.", *(f"transformer.{part}" for part in BRANCH))
    backbone = stage("backbone", NoMemory())
    assert not backbone.chunks(0, np.array([1]), 3, 2, None)[0].readout.any()
    changed = learns(backbone)
    assert changed and not any(name.startswith(ours) for name in changed)

    branch = stage("branch", MemoryConfig(), start=result("backbone"))
    copies, blocks = branch.model.transformer.memory_blocks[0].state_dict(), branch.model.transformer.blocks[0]
    assert all(torch.equal(value, copies[name]) for name, value in blocks.state_dict().items())
    changed = learns(branch)
    assert changed and all(name.startswith(ours) for name in changed)

    lora = stage("lora", MemoryConfig(), start=result("branch"), lora=LoraShape(rank=2, alpha=2.0))
    changed = learns(lora)
    assert all(name.startswith(ours) or ".lora_" in name for name in changed)
    assert any(".lora_B" in name for name in changed)
    merged, before = result("lora").state_dict(), result("branch").state_dict()
    moved = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert {name for name in moved if not name.startswith(ours)} == {
        f"transformer.blocks.{i}.attn1.{part}.weight" for i in (0, 1) for part in ("to_q", "to_k", "to_v", "to_out.0")
    }
    lora.model.eval()
    condition, clean = lora.chunks(0, np.array([1]), 3, 2, None)
    with torch.no_grad():
        answers = [model.clean(clean, torch.ones(1), condition) for model in (lora.model, merged_lora(lora.model))]
    torch.testing.assert_close(*answers)


def test_a_model_walks_the_clips_and_learns_from_it(trained, store):
    folder, codec, codec_hash = trained
    perception, denoiser = TinyPerception(PERCEPTION), Denoiser(DENOISER)
    preset = Preset(CODEC, PERCEPTION, MemoryConfig(), DENOISER, SamplerConfig(1))
    model = WorldModel(preset, deepcopy(codec), perception, denoiser, (SIDE, SIDE))
    done = []
    walk_clips(store, model, "d" * 64, 2, chunk=2, report=lambda i, n: done.append((i, n)))
    walked, depth = store.array("walked-dddddddddddd"), store.array("walked-dddddddddddd-depth")
    assert walked.shape == (2, FRAMES, 6, SIDE // 8, SIDE // 8) and depth.shape == (2, FRAMES, SIDE, SIDE)
    assert done == [(1, 2), (2, 2)]
    latents = store.array(f"latents-{codec_hash[:12]}")
    np.testing.assert_allclose(walked[:, 0], latents[:2, 0], atol=0.05)  # the first frame is the true one
    assert np.abs(walked[:, 3] - latents[:2, 3]).max() > 0.05

    loss = WorldLossConfig(batch=2, chunks=(2,), keyframe_stride=2, walked=1.0, history_noise=0.0)
    told = {"held_out": 2, "name": "finetune", "start": Denoiser(DENOISER), "walked_by": "d" * 64}
    stage = WorldStage(DENOISER, loss, MemoryConfig(), [store], codec, codec_hash, EYE, **told)
    condition, clean = stage.chunks(0, np.array([1, 3]), overlap=3, n=2, rng=np.random.default_rng(0))
    overlap = torch.from_numpy(walked[[1, 1], 3].astype(np.float32))  # clip 3 was not walked: clip 1 stands in
    torch.testing.assert_close(condition.clean[:, condition.references], overlap)
    torch.testing.assert_close(clean, torch.from_numpy(latents[[1, 1], 4:6].astype(np.float32)))
    assert train(stage, LOOP, folder)
    load_weights(folder / "finetune.safetensors", Denoiser(DENOISER), "denoiser", codec_hash=codec_hash)


INVENTION = InventionLossConfig(
    batch=2, chunks=(2,), keyframe_stride=2, returns=0.5, critic_width=8, critic_first=1, strides=(1, 2)
)


def invention(store, codec, codec_hash, loss=INVENTION):
    torch.manual_seed(0)
    told = {"held_out": 2, "name": "invention", "start": Denoiser(DENOISER)}
    return InventionStage(DENOISER, loss, MemoryConfig(), [store], codec, codec_hash, EYE, **told)


def test_a_denoiser_learns_to_invent_and_goes_on_as_if_never_cut_off(trained, store):
    folder, codec, codec_hash = trained
    results = []
    for name, cuts in (("whole", ()), ("cut", (0.0,))):  # a stop after no time at all is one after the first step
        for stop_after_s in (*cuts, math.inf):
            train(invention(store, codec, codec_hash), LOOP, folder / name, stop_after_s=stop_after_s)
        results.append(Denoiser(DENOISER))
        card = load_weights(folder / name / "invention.safetensors", results[-1], "denoiser", codec_hash=codec_hash)
        assert card["metrics"]["detail_invented"] >= 0 and card["metrics"]["psnr_kept"] > 0
    for one, other in zip(*(result.parameters() for result in results), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InvalidValueError, match="critic_width and critic_steps must be positive, got 0 and 3"):
        InventionLossConfig(critic_width=0)
    with pytest.raises(InvalidValueError, match=r"swing must not be negative, got -1.0"):
        InventionLossConfig(swing=-1.0)


def test_a_denoiser_learns_to_leave_what_it_made_up(trained, store):
    """Back over frames 5 and 4 of its own after three; the targets are what it made, whatever the truth is."""
    _, codec, codec_hash = trained
    stage = invention(store, codec, codec_hash, replace(INVENTION, chunks=(3,), returns=1.0, history_noise=0.0))
    truth = torch.from_numpy(store.array(f"latents-{codec_hash[:12]}")[1].astype(np.float32))
    clip, made = stage.sources[0].clip(1, None), torch.rand(3, *truth.shape[1:])
    pictures = np.full((3, *clip.rgb.shape[1:]), 9, np.uint8)
    walk = _there_and_back(clip, 2, made, pictures)
    torch.testing.assert_close(walk.latents, torch.cat([truth[:3], made, made[[1, 0]]]))
    assert walk.latents is walk.held
    np.testing.assert_array_equal(walk.rgb, np.concatenate([clip.rgb[:3], pictures, pictures[:2]]))
    for values, whole in ((walk.depth_m, clip.depth_m), (walk.masks, clip.masks)):
        np.testing.assert_array_equal(values, whole[[0, 1, 2, 3, 4, 5, 4, 3]])
    torch.testing.assert_close(walk.cameras.world_from_camera[-1], clip.cameras.world_from_camera[3])

    condition, before, back = stage.batch(torch.Generator().manual_seed(3))
    assert back and before.shape[1] == 2 and condition.seen.any()
    losses = stage.losses((condition, before, back), torch.Generator().manual_seed(0))
    assert float(losses["kept_error"].detach()) > 0 and "judgement" not in losses
    far = torch.where(condition.seen, before, 100.0)  # what is not remembered may be anything
    again = stage.losses((condition, far, back), torch.Generator().manual_seed(0))
    torch.testing.assert_close(again["kept_error_refined"], losses["kept_error_refined"])


def test_what_a_memory_knows_is_off_in_hue_with_the_past(trained, store):
    _, codec, codec_hash = trained
    stage = invention(store, codec, codec_hash, replace(INVENTION, swing=1.0, returns=0.0))
    condition, clean, _ = stage.batch(torch.Generator().manual_seed(0))
    told = torch.cat([condition.seen.float(), torch.where(condition.seen, clean, 0.0)], 2)
    swung, target = stage._swung(replace(condition, settled=told), clean, torch.Generator().manual_seed(1))
    assert not torch.equal(target, clean) and torch.equal(swung.settled[:, :, :1], told[:, :, :1])
    torch.testing.assert_close(swung.settled[:, :, 1:], torch.where(condition.seen, target, 0.0))


def test_critic_and_denoiser_do_not_teach_each_other(trained, store):
    """The critic gets no gradient of the denoiser's loss, which would make it judge kindly, nor the other way round."""
    _, codec, codec_hash = trained
    gradients, critics = [], []
    for share in (0.0, 10.0):
        stage = invention(store, codec, codec_hash, replace(INVENTION, critic_share=share, returns=0.0))
        before = [p.clone() for p in stage.critic.parameters()]
        batch = stage.batch(torch.Generator().manual_seed(0))
        stage.losses(batch, torch.Generator().manual_seed(0))["loss"].backward()
        assert not any(torch.equal(a, b) for a, b in zip(before, stage.critic.parameters(), strict=True))
        assert all(p.grad is None for p in stage.critic.parameters())
        critics.append(list(stage.critic.parameters()))
        gradients.append(stage.model.transformer.proj_out.weight.grad)
    assert all(torch.equal(one, other) for one, other in zip(*critics, strict=True))
    assert not torch.equal(*gradients)


def test_a_hurried_clip_has_every_so_many_th_frame(trained, store):
    _, codec, codec_hash = trained
    loss = WorldLossConfig(keyframe_stride=2, strides=(1, 2))
    stage = WorldStage(DENOISER, loss, MemoryConfig(), [store], codec, codec_hash, EYE, held_out=2)
    walked, hurried = stage.sources
    assert (walked.frames, hurried.frames) == (FRAMES, FRAMES // 2)
    whole, part = walked.clip(1, None), hurried.clip(1, None)
    torch.testing.assert_close(part.latents, whole.latents[::2])
    torch.testing.assert_close(part.cameras.world_from_camera, whole.cameras.world_from_camera[::2])
    np.testing.assert_array_equal(part.depth_m, whole.depth_m[::2])
    for stride in (0, FRAMES):
        with pytest.raises(InvalidValueError, match=f"strides must be at least 1 and leave two frames of {FRAMES}"):
            WorldStage(DENOISER, replace(loss, strides=(stride,)), MemoryConfig(), [store], codec, codec_hash, EYE)
    for seed in range(8):  # a chunk is never longer than what is there
        _, clean = stage.batch(torch.Generator().manual_seed(seed))
        assert 1 <= clean.shape[1] < FRAMES


def test_perception_learns_the_wall(store):
    stage = PerceptionStage(PERCEPTION, PerceptionLossConfig(batch=2), [store], held_out=2)
    with torch.no_grad():
        before = stage.validate()["abs_rel"]
    config = replace(LOOP, steps=40, learning_rate=1e-2, ema=0.5, validate_every=40)
    train(stage, config, store.folder)
    assert read_card(store.folder / "perception.safetensors")["metrics"]["abs_rel"] < 0.5 * before


def test_a_wrong_scale_is_no_error_of_aligned_depth(store):
    def loss_of(scale: float, aligned_weight: float) -> float:
        stage = PerceptionStage(PERCEPTION, PerceptionLossConfig(aligned_weight=aligned_weight), [store], held_out=2)
        inputs, depth, sky, dynamic = stage._pictures(store, np.arange(2), np.zeros(2, int), np.zeros(2, int), None)
        answer = torch.zeros(2, 4, SIDE, SIDE)
        answer[:, 0] = (scale * depth).log()
        answer[1, 0, -1] += 0.5
        stage.model.logits = lambda inputs: answer
        return float(stage.errors((inputs, depth, sky, dynamic), 0.5)["loss"])

    one, other = (loss_of(scale, 1.0) - loss_of(scale, 0.0) for scale in (1.0, 1.3))
    assert one == pytest.approx(other, rel=1e-3) and one == pytest.approx(math.expm1(0.5) / (2 * SIDE), rel=1e-3)


def test_hues_turn_about_the_greys():
    picture = torch.rand(3, 4, 4)
    grey = picture.mean(0).expand(3, 4, 4)
    shown = {angle: torch.einsum("ij,jhw->ihw", _other_hues(angle, 1.0), picture) for angle in (0.0, 2 * math.pi / 3)}
    assert torch.allclose(shown[0.0], picture, atol=1e-6)
    assert torch.allclose(shown[2 * math.pi / 3], picture.roll(1, 0), atol=1e-6)  # red is green now
    assert torch.allclose(torch.einsum("ij,jhw->ihw", _other_hues(0.7, 1.4), grey), grey, atol=1e-6)
    assert torch.allclose(torch.einsum("ij,jhw->ihw", _other_hues(0.7, 0.0), picture), grey, atol=1e-6)


def test_eyes_learn_from_what_a_world_shows_them(trained, store):
    """Every second frame of one clip, all of the next: what was shown, what the memory knew, the truth beside it."""
    folder, codec, _ = trained
    eyes, denoiser = TinyPerception(PERCEPTION).eval(), Denoiser(DENOISER)
    load_weights(folder / "perception.safetensors", eyes, "perception")
    preset = Preset(CODEC, PERCEPTION, MemoryConfig(), DENOISER, SamplerConfig(1))
    model, done = WorldModel(preset, deepcopy(codec), eyes, denoiser, (SIDE, SIDE)), []
    for _ in range(2):  # the second time it is there
        glimpse_clips(store, model, "d" * 64, 4, (2, 1), (1, 3), lambda i, n: done.append((i, n)))
    model.preset = replace(preset, keyframes_first=True, keyframe_stride=2)  # pictures stay beside their own frames
    glimpse_clips(store, model, "e" * 64, 4, (2, 1), (1, 3), lambda i, n: None)
    model.preset = replace(preset, keyframe_stride=2)
    glimpse_clips(store, model, "f" * 64, 4, (2, 1), (1, 3), lambda i, n: None)
    np.testing.assert_array_equal(store.array("glimpse-eeeeeeeeeeee"), store.array("glimpse-ffffffffffff"))
    assert done == [(k, 4) for k in (1, 2, 3, 4)]
    shown, known = store.array("glimpse-dddddddddddd"), store.array("glimpse-dddddddddddd-memory")
    assert shown.shape == (4, FRAMES, 3, SIDE, SIDE) and known.shape == (4, FRAMES, SIDE // 8, SIDE // 8)
    # Rows are the last clips; a walk begins with the true picture, when nothing is remembered.
    np.testing.assert_array_equal(shown[:, 0], store.array("rgb")[2:, 0].transpose(0, 3, 1, 2))
    assert (known[:, 0] == 0).all() and (known[:, 2].max((1, 2)) > 0).all()
    assert (shown[0, 1::2] == 0).all() and (shown[1, 1:].max((1, 2, 3)) > 0).all()

    stage = SightStage(eyes, PerceptionLossConfig(batch=2), [store], "d" * 64, (2, 1), held_out=2)
    _, (inputs, depth, sky, _) = stage.batch(torch.Generator().manual_seed(0))
    assert inputs.shape == (2, 8, SIDE, SIDE) and bool(sky[:, :8].all()) and not bool(sky[:, 8:].any())
    walls = {float(store.array("depth")[0, t, 0, 0]) for t in range(1, FRAMES)}
    assert set(depth.unique().tolist()) <= walls
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():  # where nothing is unknown, nothing is wrong
        patch.setattr(stage, "_generated", lambda *_: (torch.ones_like(inputs), depth, sky, sky))
        found = stage.validate()
    assert (found["log_error_generated"], found["bias_generated"]) == (0.0, 0.0)
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    assert all(torch.equal(tensor, eyes.state_dict()[name]) for name, tensor in before.items())
    assert train(stage, LOOP, folder)
    card = read_card(folder / "sight.safetensors")
    assert card["kind"] == "perception" and {"log_error_generated", "bias_generated", "abs_rel"} <= set(card["metrics"])
    load_weights(folder / "sight.safetensors", TinyPerception(PERCEPTION), "perception")
    with pytest.raises(InvalidValueError, match="walk along more clips than the 4 held out, got 4"):
        SightStage(eyes, PerceptionLossConfig(), [store], "d" * 64, (2, 1), held_out=4)


def test_the_tiny_decoder_learns_what_the_codec_shows(trained, store):
    folder, codec, codec_hash = trained
    config = TinyDecoderConfig(widths=(8, 8, 8), blocks=1)
    stage = TinyDecoderStage(config, TinyDecoderLossConfig(batch=4, cells=2), [store], codec, codec_hash, held_out=2)
    before = stage.validate()["psnr_codec"]
    loop = replace(LOOP, steps=60, validate_every=60, precision="fp32", learning_rate=1e-2)
    assert train(stage, loop, folder)
    card = read_card(folder / "tiny_decoder.safetensors")
    assert card["metrics"]["psnr_codec"] > before + 3
    load_weights(folder / "tiny_decoder.safetensors", TinyDecoder(config, 6, 8), "tiny_decoder", codec_hash=codec_hash)
    assert stage.strip().shape[0] == 2 * SIDE
    with pytest.raises(InvalidValueError, match="crops of 9 cells do not fit the clips' 4; set cells to 4"):
        TinyDecoderStage(config, TinyDecoderLossConfig(cells=9), [store], codec, codec_hash)
    with pytest.raises(InvalidValueError, match="every store needs more clips than the 6 held out, got 6; render more"):
        TinyDecoderStage(config, TinyDecoderLossConfig(cells=2), [store], codec, codec_hash, held_out=6)
    with pytest.raises(InvalidValueError, match="have no latents-ffffffffffff yet; run the stages before this one"):
        TinyDecoderStage(config, TinyDecoderLossConfig(cells=2), [store], codec, "f" * 64)
    for patches in ((1, 2), ()):
        with pytest.raises(InvalidValueError, match="patches odd numbers"):
            TinyDecoderLossConfig(patches=patches)


def test_a_memory_learns_to_read_between_its_points(trained, store):
    folder, codec, codec_hash = trained
    config = ResampledMemoryConfig(channels=6, maps=4, hidden=8, width=8, blocks=1, reach=1.5)
    memory = ResampledMemory(config)
    loss = WorldLossConfig(batch=2, chunks=(2,))
    stage = ResamplerStage(memory, loss, [store], codec, codec_hash, EYE, held_out=2)
    view, truth = stage.batch(torch.Generator().manual_seed(0))
    assert view.around.shape == (4, 54, SIDE // 8, SIDE // 8) and truth.shape == (4, 6, SIDE // 8, SIDE // 8)
    with torch.no_grad():
        before = stage.validate()
    assert before["error"] == pytest.approx(before["own_error"], rel=1e-2)  # untrained it reads what is there
    train(stage, replace(LOOP, steps=40, learning_rate=1e-2, ema=0.5, validate_every=40), folder)
    card = read_card(folder / "memory.safetensors")
    assert card["kind"] == "memory" and card["codec_hash"] == codec_hash
    assert card["metrics"]["error"] < 0.9 * card["metrics"]["own_error"]

    read = ResampledMemory(config).eval().requires_grad_(False)
    load_weights(folder / "memory.safetensors", read, "memory", codec_hash=codec_hash)
    world = WorldStage(DENOISER, loss, read, [store], codec, codec_hash, EYE, held_out=2)
    assert not any(name.startswith("memory.") for name in world.parameters())
    condition, _ = world.batch(torch.Generator().manual_seed(0))
    known = condition.settled[:, :, :1] > 0
    assert bool(known.any()) and torch.equal(
        torch.where(known, world.model.refined(condition).base, 0.0),
        torch.where(known, condition.settled[:, :, 1:], 0.0),
    )


def test_the_drawer_learns_where_a_memory_ends(trained, store):
    """Walks that turn away from a wall: the memory shows a part of each view, and the truth is known in the rest."""
    folder, codec, _ = trained
    eyes, denoiser = TinyPerception(PERCEPTION).eval(), Denoiser(DENOISER)
    load_weights(folder / "perception.safetensors", eyes, "perception")
    poses = np.load(store.folder / "poses.npy")
    yaw = torch.arange(FRAMES) * math.radians(45.0)
    poses[:, :, :3, :3] = rotation_from_yaw_pitch_roll(yaw, 0 * yaw, 0 * yaw).numpy()
    poses[:, :, 2, 3] = 0.0
    np.save(store.folder / "poses.npy", poses)
    preset = Preset(CODEC, PERCEPTION, MemoryConfig(), DENOISER, SamplerConfig(1))
    model, done = WorldModel(preset, deepcopy(codec), eyes, denoiser, (SIDE, SIDE)), []
    glimpse_clips(store, model, "d" * 64, 4, (1,), (1, 3), lambda i, n: None)
    for _ in range(2):  # the second time it is there
        find_unseen(store, model, EYE, "d" * 64, (1,), (1, 3), lambda i, n: done.append((i, n)))
    assert done == [(k, 4) for k in (1, 2, 3, 4)]
    examples = torch.from_numpy(store.array(examples_name(EYE, "d" * 64)).astype(np.float32))
    assert examples.shape == (4, FRAMES, COLUMNS, SIDE // 8, SIDE // 8)
    assert examples[:, 0].isnan().all() and examples[:, 1:, :-1].isfinite().all()
    told = dict(zip(FEATURES, examples[0, 1].split(1), strict=False))
    assert told["shown"].sum() > 0 and told["unseen"].sum() > 0 and not (told["shown"] * told["unseen"]).any()
    truth = examples[0, 1:, -1]
    assert truth[:, 0] == pytest.approx(torch.full_like(truth[:, 0], math.log(FAR_M)), abs=0.01)  # the sky
    walls = torch.from_numpy(store.array("depth")[2, 1:, 0, 0].astype(np.float32)).log()
    assert truth[:, 2:] == pytest.approx(walls[:, None, None].expand(-1, 2, SIDE // 8), abs=0.01)
    # A chunk of three: its frames know the first picture alone, not one another.
    assert examples[1, 2, FEATURES.index("shown")].sum() < examples[0, 2, FEATURES.index("shown")].sum()

    config = DrawerConfig(width=8, blocks=1)
    stage = DrawerStage(config, DrawerLossConfig(batch=2, least=1), [store], EYE, "d" * 64, held_out=2)
    before = stage.validate()
    assert train(stage, replace(LOOP, steps=60, validate_every=60, precision="fp32", learning_rate=1e-2), folder)
    after = read_card(folder / "drawer.safetensors")["metrics"]
    assert after["energy_score"] < 0.7 * min(before["energy_score"], before["energy_score_eyes"])
    assert {"spread", "roughness", "bias"} <= set(after)
    drawer = DepthDrawer(config).eval()
    load_weights(folder / "drawer.safetensors", drawer, "drawer")
    assert stage.strip().shape[0] == 4 * SIDE

    # It goes on with what it was asked beside its own draws: the same truth, another memory.
    model = WorldModel(replace(preset, drawer=config), deepcopy(codec), eyes, denoiser, (SIDE, SIDE), drawer=drawer)
    name = asked_name((1,), "a" * 64, "d" * 64)
    assert len({name, asked_name((2,), "a" * 64, "d" * 64), asked_name((1,), "a" * 64, "e" * 64)}) == 3
    for _ in range(2):
        find_asked(store, model, name, 4, (1,), lambda i, n: done.append((i, n)))
    assert done == 2 * [(k, 4) for k in (1, 2, 3, 4)]
    asked = torch.from_numpy(store.array(name).astype(np.float32))
    assert asked.shape == examples.shape and asked[:, 0].isnan().all()
    answered = asked[:, 1:].isfinite().all(2).all(2).all(2)
    assert answered.any()
    some = answered[:, :, None, None, None].expand_as(asked[:, 1:])
    assert torch.equal(asked[:, 1:, -1:][some[:, :, -1:]], examples[:, 1:, -1:][some[:, :, -1:]])
    placed = asked[:, 1:, len(FEATURES) : len(FEATURES) + 2]
    cameras = store.cameras(np.arange(4).repeat(FRAMES), np.tile(np.arange(FRAMES), 4)).resized(model.latent_size)
    points = backproject(asked[:, :, 0].exp().flatten(0, 1), cameras)[..., ::2].unflatten(0, (4, FRAMES))[:, 1:]
    where = answered[:, :, None, None, None].expand_as(placed)
    torch.testing.assert_close(placed[where], points.movedim(-1, 2)[where], atol=0.02, rtol=0.01)  # of its own frame
    dreams = DrawerStage(
        config, DrawerLossConfig(batch=2, least=1), [store], EYE, "d" * 64, held_out=2, start=(drawer, name)
    )
    assert dreams.name == "dreams" and len(dreams._examples) == 2 and dreams._shares.tolist() == [0.5, 0.5]
    assert torch.equal(dreams.model.head.weight, drawer.head.weight)
    with pytest.raises(InvalidValueError, match="walk along more clips than the 4 held out, got 4"):
        DrawerStage(config, DrawerLossConfig(), [store], EYE, "d" * 64, held_out=4)
    with pytest.raises(InvalidValueError, match="take other strides"):
        DrawerStage(config, DrawerLossConfig(least=1000), [store], EYE, "d" * 64, held_out=2)


def test_a_dream_teaches_only_where_it_is_true_so_far():
    """Two pictures whose memory shows the left half: one as it is, the other a wall where the truth goes on."""
    examples = torch.zeros(2, COLUMNS, 8, 8)
    examples[:, FEATURES.index("shown"), :, :4] = 1
    examples[:, FEATURES.index("unseen"), :, 4:] = 1
    examples[:, -1] = math.log(6.0)
    for picture, depth in enumerate((5.0, 2.0)):
        examples[picture, FEATURES.index("memory"), :, :4] = math.log(depth)
    held = where_it_holds(examples, 0.3)
    assert torch.equal(held[0], examples[0]) and torch.equal(held[1, :-1], examples[1, :-1])
    assert held[1, -1].isnan().all()
    examples[0, FEATURES.index("memory"), 0] = math.log(2.0)  # one row of eight is wrong, for all within two rows of it
    truth = where_it_holds(examples, 0.3)[0, -1]
    assert truth[3:].isfinite().all() and truth[0].isnan().all()


def test_the_energy_score_is_least_for_draws_like_the_truth():
    """A truth of two values that all cells share: a mean, one value, and cells apart from one another score worse."""
    generator = torch.Generator().manual_seed(0)

    def worlds(apart: bool = False) -> torch.Tensor:
        shape = (4000, 4, 4) if apart else (4000, 1, 1)
        return torch.randint(0, 2, shape, generator=generator).float().expand(4000, 4, 4)

    truth, counts = worlds(), torch.ones(4000, 4, 4)
    right = energy_score(worlds(), worlds(), truth, counts)
    rivals = [(truth * 0 + 0.5,) * 2, (truth * 0,) * 2, (worlds(True), worlds(True))]
    assert all(energy_score(*rival, truth, counts) > right + 0.02 for rival in rivals)
    hidden = counts.clone()
    hidden[:, :, 2:] = 0.0  # what does not count may be anything
    assert energy_score(truth, truth, truth + (1 - hidden) * 9, hidden) == pytest.approx(0.0, abs=1e-3)


def test_iou_of_masks():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert iou(a, b) == pytest.approx(1 / 3) and iou(a, a) == 1.0
    assert iou(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)) == 1.0


def test_photo_crops(tmp_path):
    from PIL import Image

    with pytest.raises(ImageError, match=r"no pictures .* below"):
        list(photo_crops(tmp_path, 32, 2, seed=0))
    Image.fromarray(np.full((50, 90, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    crops = list(photo_crops(tmp_path, 32, 3, seed=0))
    assert len(crops) == 3 and all(c.shape == (32, 32, 3) and (c == 200).all() for c in crops)


def test_an_unfinished_store_is_told(tmp_path):
    with pytest.raises(InvalidValueError, match="no finished clip store"):
        ClipStore(tmp_path)
