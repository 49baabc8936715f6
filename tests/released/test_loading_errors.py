"""Everything that can be wrong with a checkpoint or an adapter is one sentence."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import httpx
from safetensors.torch import load_file, save_file

from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.weights import checkpoint as checkpoints
from mirage_env.world_model import load_world

SIZE = (64, 96)


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy to damage."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


@pytest.fixture
def broken_adapter(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "adapter")


def refused(make_preset, message: str, **changes) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_world(make_preset(**changes), SIZE, "cpu")
    assert "\n" not in str(caught.value)


def test_missing_shard(make_preset, free, broken):
    next((broken / "transformer").glob("*-00002-of-*")).unlink()
    refused(
        make_preset, r"lacks the shard .*-00002-of-\d+.safetensors of \d+ in .*; fetch it", checkpoint=broken, **free
    )


def test_cut_off_file(make_preset, free, broken):
    shard = next((broken / "vae").glob("*-00001-of-*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    refused(make_preset, "is damaged or was cut off at 1000 bytes; fetch it again", checkpoint=broken, **free)


def test_wrong_backbone(make_preset, free, broken):
    path = broken / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 40}))
    refused(
        make_preset, "its num_attention_heads is 40, the preset's 2; name the checkpoint", checkpoint=broken, **free
    )


def test_wrong_schedule(make_preset, free):
    refused(
        make_preset, "its flow_shift is 5.0, the preset's 3.0", **free | {"sampler": {"replace": 0.5, "shift": 3.0}}
    )


def test_config_that_is_no_json(make_preset, free, broken):
    (broken / "vae" / "config.json").write_text("{")
    refused(make_preset, r"vae/config.json is damaged \(.*\); fetch it again", checkpoint=broken, **free)


def test_a_text_encoder_that_is_damaged_or_not_there(make_preset, free, broken):
    model = load_world(make_preset(checkpoint=broken, **free), SIZE, "cpu")
    (broken / "text_encoder" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"the text encoder of .* cannot be read \(.*\); fetch it again"):
        model.text("a kitchen")
    file = broken / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"is damaged or was cut off at \d+ bytes; fetch it again"):
        model.text("a kitchen")
    shutil.rmtree(broken / "text_encoder")
    with pytest.raises(WeightsError, match=r"the checkpoint lacks model.safetensors in .*text_encoder; fetch it again"):
        model.text("a kitchen")


def test_packages_that_are_not_installed(make_preset, free, monkeypatch):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None if name in ("peft", "ftfy") else name)
    refused(make_preset, r"needs ftfy and peft; pip install 'mirage-env\[wan\]'", **free)


def test_no_adapter(make_preset):
    refused(make_preset, "has not learned to read the memory and the preset names no adapter; .* training-free preset")


def test_adapter_of_another_backbone(make_preset, broken_adapter):
    path = broken_adapter / "config.json"
    config = json.loads(path.read_text())
    config["backbone"]["fingerprint"] = "0" * 16
    path.write_text(json.dumps(config))
    refused(make_preset, "was trained on another backbone: fingerprint is '0000", adapter=str(broken_adapter))


def test_adapter_of_other_rank(make_preset, broken_adapter):
    path = broken_adapter / "config.json"
    config = json.loads(path.read_text())
    config["lora"]["rank"] = 64
    path.write_text(json.dumps(config))
    refused(make_preset, r"holds LoRA of rank \[4\], config.json says 64", adapter=str(broken_adapter))


def test_adapter_of_other_layers(make_preset, adapter):
    changes = {"adapter": str(adapter), "denoiser": {"memory_layers": [0, 3]}}
    refused(make_preset, r"has its branch at layers \[0, 2\], the preset at \[0, 3\]", **changes)


def test_adapter_with_missing_or_damaged_tensors(make_preset, broken_adapter, adapter):
    path = broken_adapter / "branch.safetensors"
    tensors = load_file(path)
    tensors.pop("memory_blocks.0.proj_out.bias")
    save_file(tensors, path)
    refused(make_preset, "1 tensors differ, the first is memory_blocks.0.proj_out.bias", adapter=str(broken_adapter))
    path.write_bytes(b"nothing")
    refused(make_preset, r"branch.safetensors is damaged \(.*\); copy it again", adapter=str(broken_adapter))
    lora = broken_adapter / "pytorch_lora_weights.safetensors"
    whole = load_file(lora)
    save_file({k: v for k, v in whole.items() if not k.startswith("blocks.0.attn1.to_q")}, lora)
    shutil.copy(adapter / "branch.safetensors", path)
    refused(make_preset, "2 tensors differ, the first is blocks.0.attn1.to_q.lora_A", adapter=str(broken_adapter))
    path.unlink()
    refused(make_preset, "the adapter lacks .*branch.safetensors; copy its whole folder", adapter=str(broken_adapter))


def test_not_enough_memory(make_preset, free, monkeypatch):
    monkeypatch.setattr(checkpoints, "free_bytes", lambda device: 1024)
    refused(make_preset, r"needs 0.0 GiB of memory on cpu, and 0.0 GiB are free; close other programs", **free)


def test_a_checkpoint_that_was_never_fetched(make_preset, free, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
    refused(
        make_preset,
        "owner/model is not on this machine; get it with mirage-env fetch",
        checkpoint="owner/model",
        **free,
    )


def test_a_folder_that_is_not_there(make_preset, free):
    refused(make_preset, "no weights at /not/here; name a folder, or a checkpoint", checkpoint="/not/here", **free)


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (httpx.ConnectError("nobody there"), "no way to huggingface.co; go online, set HF_ENDPOINT"),
        (errors.LocalEntryNotFoundError("offline"), "no way to huggingface.co"),
        (errors.GatedRepoError("gated", response=response(403)), "owner/model is gated: accept its licence"),
        (errors.RepositoryNotFoundError("404", response=response(404)), "the hub has no checkpoint owner/model"),
        (OSError(28, "No space left on device"), r"could not be fetched \(No space left on device\); free space"),
    ],
)
def test_fetching_tells_what_went_wrong(monkeypatch, raised, message):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(checkpoints.FetchError, match=message) as caught:
        checkpoints.fetch("owner/model")
    assert "\n" not in str(caught.value)
    with pytest.raises(checkpoints.FetchError, match="is named owner/name"):
        checkpoints.fetch("model")


def test_presets_that_contradict_themselves(make_preset, adapter, free):
    with pytest.raises(InvalidValueError, match="without memory_layers the memory comes in"):
        load_world(make_preset(denoiser={"memory_layers": []}), SIZE, "cpu")
    with pytest.raises(InvalidValueError, match=r"set sampler\.replace to 0"):
        load_world(make_preset(adapter=str(adapter), sampler={"replace": 0.5}), SIZE, "cpu")
    with pytest.raises(InvalidValueError, match=r"multiple of 32 pixels a side, got 60 x 96; .* is 64 x 96"):
        load_world(make_preset(**free), (60, 96), "cpu")


def test_bytes_are_counted_without_reading_them(checkpoint):
    folder = checkpoint / "transformer"
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert checkpoints.part_bytes(folder) == files
    assert checkpoints.free_bytes("cpu") > 2**20 and torch.get_default_dtype() == torch.float32
