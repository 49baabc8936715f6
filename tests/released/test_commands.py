"""From videos to a walk by the commands alone: data, train, info, demo; and the same world in the environment."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import mirage_env  # noqa: F401 (registers the ids)
from benchmarks.tiny_checkpoints import preset
from mirage_env import cli
from mirage_env.artefacts import write_video
from mirage_env.cameras_io import write_realestate10k
from mirage_env.errors import InvalidValueError
from tests.released.clips import pictures, sideways

pytest.importorskip("lmdb", reason="training on video needs mirage-env[video]")
from mirage_env.training.full_size import fill_store
from mirage_env.training.video import VideoConfig


def command(*arguments: object) -> str:
    """What `mirage-env` prints; it must succeed."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """As `mirage-env export --to realestate10k` lays them out, a video beside its cameras, and a damaged one."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("cameras/house", "hall", "damaged"):
        path = folder / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        write_realestate10k(path, sideways(33))
    (folder / "frames" / "house").mkdir(parents=True)
    for time_s, picture in zip(sideways(33).timestamp_s, pictures(33, 0), strict=True):
        Image.fromarray(picture).save(folder / "frames" / "house" / f"{round(1e6 * time_s)}.png")
    write_video(folder / "hall.mp4", pictures(33, 1), fps=30)
    (folder / "damaged.mp4").write_bytes((folder / "hall.mp4").read_bytes()[:500])
    return folder


def test_a_size_that_the_backbone_cannot_take_is_told_before_any_work(videos, checkpoint, tmp_path):
    config = VideoConfig((60, 96))
    with pytest.raises(InvalidValueError, match=r"multiple of 32 pixels a side, got 60 x 96; .* is 64 x 96"):
        fill_store(videos, tmp_path / "store", str(preset(tmp_path / "shape.yaml", checkpoint)), config, "cpu")
    assert not (tmp_path / "store").exists()


def test_videos_become_an_adapter_and_the_adapter_a_world(videos, checkpoint, tmp_path):
    shape, store, runs = preset(tmp_path / "shape.yaml", checkpoint), tmp_path / "store", tmp_path / "runs"
    options = ("--out", store, "--preset", shape, "--size", "64x96", "--chunks", 1, "--device", "cpu")
    for shard in ("1/2", "2/2", "2/2"):  # the third time there is nothing to do
        told = command("data", videos, *options, "--shard", shard)
        assert ("skipped damaged" in told) == (shard == "2/2") and "the same command goes on" in told

    stage = {"loss": {"batch": 1, "chunks": [2]}, "loop": {"steps": 2, "ema": 0.0, "precision": "fp32"}}
    recipe = {"adapter": {"preset": str(shape), "lora": {"rank": 4}, "held_out": 1}, "branch": stage, "lora": stage}
    for name, values in recipe.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    train = ("train", "--recipe", tmp_path, "--data", store, "--out", runs, "--device", "cpu")
    assert "branch is not finished; the same command goes on" in command(*train, "--minutes", 0)
    assert "done; the weights are in" in command(*train)

    world = preset(tmp_path / "world.yaml", checkpoint, adapter=str(runs / "lora"))
    assert f"trained, by the adapter {runs / 'lora'}" in command("info", world)
    out = tmp_path / "out"
    command("demo", "--preset", world, "--size", "64x96", "--frames", 4, "--chunk", 1, "--out", out, "--device", "cpu")
    assert (out / "rgb.mp4").stat().st_size and (out / "poses.json").exists()

    options = {"preset": str(world), "size": (64, 96), "chunk": 2, "device": "cpu"}
    env, action = gymnasium.make("mirage_env:Mirage-v0", **options), [1.0, 0.0, 0.2]
    env.reset(seed=3)
    assert [env.step(action)[4]["generated"] for _ in range(3)] == [False, True, False]  # drafts in between
    env.unwrapped.save(tmp_path / "place.safetensors")
    expected = env.step(action)[0]
    again = gymnasium.make("mirage_env:Mirage-v0", **options)
    again.reset(seed=4)
    again.unwrapped.restore(tmp_path / "place.safetensors")
    observed = again.step(action)[0]
    assert all(np.array_equal(observed[name], expected[name]) for name in expected)
