"""examples/custom_memory.py in a world: it is found, read, written and evaluated."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.custom_memory import Postcard, PostcardConfig
from mirage_env import cli, world_model
from mirage_env.evaluation.candidates import choose_ablations, generate, with_memory
from mirage_env.memory.none import NoMemory
from mirage_env.memory.protocol import make_memory, memory_kinds

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "custom_memory.py"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with the entry point, as pip would leave it; nothing but the standard library looks for it."""
    info = tmp_path / "site" / "my_memory-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-memory\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mirage_env.memories]\npostcard = examples.custom_memory:Postcard\n")
    monkeypatch.syspath_prepend(str(info.parent))


@pytest.mark.usefixtures("installed")
def test_an_installed_memory_is_found_by_presets_and_evaluated_by_name(model, monkeypatch, tmp_path, capsys):
    assert "postcard" in memory_kinds()
    memory = make_memory(PostcardConfig(distance_m=2.0), lambda images: images)
    assert isinstance(memory, Postcard) and memory.config.distance_m == 2.0
    monkeypatch.setattr(world_model, "load_world", lambda *_, **__: model)
    walk = recorded_walk(tmp_path / "walk")
    run = ["run", "--inputs", walk, "--size", "32x48", "--with", "postcard", "--out", tmp_path / "out"]
    for arguments in (["list"], run):
        monkeypatch.setattr(sys, "argv", ["mirage-env", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        assert "postcard" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "report.json").read_text())["results"]["summary"]
    assert {"model", "postcard", "no-memory"} <= set(summary)


def recorded_walk(folder: Path) -> Path:
    """Three pictures of noise along a sidestep."""
    folder.mkdir()
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = (0.0, 0.1, 0.2)
    lens = [[40.0, 0.0, 24.0], [0.0, 40.0, 16.0], [0.0, 0.0, 1.0]]
    values = {"world_from_camera": poses.tolist(), "intrinsics_px": [lens], "size_px": [32, 48]}
    (folder / "cameras.json").write_text(json.dumps(values))
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("kind", ["rgb", "none", "latent"])
def test_the_memories_that_come_with_it_are_evaluated_by_name_too(kind, model, make_walk):
    (candidate,) = choose_ablations([kind]).values()
    assert candidate.answer(model, make_walk([0.0, 0.5])).rgb.shape == (1, 32, 48, 3)


def test_the_example_is_forty_lines():
    """With its config and its state."""
    text = EXAMPLE.read_text()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    lines = [text.splitlines()[n - 1] for node in classes for n in range(node.lineno - 1, node.end_lineno + 1)]
    assert len(classes) == 3 and sum(bool(line.strip()) for line in lines) <= 40


def test_the_postcard_appears_in_evaluation(model, make_walk):
    walk = make_walk([0.0, 1.0, 2.0, 3.0])
    postcard = with_memory(lambda _: Postcard())(model, walk)
    # an untrained model repeats what it is shown: the postcard of the first frame, wherever the camera went
    assert torch.equal(postcard.rgb, with_memory(lambda _: NoMemory())(model, walk).rgb)
    assert not torch.equal(postcard.rgb, generate(model, walk).rgb)


def test_its_state_is_a_value(model, make_walk):
    other = model.with_memory(Postcard())
    _, state = other.begin(make_walk([0.0, 1.0]).scene, 0)
    assert other.stats(state)["memory_points"] == 1 and state.memory.nbytes == state.memory.tokens.nbytes
    again = type(state.memory).from_tensors(state.memory.tensors())
    assert torch.equal(again.tokens, state.memory.tokens)
    assert not other.memory.contrast.requires_grad
