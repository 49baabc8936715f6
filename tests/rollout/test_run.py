from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from mirage_env.errors import InvalidValueError, MirageError, OutputError
from mirage_env.rollout import run as run_module
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.run import Stop, Worker, mine, run_shard, shard_from_text
from tests.rollout.wall import run_before_the_wall

ROOT = Path(__file__).resolve().parents[2]


def files(folder: Path) -> dict[str, bytes]:
    """Everything that a run left, failures included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_episodes_are_whole(run_of: Any, tmp_path: Path) -> None:
    """6 steps in chunks of 4: the last chunk is short, the last frame is there, and all were generated."""
    run = run_of(env_kwargs={"collision": "none"})
    outcome = run_shard(run, str(tmp_path / "out"))
    assert (outcome.units, outcome.episodes, outcome.frames, outcome.failed) == (3, 5, 35, 0)
    folder = RunFolder(tmp_path / "out")
    episodes = list(folder.episodes())
    assert [episode.metadata["episode"] for episode in episodes] == [0, 1, 2, 3, 4]
    assert [Path(episode.metadata["image"]).name for episode in episodes] == [
        "p10.png", "p20.png", "p30.png", "p10.png", "p20.png",
    ]  # fmt: skip
    for episode in episodes:
        poses, about = episode.array("world_from_camera"), episode.metadata
        assert len(poses) == len(episode.rgb()) == 7
        assert len(episode.array("actions")) == len(episode.array("rewards")) == about["steps"] == 6
        assert about["truncated"] and not about["terminated"]
        assert (episode.rgb()[0] == episode.rgb()[0, 0, 0]).all()  # the plain picture, then the painted wall
        assert episode.rgb()[1].std() > 5
        np.testing.assert_array_equal(poses[0], np.eye(4))
        # The wall's depth at the picture's middle follows from the pose that is stored with it.
        ahead = (3.0 - poses[:, 2, 3]) / poses[:, 2, 2]
        np.testing.assert_allclose(episode.depth_m()[:, 15:17, 23:25].mean((1, 2)), ahead, rtol=0.02)
        # The pose that follows from the action is the next one.
        forward = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        np.testing.assert_allclose(forward, np.abs(episode.array("actions")[:, 0]) * 0.25, atol=1e-5)
        assert about["certificate"]["reprojection_rel"] < 0.05
        assert about["certificate"]["remembered_share"] == 0.5
        assert {"image_sha256", "weights_sha256", "revision", "seed", "licence"} <= about.keys()
    assert len({episode.metadata["seed"] for episode in episodes}) == 5
    assert [faults for _, faults in folder.verify()] == [[], [], []]


def test_shards_and_order_give_the_same_bytes(run_of: Any, tmp_path: Path) -> None:
    run = run_of(mover="loop")
    run_shard(run, str(tmp_path / "one"))
    for index in (2, 0, 1, 3):
        run_shard(run, str(tmp_path / "four"), (index, 4))
    assert files(tmp_path / "one") == files(tmp_path / "four")


def test_an_episode_does_not_depend_on_its_company(run_of: Any, tmp_path: Path) -> None:
    """Other numbers of episodes and other units: the same episode."""
    run_shard(run_of(), str(tmp_path / "a"))
    run_shard(run_of(episodes=9, episodes_a_unit=3), str(tmp_path / "b"))
    for one, other in zip(RunFolder(tmp_path / "a").episodes(), RunFolder(tmp_path / "b").episodes(), strict=False):
        np.testing.assert_array_equal(one.rgb(), other.rgb())
        np.testing.assert_array_equal(one.array("actions"), other.array("actions"))
        assert one.metadata["seed"] == other.metadata["seed"]


def test_a_folder_holds_one_configuration(run_of: Any, tmp_path: Path, pictures: Path) -> None:
    run_shard(run_of(), str(tmp_path / "out"))
    before = files(tmp_path / "out")
    with pytest.raises(InvalidValueError, match=r"holds a run of another configuration .*\(steps differ\)"):
        run_shard(run_of(steps=7), str(tmp_path / "out"))
    (pictures / "p11.png").write_bytes((pictures / "p10.png").read_bytes())
    with pytest.raises(InvalidValueError, match="another configuration or other inputs; choose another folder"):
        run_shard(run_of(), str(tmp_path / "out"))
    assert files(tmp_path / "out") == before


def test_a_second_call_does_nothing(run_of: Any, tmp_path: Path) -> None:
    run_shard(run_of(), str(tmp_path / "out"))
    before = files(tmp_path / "out")
    assert run_shard(run_of(), str(tmp_path / "out")).units == 0
    assert files(tmp_path / "out") == before


def test_a_bad_picture_is_one_sentence_and_the_rest_goes_on(run_of: Any, tmp_path: Path, pictures: Path) -> None:
    good = (pictures / "p20.png").read_bytes()
    run_shard(run_of(), str(tmp_path / "whole"))
    (pictures / "p20.png").write_text("no picture")
    outcome = run_shard(run_of(), str(tmp_path / "out"))
    assert (outcome.episodes, outcome.failed) == (3, 2)
    folder = RunFolder(tmp_path / "out")
    lines = folder.failures()
    assert [(line["unit"], line["episode"]) for line in lines] == [(0, 1), (2, 4)]
    assert all("is not a picture that can be read" in line["error"] and "\n" not in line["error"] for line in lines)
    assert folder.status().failed == 2
    assert [episode.metadata["episode"] for episode in folder.episodes()] == [0, 2, 3]
    assert [faults for _, faults in folder.verify()] == [[], [], []]

    (pictures / "p20.png").write_bytes(good)
    again = folder.forget_failures()
    assert again == [0, 2]
    assert Worker(folder.run()).run_units(folder, again).failed == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_mover_that_breaks_costs_its_episode(run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stumbles:
        def __init__(self, env: Any, rng: np.random.Generator):
            self.left = 3 if rng.random() < 0.5 else 99

        def act(self, observation: Any, info: Any) -> Any:
            self.left -= 1
            return np.zeros(3, np.float32) if self.left else 1 / 0

    monkeypatch.setattr(run_module, "STUMBLES", Stumbles, raising=False)
    run = run_of(
        mover="mirage_env.rollout.run:STUMBLES", episodes=8, episodes_a_unit=4, env_kwargs={"feedback": "hold"}
    )
    outcome = run_shard(run, str(tmp_path / "out"))
    assert 0 < outcome.failed < 8 and outcome.episodes == 8 - outcome.failed
    folder = RunFolder(tmp_path / "out")
    assert {line["error"] for line in folder.failures()} == {"ZeroDivisionError: division by zero"}
    assert sum(1 for _ in folder.episodes()) == outcome.episodes
    for archive, sidecar in folder.sidecars():
        with zipfile.ZipFile(archive) as file:
            inside = {int(name.split("/")[0]) for name in file.namelist()}
        assert inside == {summary["episode"] for summary in sidecar["episodes"] if summary["kept"]}


def test_a_full_disk_is_one_sentence_a_unit(run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_shard(run_of(), str(tmp_path / "whole"))
    header, full = zipfile.ZipInfo.FileHeader, True

    def written(self: zipfile.ZipInfo, zip64: bool | None = None) -> bytes:
        if full and self.filename.startswith(("000002/depth/000003", "000003/rgb")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return header(self, zip64)

    monkeypatch.setattr(zipfile.ZipInfo, "FileHeader", written)
    outcome = run_shard(run_of(), str(tmp_path / "out"))
    assert (outcome.units, outcome.failed) == (2, 2)
    folder = RunFolder(tmp_path / "out")
    (line,) = folder.failures()
    assert (line["unit"], line["episode"]) == (1, None)
    assert "cannot write" in line["error"] and "No space left on device" in line["error"]
    assert folder.status().failed == 2
    assert not [name for name in files(tmp_path / "out") if "partial" in name]

    full = False
    assert Worker(folder.run()).run_units(folder, folder.forget_failures()).failed == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_to(run_of: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another output folder"):
        run_shard(run_of(), str(tmp_path / "file" / "out"))
    worker, folder = Worker(run_of()), RunFolder(tmp_path / "out")
    folder.claim(worker.run, worker.weights)
    (tmp_path / "out" / "units").touch()  # no folder can be made there
    outcome = worker.run_units(folder, range(3))
    assert outcome.failed == 5
    assert [line["unit"] for line in folder.failures()] == [0, 1, 2]


def test_keep_stores_only_what_fulfils_it(run_of: Any, tmp_path: Path) -> None:
    run_shard(run_of(mover="loop", steps=20), str(tmp_path / "all"))
    measured = [e.certificate["reprojection_rel"] for e in RunFolder(tmp_path / "all").episodes()]
    limit = sorted(measured)[2]
    run_shard(run_of(mover="loop", steps=20, keep=f"reprojection_rel <= {limit}"), str(tmp_path / "some"))
    folder = RunFolder(tmp_path / "some")
    assert [e.certificate["reprojection_rel"] for e in folder.episodes()] == [m for m in measured if m <= limit]
    assert folder.status().dropped == 2
    assert [faults for _, faults in folder.verify()] == [[], [], []]
    assert len(list(RunFolder(tmp_path / "all").episodes(f"reprojection_rel <= {limit}"))) == 3


def test_camera_files_end_episodes_where_they_end(run_of: Any, tmp_path: Path, pictures: Path) -> None:
    from mirage_env.cameras_io import CameraPath, write_realestate10k
    from mirage_env.demo import trajectory

    (tmp_path / "ways").mkdir()
    for name, count in (("a", 3), ("b", 9)):  # 6 steps at most, in chunks of 4
        poses = np.concatenate([np.eye(4)[None], trajectory("walk", count)])
        lens = np.tile([[0.7, 0, 0.5], [0, 1.05, 0.5], [0, 0, 1]], (count + 1, 1, 1))
        write_realestate10k(tmp_path / "ways" / f"{name}.txt", CameraPath(poses, lens, np.arange(count + 1) / 5))
    run = run_of(mover="cameras", mover_kwargs={"path": str(tmp_path / "ways")}, images=str(pictures / "p10.png"))
    run_shard(run, str(tmp_path / "out"))
    episodes = list(RunFolder(tmp_path / "out").episodes())
    assert [len(episode) for episode in episodes] == [4, 7, 4, 7, 4]
    for episode in episodes:
        expected = np.concatenate([np.eye(4)[None], trajectory("walk", 3 if len(episode) == 4 else 9)])
        np.testing.assert_allclose(episode.array("world_from_camera"), expected[: len(episode)], atol=2e-5)
        assert len(episode.array("actions")) == len(episode) - 1
        # 60 x 40 cropped to 60 x 40 (its shape is the frames' own) and scaled by 0.8: fx = 0.7 * 48.
        np.testing.assert_allclose(episode.array("intrinsics_px")[0, 0, 0], 0.7 * 48, rtol=1e-6)


def test_a_manifest_row_has_its_own_seed_and_way(run_of: Any, tmp_path: Path, pictures: Path) -> None:
    (pictures / "m.csv").write_text("image,seed\np10.png,5\np20.png,\n")
    manifest = run_of(images=str(pictures / "m.csv"), episodes=4)
    jobs = [job for unit in range(2) for job in manifest.jobs(unit)]
    other = [job for unit in range(2) for job in run_of(images=str(pictures / "m.csv"), episodes=4, seed=9).jobs(unit)]
    assert [a.seed == b.seed for a, b in zip(jobs, other, strict=True)] == [True, False, True, False]
    assert len({job.seed for job in jobs}) == 4


def test_rows_that_follow_a_file_stand_beside_rows_that_are_moved(run_of: Any, tmp_path: Path, pictures: Path) -> None:
    from mirage_env.demo import trajectory

    way = np.concatenate([np.eye(4)[None], trajectory("walk", 4)])
    (tmp_path / "way.json").write_text(json.dumps(way.tolist()))
    (pictures / "m.csv").write_text("image,trajectory\np10.png,../way.json\np20.png,\n")
    mixed = {"images": str(pictures / "m.csv"), "episodes": 4, "env_kwargs": {"collision": "none"}}
    assert run_shard(run_of(**mixed), str(tmp_path / "mixed")).failed == 0
    first, second, third, fourth = RunFolder(tmp_path / "mixed").episodes()
    for follower in (first, third):
        np.testing.assert_allclose(follower.array("world_from_camera"), way, atol=2e-5)
        assert (follower.metadata["mover"], follower.array("actions").shape) == ("cameras", (4, 6))
    for walker in (second, fourth):
        assert (walker.metadata["mover"], walker.array("actions").shape) == ("walk", (6, 3))
    run_shard(run_of(**mixed | {"images": str(pictures)}), str(tmp_path / "alone"))  # the second is p20.png again
    alone = list(RunFolder(tmp_path / "alone").episodes())[1]
    np.testing.assert_array_equal(alone.rgb(), second.rgb())


def test_stop_ends_between_units(run_of: Any, tmp_path: Path) -> None:
    stop = Stop()

    def progress(done: int, total: int, note: str) -> None:
        if done > 20:  # in the second unit
            stop.ask()

    outcome = run_shard(run_of(), str(tmp_path / "out"), progress=progress, stop=stop)
    assert outcome.stopped and outcome.units == 2
    assert RunFolder(tmp_path / "out").status().units_done == 2


@pytest.mark.parametrize(
    ("text", "variables", "shard"),
    [
        ("0/1", {}, (0, 1)),
        ("3/4", {}, (3, 4)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}, (4, 8)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_STEP": "2",
             "SLURM_ARRAY_TASK_COUNT": "4"},
            (2, 4),
        ),
        ("auto", {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        (
            "auto",
            {"SGE_TASK_ID": "7", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"},
            (3, 5),
        ),
        ("auto", {"LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "3"}, (1, 3)),
        ("auto/8", {"PBS_ARRAY_INDEX": "3"}, (3, 8)),
        ("auto/8", {"PBS_ARRAYID": "8"}, (0, 8)),  # 1 to 8: the last is the first
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "1"}, (5, 8)),
    ],
)  # fmt: skip
def test_shards_by_hand_and_by_the_cluster(text: str, variables: dict[str, str], shard: tuple[int, int]) -> None:
    assert shard_from_text(text, variables) == shard


def test_every_unit_belongs_to_one_shard() -> None:
    for count in (1, 2, 3, 7):
        assert sorted(unit for index in range(count) for unit in mine(10, (index, count))) == list(range(10))


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("auto", {"SGE_TASK_ID": "undefined"}, "--shard auto found no array variables of a cluster"),
        ("auto/4", {}, "--shard auto found no array variables of a cluster"),
        ("auto", {"PBS_ARRAY_INDEX": "3"}, "this is task 3 of an array, but of how many .* say --shard auto/N"),
        ("auto/0", {"PBS_ARRAY_INDEX": "3"}, "must be i/N"),
        ("2", {}, "must be i/N"),
        ("-1/2", {}, "must be i/N"),
        ("0/0", {}, "must be i/N"),
        ("2/2", {}, "shard 2 of 2 does not exist"),
    ],
)
def test_bad_shards_are_one_sentence(text: str, variables: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        shard_from_text(text, variables)


def test_bad_runs_are_one_sentence(run_of: Any) -> None:
    for changes, message in (
        ({"env": "CartPole-v1", "env_kwargs": {}}, "CartPole-v1"),
        ({"env_kwargs": {"speed": 3}}, "cannot be made"),
        ({"env_kwargs": {"image": "room"}}, "env_kwargs must not hold image"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"mover": "wlak"}, 'did you mean "walk"'),
        ({"keep": "frames"}, "keep must compare"),
    ):
        with pytest.raises(MirageError, match=message):
            Worker(run_of(**changes))


def test_killed_twenty_times_it_gives_the_same_bytes(run_of: Any, tmp_path: Path) -> None:
    """SIGKILL, each time when one more part of the run is on the disk, be that in the middle of a file."""
    run, out = run_of(mover="loop", episodes=8, steps=20), tmp_path / "killed"
    run_shard(run, str(tmp_path / "whole"))
    size = sum(map(len, files(tmp_path / "whole").values()))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.rollout.wall"])
    killed = left_behind = 0
    for kill in range(20):
        process = processes.Process(target=run_before_the_wall, args=(run, str(out)))
        process.start()
        while process.is_alive() and bytes_in(out) < size * kill / 20:
            time.sleep(0.001)
        killed += process.is_alive()  # on a busy machine the last ones may be done before they are looked at
        process.kill()
        process.join()
        left_behind += bool(list(out.rglob("*.partial")))
    assert killed > 10 and left_behind > 5
    run_shard(run, str(out))
    assert files(out) == files(tmp_path / "whole")


def test_a_video_that_a_full_disk_cut_off_is_no_video(
    run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffmpeg's exit is not told: what it wrote is looked at."""
    run_shard(run_of(rgb="video"), str(tmp_path / "whole"))
    original, full = imageio_ffmpeg.write_frames, True

    def write_frames(path: str, *arguments: Any, **more: Any) -> Any:
        writer = original(path, *arguments, **more)
        writer.send(None)
        try:
            while True:
                writer.send((yield))
        finally:
            writer.close()
            if full and path.endswith(".000002.mp4"):
                os.truncate(path, os.stat(path).st_size - 100)

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", write_frames)
    assert run_shard(run_of(rgb="video"), str(tmp_path / "out")).failed == 2
    (line,) = RunFolder(tmp_path / "out").failures()
    assert line["unit"] == 1 and "could not be written whole; make room on the disk" in line["error"]
    assert not [name for name in files(tmp_path / "out") if "partial" in name]
    full = False
    assert Worker(run_of(rgb="video")).retry(RunFolder(tmp_path / "out")).failed == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_what_killed_processes_left_beside_whole_files_goes(run_of: Any, tmp_path: Path) -> None:
    run, out = run_of(), tmp_path / "out"
    run_shard(run, str(out))
    before = files(out)
    strays = (".run.json.partial", "units/000/.000001.partial", "units/000/.000001.json.partial",
              "units/000/.000001.partial.kept", "units/000/.000001.partial.000003.mp4")  # fmt: skip
    for name in strays:
        (out / name).write_text("half")
    (out / "units/000/.000009.partial").write_text("of a unit that is still to be made")
    run_shard(run, str(out))
    assert files(out).keys() - before.keys() == {"units/000/.000009.partial"}
    (out / "units/000/.000009.partial").unlink()
    assert files(out) == before


