from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.tiny_checkpoints import qwen3_vl, sam3
from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.perception.composed import ComposedConfig, OutsideModel
from mirage_env.perception.qwen3_vl import MovingThings, categories
from mirage_env.perception.sam3 import Sam3, Sam3Config, Sam3Package, Sam3Transformers


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


def test_folders_that_hold_something_else_are_told(tmp_path):
    for loader, name in ((Sam3Transformers, "SAM 3"), (MovingThings, "Qwen3-VL")):
        with pytest.raises(WeightsError, match=rf"cannot be read as {name} \(.*\); fetch it again"):
            loader(tmp_path, torch.device("cpu"), torch.float32)
