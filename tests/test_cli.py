from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mirage_env import cli, world_model
from mirage_env.cli.console import parse_size
from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.resources import sha256_of
from mirage_env.types import Cameras, Frames
from mirage_env.weights import read_card


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`generate` without a model: grey frames at the poses it was asked for; what it was asked for is recorded."""
    recorded: list[dict[str, Any]] = []

    def generate(
        image: str, cameras: np.ndarray, *, progress: Callable[[int, int], None], **options: Any
    ) -> world_model.Episode:
        recorded.append({"image": image, "cameras": cameras, **options})
        height, width = options["size"]
        total = len(cameras)
        for done in range(options["chunk"], total + 1, options["chunk"]):
            progress(done, total)
        poses = torch.from_numpy(np.concatenate([np.eye(4)[None], cameras])).float()
        no = torch.zeros(total + 1, height, width, dtype=torch.bool)
        frames = Frames(
            rgb=torch.full((total + 1, height, width, 3), 128, dtype=torch.uint8),
            depth_m=torch.full((total + 1, height, width), 2.0),
            sky=no,
            dynamic=no,
            remembered=torch.ones(total + 1, height // 8, width // 8, dtype=torch.bool),
            cameras=Cameras(poses, intrinsics_from_fov(1.2, (height, width)).repeat(total + 1, 1, 1), (height, width)),
        )
        return world_model.Episode(frames, {"preset": options["preset"], "seed": options["seed"]})

    monkeypatch.setattr(world_model, "generate", generate)
    monkeypatch.setattr(world_model, "load_world", lambda *_: None)
    return recorded


def mirage_env(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit code of the command with these arguments."""
    monkeypatch.setattr(sys, "argv", ["mirage-env", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_demo_writes_a_walk_and_says_what_next(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert mirage_env(monkeypatch, "demo", "--image", "temple", "--out", out, "--size", "32x48", "--seed", "3") == 0
    (call,) = calls
    assert (call["image"], call["cameras"].shape, call["size"], call["chunk"]) == ("temple", (64, 4, 4), (32, 48), 8)
    printed = capsys.readouterr().out.replace("\n", "")
    for name in ("rgb.mp4", "depth.npz", "poses.json", "contact_sheet.png", "metadata.json"):
        assert (out / name).stat().st_size > 0
        assert name in printed
    assert "frames a second" in printed
    assert "Next" in printed
    metadata = json.loads((out / "metadata.json").read_text())
    assert {"image_sha256", "seed", "trajectory", "revision", "versions"} <= metadata.keys()
    assert (metadata["frames"], metadata["seed"]) == (65, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.jpg"], "no picture at none.jpg"),
        (["--image", "tample"], 'unknown built-in image "tample"'),
        (["--trajectory", "fly"], 'unknown trajectory "fly"; known are look-around, loop, walk'),
        (["--size", "big"], 'size must look like 128 or 96x160 (HEIGHTxWIDTH), got "big"'),
        (["--image", "temple", "--out", "FILE/below"], "choose another output folder"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(
    calls: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    assert mirage_env(monkeypatch, "demo", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert calls == []


def test_a_tiny_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    assert mirage_env(monkeypatch, "demo", "--image", tmp_path / "pixel.png") == 2
    assert "needs at least 16 a side" in capsys.readouterr().err


def test_info_lists_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mirage_env(monkeypatch, "info") == 0
    printed = capsys.readouterr().out
    for name in ("torch", "mirage-tiny", "temple", "Mirage-v0", "MirageSim-v0", "weights", "device"):
        assert name in printed


def test_help_teaches() -> None:
    for arguments in ([], ["demo"], ["info"]):
        result = CliRunner().invoke(cli.app, [*arguments, "--help"])
        assert result.exit_code == 0
    assert "mirage-env demo" in CliRunner().invoke(cli.app, ["--help"]).output


def test_size() -> None:
    assert parse_size("64") == (64, 64)
    assert parse_size("96x160") == (96, 160)
    for bad in ("", "0", "64x", "1x2x3", "-64", "6.4"):
        with pytest.raises(InvalidValueError, match="size must look like 128 or 96x160"):
            parse_size(bad)


def test_train_smoke_runs_every_stage_and_gives_weights_that_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert mirage_env(monkeypatch, "train", "--smoke", "--out", str(tmp_path), "--device", "cpu") == 0
    stages = (
        "codec",
        "perception",
        "tiny_decoder",
        "memory",
        "refiner",
        "backbone",
        "branch",
        "lora",
        "denoiser",
        "finetune",
        "invention",
        "sight",
        "drawer",
        "dreams",
    )
    for name in stages:
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [2, 4]
        if name != "memory":
            with Image.open(tmp_path / f"{name}.png") as strip:
                assert strip.height in (2 * 64, 3 * 64, 4 * 64)  # rows of pictures of 64 pixels
        assert list((tmp_path / "tensorboard" / name).iterdir())
    assert read_card(tmp_path / "memory.safetensors")["metrics"].keys() == {
        "error",
        "own_error",
    }  # nobody wrote it anew
    made_last = {"denoiser": "invention", "perception": "sight", "drawer": "dreams"}
    made_last |= {part: part for part in ("memory", "tiny_decoder")}
    trained = {part: sha256_of(tmp_path / f"{stage}.safetensors") for part, stage in made_last.items()}
    env = gym.make("mirage_env:Mirage-v0", size=(64, 64), device="cpu", weights=tmp_path)
    assert env.unwrapped.world.weights.items() >= trained.items()
    env.reset(seed=0)
    assert env.step([1.0, 0.0, 0.0])[0]["rgb"].shape == (64, 64, 3)
    own = ("--weights", tmp_path / "weights", "--beside", f"two-stage={tmp_path}", "--size", "64", "--device", "cpu")
    arguments = ("eval", "run", "--suite", "photos", "--scenes", "1", "--out", tmp_path / "eval", *own)
    assert mirage_env(monkeypatch, *arguments) == 0
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["weights_sha256"] == env.unwrapped.world.weights
    rows = report["results"]["summary"]
    assert rows["model"] == rows["two-stage"] != rows["first-frame"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["codex"],
            'unknown training stage "codex"; known are all, asked, codec, denoiser, drawer, dreams, finetune',
        ),
        (
            ["--recipe", "mirage-tny"],
            'unknown recipe "mirage-tny"; known are mirage-tiny, mirage-tiny-long, '
            'mirage-tiny-rgb, mirage-tiny-two-stage, smoke, wan2.2-ti2v-5b; did you mean "mirage-tiny"?',
        ),
        (["codec", "--device", "tpu"], 'device must be auto, cpu or an available cuda, got "tpu"; use cpu'),
        (["--from", "mirage-tiny"], "--from lets one stage of the embedded model go on; name the stage before it"),
        (["dreams", "--from", "nowhere/at/all"], "no weights at nowhere/at/all; name a folder"),
    ],
)
def test_train_tells_a_mistake_before_it_makes_a_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mirage_env(monkeypatch, "train", *arguments, "--out", "runs") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
