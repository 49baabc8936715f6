from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.tiny_checkpoints import qwen3_vl, sam3
from mirage_env.errors import InvalidValueError, MirageError, WeightsError
from mirage_env.perception.composed import ComposedConfig, OutsideModel
from mirage_env.perception.qwen3_vl import MovingThings, categories
from mirage_env.perception.sam3 import Sam3, Sam3Config, Sam3Package, Sam3Transformers, load_package


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Person, dog", ("person", "dog")),
        ("Nothing.", ()),
        ("car\ncar\nbus; delivery van, cat", ("car", "bus", "delivery van")),
        ("There is a person who walks through the room", ()),
        ("", ()),
    ],
)
def test_answers_become_at_most_three_categories(answer, expected):
    assert categories(answer) == expected


class Halves(torch.nn.Module):
    """Finds the sky in the upper half, anything else on the left, and counts."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, image, phrases, threshold):
        self.asked.append((tuple(phrases), threshold))
        masks = torch.zeros(len(phrases), *image.shape[1:], dtype=torch.bool)
        for mask, phrase in zip(masks, phrases, strict=True):
            (mask[:4] if phrase == "sky" else mask[:, :4]).fill_(True)
        return masks


def test_named_things_are_dynamic_and_the_sky_is_apart():
    segmenter, asked = Halves(), []

    def names(rgb):
        asked.append(rgb.shape)
        return ("dog",) if len(asked) == 1 else ("person", "dog")

    model = Sam3(segmenter, names, Sam3Config(phrases=("car",), names_every=2))
    dynamic, sky = model(torch.zeros(3, 3, 8, 8))
    assert segmenter.asked == [(("car", "dog", "person", "sky"), 0.3)] * 3 and asked == [(8, 8, 3)] * 2
    assert bool(dynamic[:, :, :4].all()) and not bool(dynamic[:, :, 4:].any())
    assert bool(sky[:, :4].all()) and not bool(sky[:, 4:].any())


def test_nothing_to_look_for_costs_nothing():
    segmenter = Halves()
    dynamic, sky = Sam3(segmenter, lambda rgb: (), Sam3Config(sky=False))(torch.zeros(2, 3, 8, 8))
    assert not bool(dynamic.any()) and sky is None and segmenter.asked == []
    dynamic, sky = Sam3(segmenter)(torch.zeros(2, 3, 8, 8))
    assert not bool(dynamic.any()) and sky is not None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    return sam3(folder / "sam3"), qwen3_vl(folder / "qwen3-vl")


def test_the_real_networks_load_by_the_preset_and_see(folders):
    masks = OutsideModel("sam3", str(folders[0]), {"names": str(folders[1]), "phrases": ["person"], "threshold": 0.01})
    perception = ComposedConfig(masks=masks).load(torch.device("cpu"), torch.float32)
    dynamic, sky = perception.masks(torch.rand(2, 3, 48, 64) * 2 - 1)
    assert dynamic.shape == sky.shape == (2, 48, 64)


def test_a_phrase_is_masked_as_transformers_does(folders):
    """The union of the instances that its own recipe keeps."""
    segmenter = Sam3Transformers(folders[0], torch.device("cpu"), torch.float32)
    image = torch.rand(3, 112, 112) * 2 - 1
    words = segmenter.tokenizer(["person"], padding="max_length", max_length=32, return_tensors="pt")
    with torch.inference_mode():
        output = segmenter.model(pixel_values=image[None], **words)
    score = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
    threshold = float(score.sort().values[-4:-2].mean())  # between two instances: some are kept, some are not
    kept = output.pred_masks[:, score.flatten() > threshold].sigmoid()
    found = torch.nn.functional.interpolate(kept, (112, 112), mode="bilinear")
    assert found.shape[1] == 3
    assert torch.equal(segmenter(image, ["person", "sky"], threshold)[0], (found[0] > 0.5).any(0))
    assert not bool(segmenter(image, ["person"], 0.999).any())


def test_the_same_picture_gets_the_same_names(folders):
    names = MovingThings(folders[1], torch.device("cpu"), torch.float32)
    rgb = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    assert names(rgb) == names(rgb) and len(names(rgb)) <= 3


def test_the_sam3_package_by_its_processor():
    def set_text_prompt(phrase, state):
        masks = torch.zeros(2, 1, *state["size"], dtype=torch.bool)
        masks[0, 0, 0, 0] = masks[1, 0, 1, 1] = phrase == "dog"
        return {"masks": masks}

    processor = SimpleNamespace(set_image=lambda image: {"size": image.size[::-1]}, set_text_prompt=set_text_prompt)
    masks = Sam3Package(processor)(torch.zeros(3, 4, 6), ["dog", "sky"], 0.4)
    assert processor.confidence_threshold == 0.4
    assert masks.shape == (2, 4, 6) and masks[0].nonzero().tolist() == [[0, 0], [1, 1]] and not bool(masks[1].any())
    with pytest.raises(InvalidValueError, match="expected a Sam3Processor of the sam3 package, got SimpleNamespace"):
        Sam3Package(SimpleNamespace())


def test_the_sam3_package_by_the_preset(tmp_path, monkeypatch):
    """The package needs a GPU: stand-ins show what is asked of it, and that each thing that is missing is told."""
    cuda, path = torch.device("cuda"), tmp_path / "sam3-package.safetensors"
    with pytest.raises(MirageError, match="runs on CUDA alone, not on cpu; take model: sam3"):
        Sam3Package.from_folder(tmp_path, torch.device("cpu"), torch.float32)
    monkeypatch.setitem(sys.modules, "sam3.model_builder", None)
    with pytest.raises(MirageError, match=r"the sam3 package cannot be imported \(.*\); take model: sam3"):
        Sam3Package.from_folder(tmp_path, cuda, torch.float32)

    def processor(model, device):
        return SimpleNamespace(set_image=None, set_text_prompt=None, weight=model.weight.item(), device=device)

    def builder(vocabulary, device, load_from_HF):
        assert (vocabulary, device, load_from_HF) == (str(tmp_path / "bpe_simple_vocab_16e6.txt.gz"), "cuda", False)
        return torch.nn.Linear(1, 1, bias=False)

    modules = {"model": {}, "model.sam3_image_processor": {"Sam3Processor": processor}}
    modules |= {"model_builder": {"build_sam3_image_model": builder}}
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"sam3.{name}", SimpleNamespace(**content))
    monkeypatch.setitem(sys.modules, "sam3", SimpleNamespace())
    with pytest.raises(WeightsError, match=r"needs .*sam3-package.safetensors; docs/full-size.md says how"):
        Sam3Package.from_folder(tmp_path, cuda, torch.float32)
    save_file({"weight": torch.full((1, 1), 3.0)}, path)
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"")
    made = load_package(str(tmp_path), {}, cuda, torch.float32).segmenter.processor
    assert (made.weight, made.device) == (3.0, "cuda")
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"sam3-package.safetensors does not fit \(.*\); make it anew"):
        Sam3Package.from_folder(tmp_path, cuda, torch.float32)


def test_folders_that_are_damaged_are_told(folders, tmp_path):
    for loader, name, folder in ((Sam3Transformers, "SAM 3", folders[0]), (MovingThings, "Qwen3-VL", folders[1])):
        broken = shutil.copytree(folder, tmp_path / name)
        (broken / "config.json").write_text("{")
        with pytest.raises(WeightsError, match=rf"cannot be read as {name} \(.*\); fetch it again"):
            loader(broken, torch.device("cpu"), torch.float32)
        (broken / "model.safetensors").write_bytes(b"")
        with pytest.raises(WeightsError, match="is damaged or was cut off at 0 bytes; fetch it again"):
            loader(broken, torch.device("cpu"), torch.float32)