def test_retry_takes_nothing_away_from_another_run(run_of: Any, pictures: Path, tmp_path: Path) -> None:
    out = RunFolder(tmp_path / "out")
    good = (pictures / "p20.png").read_bytes()
    (pictures / "p20.png").write_text("no picture")
    assert run_shard(run_of(), str(out.path)).failed == 2
    before = files(out.path)
    (pictures / "p20.png").write_bytes(good)
    with pytest.raises(InvalidValueError, match="holds a run of another configuration"):
        Worker(run_of(seed=1)).retry(out)
    assert files(out.path) == before
    assert Worker(out.run()).retry(out).failed == 0


def test_a_line_of_failures_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "failures.jsonl").write_text('{"unit": 1, "epi')
    folder.fail(2, None, "a")
    folder.fail(3, 7, "b")
    assert [line["unit"] for line in folder.failures()] == [2, 3]


def bytes_in(folder: Path) -> int:
    """Of all files, while another process renames them."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


SIMULATED = {
    "env": "MirageSim-v0", "episodes": 4, "steps": 8, "episodes_a_unit": 1,
    "env_kwargs": {"size": [32, 32], "chunk": 4},
}  # fmt: skip


def test_sigterm_finishes_the_unit_in_hand(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "run.yaml").write_text(json.dumps(SIMULATED))
    process = subprocess.Popen(
        [sys.executable, "-m", "mirage_env.cli", "rollout", "run", str(tmp_path / "run.yaml"), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while process.poll() is None and not (out / "units/000/.000001.partial").exists():
        time.sleep(0.002)
    process.terminate()
    said = process.communicate()[0]
    assert process.returncode == 143, said
    assert "the same command goes on" in " ".join(said.split())
    assert RunFolder(out).status().units_done == 2
    assert not [name for name in files(out) if "partial" in name]


def test_memory_and_files_stay_flat_over_many_short_episodes(run_of: Any, tmp_path: Path) -> None:
    """300 episodes here; `benchmarks/rollout.py` runs a thousand."""
    worker, folder = Worker(run_of(episodes=300, steps=2, episodes_a_unit=5)), RunFolder(tmp_path / "out")
    kept: list[tuple[int, int]] = []

    def resident() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    for part in np.array_split(np.arange(60), 6):
        worker.run_units(folder, [int(unit) for unit in part])
        kept.append(resident())
    assert kept[-1][0] - kept[1][0] < 8 * 2**20
    assert kept[-1][1] == kept[1][1]
