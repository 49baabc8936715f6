from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from mirage_env.codec.wan import WanCodec
from mirage_env.config import load_config
from mirage_env.errors import InvalidValueError, UnknownNameError, WeightsError
from mirage_env.perception.tiny import TinyPerception
from mirage_env.resources import ENVS_CONFIG, WEIGHTS
from mirage_env.training.recipe import _publish, _published, begin_with, load_recipe, run_stage
from mirage_env.weights import save_weights
from mirage_env.world_model import Preset

PREPARED = ("render", "codec", "perception", "latents", "refiner")
TWO_STAGE_PREPARED = ("render", "codec", "perception", "latents", "memory", "refiner")
JOINT_PREPARED = ("render", "codec", "perception", "latents", "tiny_decoder", "memory", "refiner")


def test_a_recipe_has_the_stages_that_it_has_a_file_for():
    joint, two_stage = load_recipe("mirage-tiny"), load_recipe("mirage-tiny-two-stage")
    assert joint.stages == (
        *JOINT_PREPARED,
        "denoiser",
        "walks",
        "finetune",
        "invention",
        "glimpses",
        "sight",
        "unseen",
        "drawer",
        "asked",
        "dreams",
    )
    assert two_stage.stages == (*TWO_STAGE_PREPARED, "backbone", "branch", "lora")
    assert set(load_recipe("smoke").stages) == {*joint.stages, *two_stage.stages}
    assert [two_stage.before(stage) for stage in ("refiner", "backbone", "branch", "lora")] == [
        None, "refiner", "backbone", "branch",
    ]  # fmt: skip


def test_two_stages_and_joint_training_share_all_but_the_transformers_training():
    joint, two_stage = load_recipe("mirage-tiny"), load_recipe("mirage-tiny-two-stage")
    for part in ("data", "codec", "perception", "memory", "refiner"):
        assert getattr(joint, part) == getattr(two_stage, part)
    assert two_stage.branch.loop.steps + two_stage.lora.loop.steps == joint.denoiser.loop.steps
    assert two_stage.branch.loss == two_stage.lora.loss == joint.denoiser.loss


def test_a_memory_of_colours_trains_by_the_joint_recipe():
    joint, colours = load_recipe("mirage-tiny"), load_recipe("mirage-tiny-rgb")
    assert colours.stages == (*PREPARED, "denoiser")
    assert load_config(colours.data.preset, Preset).memory.kind == "rgb"
    assert replace(colours.data, preset="mirage-tiny") == joint.data
    for part in ("codec", "perception", "refiner", "denoiser"):
        assert getattr(joint, part) == getattr(colours, part)


def test_the_recipe_for_a_gpu_is_the_joint_one_for_longer():
    joint, longer = load_recipe("mirage-tiny"), load_recipe("mirage-tiny-long")
    assert longer.stages == joint.stages and longer.data.preset == joint.data.preset
    assert {(s.frames, s.size) for s in longer.data.stores} == {(s.frames, s.size) for s in joint.data.stores}
    for stage in (
        "codec",
        "perception",
        "tiny_decoder",
        "memory",
        "refiner",
        "denoiser",
        "finetune",
        "invention",
        "sight",
        "drawer",
        "dreams",
    ):
        short, long = getattr(joint, stage), getattr(longer, stage)
        assert long.loss == short.loss and long.loop.steps >= 10 * short.loop.steps
        assert replace(short.loop, steps=1, warmup=0, validate_every=1) == replace(
            long.loop, steps=1, warmup=0, validate_every=1
        )


def test_the_shipped_recipe_trains_for_the_way_it_is_used():
    recipe = load_recipe("mirage-tiny")
    assert {store.size for store in recipe.data.stores} == {(64, 64), (128, 128)}
    assert {1, 8} <= set(recipe.denoiser.loss.chunks) and recipe.denoiser.loss.predicted_depth > 0.5
    assert recipe.denoiser.loss == recipe.finetune.loss  # which adds walks of its own
    assert recipe.denoiser.loss.told_noise > 0 and recipe.denoiser.loss.references == 4
    assert max(store.frames for store in recipe.data.stores) > 4 * recipe.denoiser.loss.keyframe_stride + 8


