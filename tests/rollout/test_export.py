"""Each format is read back by its consumer's own loader where that is installed, else by its documented layout."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mirage_env import world_model
from mirage_env.artefacts import read_video
from mirage_env.envs.mirage import MirageEnv
from mirage_env.envs.mirage_sim import MirageSimEnv
from mirage_env.errors import InvalidValueError, OutputError, UnknownNameError
from mirage_env.rollout.export import export
from mirage_env.rollout.export.ply import write_ply
from mirage_env.rollout.export.webdataset import write as write_webdataset
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.run import run_shard
from mirage_env.rollout.store import StoredEpisode
from mirage_env.world_model import load_world
from tests.rollout.wall import SIZE, WALL_M

HEIGHT, WIDTH = SIZE


@pytest.fixture
def run(run_of: Any, tmp_path: Path) -> Path:
    run_shard(run_of(episodes=3, steps=5), str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def episodes(run: Path) -> list[StoredEpisode]:
    return list(RunFolder(run).episodes())


def test_minari_reads_it_back_without_loss(
    run: Path, episodes: list[StoredEpisode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari", reason="the extra export is not installed")
    monkeypatch.chdir(tmp_path)
    assert export(run, "minari", "out") == 3
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "out"))
    dataset = minari.load_dataset("mirage/rollout-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 15)
    for read, stored in zip(dataset.iterate_episodes(), episodes, strict=True):
        np.testing.assert_array_equal(read.observations["rgb"], stored.rgb())
        np.testing.assert_array_equal(read.observations["depth_m"], stored.depth_m())
        for name in ("world_from_camera", "intrinsics_px", "remembered"):
            np.testing.assert_array_equal(read.observations[name], stored.array(name))
        np.testing.assert_array_equal(read.actions, stored.array("actions"))
        np.testing.assert_array_equal(read.rewards, stored.array("rewards"))
        assert read.truncations.tolist() == [False] * 4 + [True] and not read.terminations.any()
    (about,) = dataset.storage.get_episode_metadata([1])
    assert about["seed"] == episodes[1].metadata["seed"] and about["licence"] == "unspecified"


def test_lerobot_by_its_documented_layout(run: Path, episodes: list[StoredEpisode], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra export is not installed")
    out = tmp_path / "out"
    export(run, "lerobot", out)
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"], info["fps"]) == ("v3.0", 3, 15, 5)
    depth_key, rgb_key = "observation.images.depth", "observation.images.rgb"
    assert info["features"][depth_key]["info"] == {"is_depth_map": True, "depth_unit": "mm"}

    about = parquet.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    tasks = parquet.read_table(out / "meta/tasks.parquet").to_pylist()
    assert tasks == [{"task_index": 0, "task": "move through the scene"}]
    for row, stored in zip(about, episodes, strict=True):
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        rows = parquet.read_table(out / info["data_path"].format(**place))
        assert set(rows.column_names) == set(info["features"]) - {rgb_key}
        own = [r for r in rows.to_pylist() if r["episode_index"] == row["episode_index"]]
        assert [r["index"] for r in own] == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        assert [r["frame_index"] for r in own] == list(range(row["length"])) and row["length"] == 5
        np.testing.assert_allclose([r["timestamp"] for r in own], np.arange(5) / 5)
        np.testing.assert_array_equal([r["action"] for r in own], stored.array("actions"))
        poses = np.array([r["observation.state"] for r in own]).reshape(5, 3, 4)
        np.testing.assert_array_equal(poses.astype(np.float32), stored.array("world_from_camera")[:5, :3])
        assert [r["next.done"] for r in own] == [False] * 4 + [True]
        for r, units in zip(own, stored.depth_units(), strict=False):
            with Image.open(io.BytesIO(r[depth_key]["bytes"])) as picture:
                np.testing.assert_array_equal(np.asarray(picture), units)

        place = {key: row[f"videos/{rgb_key}/{key}"] for key in ("chunk_index", "file_index")}
        pictures = list(read_video(out / info["video_path"].format(video_key=rgb_key, **place), SIZE))
        first, last = (round(info["fps"] * row[f"videos/{rgb_key}/{end}_timestamp"]) for end in ("from", "to"))
        difference = np.stack(pictures[first:last]).astype(int) - stored.rgb()[:5]
        assert np.abs(difference).mean() < 4  # H.264

    statistics = json.loads((out / "meta/stats.json").read_text())
    actions = np.concatenate([stored.array("actions") for stored in episodes]).astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], actions.mean(0), rtol=1e-9)
    np.testing.assert_allclose(statistics["action"]["std"], actions.std(0), rtol=1e-6)
    shown = np.concatenate([stored.rgb()[:5] for stored in episodes]) / 255
    np.testing.assert_allclose(np.ravel(statistics[rgb_key]["mean"]), shown.mean((0, 1, 2)))
    assert statistics[rgb_key]["count"] == [15 * HEIGHT * WIDTH]
    assert about[0]["stats/action/max"] == episodes[0].array("actions").max(0).tolist()


def test_lerobot_by_its_own_loader(run: Path, episodes: list[StoredEpisode], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra export is not installed")
    python = os.environ.get("LEROBOT_PYTHON") or (sys.executable if find_spec("lerobot") else None)
    if python is None:
        pytest.skip("lerobot is not installed; LEROBOT_PYTHON may name the Python of an environment that has it")
    export(run, "lerobot", tmp_path / "out")
    reader, read = Path(__file__).with_name("read_lerobot.py"), tmp_path / "read.npz"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    subprocess.run([python, str(reader), str(tmp_path / "out"), str(read)], env=offline, check=True)
    with np.load(read) as items:
        about = json.loads(str(items["about"]))
        assert (about["episodes"], about["frames"], about["fps"]) == (3, 15, 5)
        assert about["camera_keys"] == ["observation.images.depth", "observation.images.rgb"]
        assert about["depth_keys"] in (["observation.images.depth"], None)  # None: before lerobot knew of depth
        assert set(about["tasks"]) == {"move through the scene"}
        actions = np.concatenate([stored.array("actions") for stored in episodes])
        np.testing.assert_allclose(about["action_mean"], actions.mean(0), rtol=1e-5)
        for name, expected in (
            ("action", actions),
            ("next.reward", np.concatenate([stored.array("rewards") for stored in episodes])),
            ("observation.state", np.concatenate([s.array("world_from_camera")[:5, :3] for s in episodes])),
            ("observation.images.depth", np.concatenate([1000 * s.depth_m()[:5] for s in episodes])),
            ("episode_index", np.repeat(np.arange(3), 5)),
            ("timestamp", np.tile(np.arange(5) / 5, 3)),
        ):
            np.testing.assert_allclose(items[name].reshape(15, -1), expected.reshape(15, -1), rtol=1e-6, atol=1e-6)
        shown = np.concatenate([stored.rgb()[:5] for stored in episodes]).transpose(0, 3, 1, 2) / 255
        difference = np.abs(items["observation.images.rgb"] - shown).mean((1, 2, 3))
        assert items["observation.images.rgb"].shape == (15, 3, HEIGHT, WIDTH)
        assert difference.max() < 4 / 255  # H.264, and no frame is another one's


def test_lerobot_files_end_where_they_are_full(episodes: list[StoredEpisode], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra export is not installed")
    from mirage_env.rollout.export.lerobot import write

    write(episodes, tmp_path, rows_a_file=6)  # two episodes of 5 rows, then one
    about = parquet.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in about] == [0, 0, 1]
    key = "videos/observation.images.rgb"
    assert [row[f"{key}/from_timestamp"] for row in about] == [0.0, 1.0, 0.0]
    assert [len(parquet.read_table(tmp_path / f"data/chunk-000/file-00{i}.parquet")) for i in (0, 1)] == [10, 5]
    assert [len(list(read_video(tmp_path / f"{key}/chunk-000/file-00{i}.mp4", SIZE))) for i in (0, 1)] == [10, 5]


def check_samples(samples: list[dict[str, Any]], episodes: list[StoredEpisode]) -> None:
    """`samples` hold bytes by ending."""
    rows = iter(samples)
    for stored in episodes:
        for frame, (rgb, units) in enumerate(zip(stored.pictures(), stored.depth_units(), strict=True)):
            sample = next(rows)
            assert sample["__key__"] == f"{stored.name}-{frame:06d}"
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["rgb.png"]))), rgb)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["depth.png"]))), units)
            about = json.loads(sample["json"])
            np.testing.assert_array_equal(about["world_from_camera"], stored.array("world_from_camera")[frame])
            assert ("action" in about) == (frame < 5)
    assert next(rows, None) is None


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_it_back(run: Path, episodes: list[StoredEpisode], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")  # it leaves its files open
    export(run, "webdataset", tmp_path / "out")
    shards = sorted(str(path) for path in (tmp_path / "out").iterdir())
    check_samples(list(webdataset.WebDataset(shards, shardshuffle=False)), episodes)


def test_webdataset_shards_by_tar_alone(episodes: list[StoredEpisode], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_webdataset(episodes, tmp_path / "out", shard_bytes=20_000)
    shards = sorted((tmp_path / "out").iterdir())
    assert len(shards) > 2 and shards[0].stat().st_size < 40_000
    samples: list[dict[str, Any]] = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                if not samples or samples[-1]["__key__"] != key:
                    samples.append({"__key__": key})
                file = tar.extractfile(member)
                assert file is not None
                samples[-1][ending] = file.read()
    check_samples(samples, episodes)


def test_realestate10k_as_its_readers_do(run: Path, episodes: list[StoredEpisode], tmp_path: Path) -> None:
    export(run, "realestate10k", tmp_path / "out")
    for stored in episodes:
        first, *lines = (tmp_path / f"out/cameras/{stored.name}.txt").read_text().splitlines()
        assert first == stored.metadata["image"]
        table = np.array([[float(word) for word in line.split()] for line in lines])
        np.testing.assert_allclose(table[:, 0], np.arange(6) * 200_000)
        lens = stored.array("intrinsics_px")[0]
        np.testing.assert_allclose(table[:, 1] * WIDTH, lens[0, 0], rtol=1e-6)
        np.testing.assert_allclose(table[:, 4] * HEIGHT, lens[1, 2], rtol=1e-6)
        camera_from_world = np.concatenate([table[:, 7:].reshape(6, 3, 4), np.tile([[[0, 0, 0, 1.0]]], (6, 1, 1))], 1)
        np.testing.assert_allclose(np.linalg.inv(camera_from_world), stored.array("world_from_camera"), atol=1e-6)
        for stamp, rgb in zip(table[:, 0], stored.pictures(), strict=True):
            picture = Image.open(tmp_path / f"out/frames/{stored.name}/{int(stamp)}.png")
            np.testing.assert_array_equal(np.asarray(picture), rgb)


def test_video_and_contact_sheet(run: Path, tmp_path: Path) -> None:
    export(run, "video", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 6
    pictures = list(read_video(tmp_path / "out/000001.mp4", (12 * HEIGHT, 12 * WIDTH)))  # enlarged to 384 at least
    assert len(pictures) == 6
    with Image.open(tmp_path / "out/000001.png") as sheet:
        assert sheet.width > 400


def read_ply(path: Path) -> np.ndarray:
    """x, y, z, red, green, blue of its points."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n")
    table = np.frombuffer(body, [(c, "<f4") for c in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
    assert f"element vertex {len(table)}\n".encode() in header
    return table


def test_ply_holds_points_of_the_wall(run: Path, episodes: list[StoredEpisode], tmp_path: Path) -> None:
    export(run, "ply", tmp_path / "out")
    table = read_ply(tmp_path / "out/000002.ply")
    assert len(table) > 1000
    later = table[np.abs(table["z"] - WALL_M) < 0.02]  # what the first picture's depth says is the wall's, too
    assert len(later) > 0.99 * len(table)
    voxels = {tuple(v) for v in np.floor(np.stack([table[c] for c in "xyz"], -1) / 0.02).astype(int)}
    assert len(voxels) == len(table)
    write_ply(tmp_path / "memory.ply", np.arange(6, dtype=np.float32).reshape(2, 3))
    assert (tmp_path / "memory.ply").read_bytes().endswith(np.arange(6, dtype="<f4").tobytes())


def test_ply_holds_the_memory_of_a_saved_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the shipped weights. Right after the reset, the points are the cells of the picture, in its colours."""
    monkeypatch.setattr(world_model, "load_world", load_world)
    env = MirageEnv("room", size=(64, 64), chunk=2)
    observation, _ = env.reset(seed=0)
    env.save(tmp_path / "first.safetensors")
    assert export(tmp_path / "first.safetensors", "ply", tmp_path / "first") == 1
    table = read_ply(tmp_path / "first/first.ply")
    points, colours = (np.stack([table[name] for name in names], -1) for names in ("xyz", ("red", "green", "blue")))
    state = env.snapshot().episode.world
    np.testing.assert_array_equal(points, state.memory.points)
    focal = float(state.history.cameras.intrinsics_px[0, 0, 0])  # on the grid of 8 x 8
    column, row = (points[:, :2] / points[:, 2:] * focal + 4).astype(int).T
    cells = observation["rgb"].reshape(8, 8, 8, 8, 3).mean((1, 3))
    assert len(points) > 40 and np.abs(colours - cells[row, column]).mean() < 6

    for _ in range(4):
        env.step(np.array([0.3, 0.0, 0.8], np.float32))
    env.save(tmp_path / "later.safetensors")
    export(tmp_path / "later.safetensors", "ply", tmp_path / "later")
    later = read_ply(tmp_path / "later/later.ply")
    assert len(later) == len(env.snapshot().episode.world.memory) > len(points)
    grey = (later["red"] == 128) & (later["green"] == 128) & (later["blue"] == 128)
    assert grey.mean() < 0.1  # what no keyframe shows


def test_worlds_without_points_are_one_sentence(tmp_path: Path) -> None:
    env = MirageSimEnv(size=(32, 32))
    env.reset(seed=0)
    env.save(tmp_path / "sim.safetensors")
    with pytest.raises(InvalidValueError, match="is no saved world of Mirage-v0, so it holds no memory"):
        export(tmp_path / "sim.safetensors", "ply", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"sim.safetensors"}


def test_what_cannot_be_exported_is_one_sentence(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form, keep, error, message in (
        ("minary", None, UnknownNameError, 'did you mean "minari"'),
        ("ply", "frames > 99", InvalidValueError, "no episode that keep lets pass"),
    ):
        with pytest.raises(error, match=message):
            export(run, form, tmp_path / "out", keep)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(
        InvalidValueError, match=r"the format minari needs a package .*pip install 'mirage-env\[export\]'"
    ):
        export(run, "minari", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "pictures"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputError, match="exists already; choose another folder"):
        export(run, "ply", tmp_path / "out")


def test_an_export_of_a_damaged_unit_says_so_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    archive = run / "units/000/000001.zip"
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 1
    for damage in (bytes(data), data[: len(data) // 2], None):
        archive.write_bytes(damage) if damage is not None else archive.unlink()
        with pytest.raises(InvalidValueError, match=r"000001.zip cannot be read .*rollout verify"):
            export(run, "webdataset", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))
