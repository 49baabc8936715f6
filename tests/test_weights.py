from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from mirage_env.errors import WeightsError
from mirage_env.resources import WEIGHTS
from mirage_env.weights import load_weights, read_card, save_weights
from mirage_env.weights.checkpoint import find


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "part.safetensors"
    save_weights(path, nn.Linear(3, 2), {"kind": "depth", "codec_hash": "a" * 64, "steps": 5})
    return path


def test_weights_come_back_in_half_precision_with_their_card(saved):
    layer = nn.Linear(3, 2)
    card = load_weights(saved, layer, "depth", codec_hash="a" * 64)
    assert card["steps"] == 5 and read_card(saved) == card
    assert layer.weight.dtype == torch.float32 and torch.equal(layer.weight, layer.weight.half().float())


def test_missing_damaged_and_foreign_files_are_told(saved, tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at .*nothing\.safetensors"):
        read_card(tmp_path / "nothing.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved.read_bytes()[:50])
    with pytest.raises(WeightsError, match="is damaged"):
        load_weights(damaged, nn.Linear(3, 2), "depth")
    with pytest.raises(WeightsError, match="holds a depth, expected a codec"):
        load_weights(saved, nn.Linear(3, 2), "codec")
    with pytest.raises(WeightsError, match="2 tensors differ, the first is bias"):
        load_weights(saved, nn.Linear(3, 4), "depth")
    with pytest.raises(WeightsError, match="trained for the codec aaaaaaaaaaaa, but the codec in use is bbbbbbbbbbbb"):
        load_weights(saved, nn.Linear(3, 2), "depth", codec_hash="b" * 64)


def test_weights_are_found_by_name_and_in_the_folder_of_a_training(tmp_path, monkeypatch):
    training, plain = tmp_path / "runs" / "mine", tmp_path / "mirage-tiny"
    (training / "weights").mkdir(parents=True)
    plain.mkdir()
    monkeypatch.chdir(tmp_path)
    assert find(str(training)) == training / "weights" and find("runs/mine").resolve() == training / "weights"
    assert find("mirage-tiny") == WEIGHTS / "mirage-tiny" and find(str(plain)) == plain  # a preset's name, and a path
    with pytest.raises(WeightsError, match="no weights at /nowhere; name a folder"):
        find("/nowhere")


def test_a_safetensors_file_without_card_is_foreign(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="no card inside"):
        read_card(tmp_path / "x.safetensors")


def test_weights_that_are_not_finite_are_damaged(tmp_path):
    layer = nn.Linear(3, 2)
    torch.nn.init.constant_(layer.bias, float("nan"))
    save_weights(tmp_path / "part.safetensors", layer, {"kind": "depth"})
    with pytest.raises(WeightsError, match="is damaged: bias holds numbers that are not finite"):
        load_weights(tmp_path / "part.safetensors", nn.Linear(3, 2), "depth")


def test_a_card_that_is_no_mapping_is_foreign(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"card": "5"})
    with pytest.raises(WeightsError, match="no card inside"):
        read_card(tmp_path / "x.safetensors")


def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    """As far as the umask lets them, like any other file."""
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "a.safetensors", torch.nn.Linear(2, 2), {"kind": "test"})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