def test_stages_that_nothing_goes_before_are_told(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(ENVS_CONFIG / "train" / "smoke", folder)
    (folder / "backbone.yaml").unlink()
    with pytest.raises(InvalidValueError, match="stage branch goes on from stage backbone, which the recipe lacks"):
        load_recipe(folder)
    for name in ("branch", "lora", "dreams", "drawer", "sight", "invention", "finetune"):
        (folder / f"{name}.yaml").unlink()
    recipe = load_recipe(folder)
    assert recipe.stages == (*JOINT_PREPARED, "denoiser")
    with pytest.raises(UnknownNameError, match=r'unknown training stage "walks"; known are codec, denoiser'):
        run_stage("walks", recipe, tmp_path)
    (folder / "codec.yaml").unlink()
    with pytest.raises(InvalidValueError, match="no config file at"):
        load_recipe(folder)


def test_a_finished_training_may_get_a_tiny_decoder_or_a_memory_and_keeps_its_eyes(tmp_path):
    for name in ("codec", "perception", "sight", "denoiser", "drawer", "tiny_decoder", "memory"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    for stage in ("denoiser", "drawer", "tiny_decoder", "memory"):
        _publish(tmp_path, stage)
    parts = {file.stem: file.read_text() for file in (tmp_path / "weights").iterdir()}
    (tmp_path / "dreams.safetensors").write_text("dreams")
    _publish(tmp_path, "dreams")
    assert (tmp_path / "weights" / "drawer.safetensors").read_text() == "dreams"
    assert parts == {part: part for part in ("codec", "denoiser", "drawer", "tiny_decoder", "memory")} | {
        "perception": "sight"
    }


def test_a_stage_that_was_whole_long_ago_takes_nothing_back(tmp_path):
    (tmp_path / "weights").mkdir()
    for second, name in enumerate(("sight", "weights/perception", "dreams", "weights/drawer")):
        file = tmp_path / f"{name}.safetensors"
        file.write_text(name)
        os.utime(file, (second, second))
        if name in ("sight", "dreams"):  # new, and not published yet
            assert not _published(tmp_path, name)
    assert _published(tmp_path, "sight") and _published(tmp_path, "dreams")


def test_a_stage_goes_on_from_the_weights_that_ship(tmp_path):
    recipe, shipped = load_recipe("smoke"), WEIGHTS / "mirage-tiny"
    parts = {file.name: file.read_bytes() for file in shipped.glob("*.safetensors")}
    begin_with("mirage-tiny", recipe, "sight", tmp_path)
    taken = {file.stem for file in tmp_path.glob("*.safetensors")}
    assert taken == {"codec", "perception", "tiny_decoder", "memory", "refiner", "backbone", "branch", "lora",
                     "denoiser", "finetune", "invention"}  # fmt: skip
    assert (tmp_path / "invention.safetensors").read_bytes() == parts["denoiser.safetensors"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "weights").iterdir()} == parts
    (tmp_path / "perception.safetensors").write_bytes(b"its own")
    begin_with(shipped, recipe, "dreams", tmp_path)
    assert (tmp_path / "perception.safetensors").read_bytes() == b"its own"
    assert (tmp_path / "sight.safetensors").read_bytes() == parts["perception.safetensors"]
    assert (tmp_path / "drawer.safetensors").read_bytes() == parts["drawer.safetensors"]
    assert not (tmp_path / "dreams.safetensors").exists()  # which it is to make
    (tmp_path / "codec.safetensors").write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"has a codec other than that of .* choose another folder"):
        begin_with("mirage-tiny", recipe, "dreams", tmp_path)
    with pytest.raises(InvalidValueError, match="stage render goes on from nothing; leave --from away"):
        begin_with("mirage-tiny", recipe, "render", tmp_path)
    with pytest.raises(WeightsError, match=r"no weights at .*codec\.safetensors"):
        begin_with(ENVS_CONFIG, recipe, "dreams", tmp_path)


def test_a_memory_without_weights_is_no_stage(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(ENVS_CONFIG / "train" / "smoke", folder)
    data = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(data.replace("preset: mirage-tiny", "preset: mirage-tiny-rgb"))
    preset = load_config("mirage-tiny-rgb", Preset)
    for name in ("codec", "perception"):
        part = WanCodec(preset.codec) if name == "codec" else TinyPerception(preset.perception)
        save_weights(tmp_path / f"{name}.safetensors", part, {"kind": name})
    (tmp_path / "clips-0").mkdir()
    (tmp_path / "clips-0" / "clips.json").write_text('{"clips": 1, "frames": 1, "size": [64, 64], "first_seed": 0}')
    with pytest.raises(InvalidValueError, match="the memory of preset mirage-tiny-rgb has nothing to train"):
        run_stage("memory", load_recipe(folder), tmp_path)
