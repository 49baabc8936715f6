from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from mirage_env import cli, world_model
from mirage_env.evaluation.exchange import frame_name


@pytest.fixture
def command(monkeypatch, model):
    """The exit code of `mirage-env eval ...`, with the small random model in place of the shipped one."""
    monkeypatch.setattr(world_model, "load_world", lambda *_, **__: model)

    def call(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["mirage-env", "eval", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return call


def test_what_can_be_evaluated_is_listed(command, capsys):
    assert command("list") == 0
    printed = capsys.readouterr().out
    for name in ("novel-view", "closed-loop", "photos", "warp-true-depth", "paper-write", "pixel-lifted"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--suite", "novel"), 'unknown suite "novel"'),
        (("run", "--with", "paper-rule"), 'unknown ablation "paper-rule"'),
        (("run", "--inputs", "/nowhere"), "no cameras at /nowhere"),
        (
            ("run", "--beside", "two-stage"),
            "--beside takes NAME=FOLDER or NAME=FOLDER,PRESET, NAME of letters, digits and hyphens, got two-stage",
        ),
        (("run", "--beside", "codec=runs"), 'the row "codec" is taken'),
        (("score", "--pred", "/nowhere"), "no folder of frames at /nowhere"),
    ],
)
def test_mistakes_are_one_sentence(command, capsys, arguments, message):
    assert command(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_exported_scenes_are_answered_and_scored(command, capsys, tmp_path):
    """Whoever repeats the first picture scores what the baseline of that name scores."""
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    assert command("export", "--out", theirs, "--scenes", 1, "--size", "32x48") == 0
    (scene,) = (place for place in theirs.iterdir() if place.is_dir())
    cameras = json.loads((scene / "cameras.json").read_text())
    assert cameras["size_px"] == [32, 48] and np.array(cameras["world_from_camera"]).shape == (33, 4, 4)
    for index in range(1, 33):
        Image.open(scene / "first.png").save(scene / frame_name(index))
    assert command("score", "--pred", theirs, "--scenes", 1, "--size", "32x48", "--out", out) == 0
    summary = json.loads((out / "report.json").read_text())["results"]["summary"]
    assert summary["submission"] == summary["first-frame"] and "model" not in summary
    assert (out / "report.html").stat().st_size > 10_000


def test_recorded_walks_are_evaluated(command, tmp_path):
    scene = tmp_path / "walk"
    scene.mkdir()
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = (0.0, 0.1, 0.2)
    lens = [[40.0, 0.0, 24.0], [0.0, 40.0, 16.0], [0.0, 0.0, 1.0]]
    values = {"world_from_camera": poses.tolist(), "intrinsics_px": [lens], "size_px": [32, 48]}
    (scene / "cameras.json").write_text(json.dumps(values))
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(scene / f"{index}.png")
    assert command("run", "--inputs", scene, "--size", "32x48", "--out", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "report.json").read_text())["results"]["summary"]
    assert set(summary) == {"model", "no-memory", "warp-predicted-depth", "first-frame", "codec"}  # no true depth
    assert summary["model"]["psnr_db"]["scenes"] == 1
