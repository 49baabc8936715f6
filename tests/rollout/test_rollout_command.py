"""The command line of rollouts: what it prints, what it leaves on the disk, and its exit codes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirage_env import cli
from mirage_env.rollout.folder import RunFolder
from tests.rollout.wall import SIZE

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def mirage_env(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command; returns its exit code and all that it said, in one line."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mirage-env", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return call


@pytest.fixture
def run_yaml(pictures: Path, tmp_path: Path) -> Path:
    """5 episodes of 6 steps before the wall, in units of 2."""
    about = {"images": str(pictures), "episodes": 5, "steps": 6, "episodes_a_unit": 2}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**about, "env_kwargs": {"size": list(SIZE), "chunk": 4}}))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_from_the_first_frame_to_the_export(mirage_env: Command, run_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = mirage_env("rollout", "run", run_yaml, "--out", out)
    assert (code, "5 episodes, 35 frames" in said, "frames/s" in said) == (0, True, True)
    code, said = mirage_env("rollout", "status", out)
    assert (code, "3 of 3 units, 5 of 5 episodes 35 frames" in said) == (0, True)
    assert mirage_env("rollout", "verify", out)[1].endswith("3 of 3 units are whole")
    before = files(out)
    code, said = mirage_env("rollout", "run", run_yaml, "--out", out)  # nothing is left to do
    assert (code, "nothing was left to do" in said) == (0, True)
    assert mirage_env("rollout", "retry", out)[0] == 0  # nothing has failed
    assert files(out) == before

    code, said = mirage_env("export", out, "--to", "ply", "--out", tmp_path / "ply", "--keep", "frames == 7")
    assert (code, "5 episodes in" in said) == (0, True)
    assert {path.name for path in (tmp_path / "ply").iterdir()} == {f"00000{i}.ply" for i in range(5)}


def test_a_dry_run_says_what_would_be_done(mirage_env: Command, run_yaml: Path, tmp_path: Path) -> None:
    command = ("rollout", "run", run_yaml, "--out", tmp_path / "out", "--shard", "1/2", "--dry-run")
    code, said = mirage_env(*command)
    assert code == 0 and "1 of 3 units would be generated, as shard 1 of 2" in said
    assert "episode 2, seed " in said and "p30.png, walk" in said and "episode 1" not in said
    assert not (tmp_path / "out").exists()
    mirage_env("rollout", "run", run_yaml, "--out", tmp_path / "out", "--shard", "1/2")
    assert "0 of 3 units would be generated" in mirage_env(*command)[1]


def test_a_wrong_path_of_a_mover_is_told_before_anything_is_written(
    mirage_env: Command, run_yaml: Path, tmp_path: Path
) -> None:
    gone = f"mover_kwargs.path={tmp_path / 'gone'}"
    for values in (("mover=cameras", gone), ("mover=policy", gone, "mover_kwargs.config=explore"), ("mover=no:where",)):
        for command in (
            ("run", run_yaml, *values, "--out", tmp_path / "out"),
            ("run", run_yaml, *values, "--out", tmp_path / "out", "--dry-run"),
            ("plan", run_yaml, *values),
        ):
            code, said = mirage_env("rollout", *command)
            assert code == 2 and ("gone" in said or "no:where" in said)
    assert not (tmp_path / "out").exists()


def test_shards_and_replaced_values(mirage_env: Command, run_yaml: Path, tmp_path: Path) -> None:
    """The number of shards changes on the way, and so does who says it: the same bytes as of one worker."""
    values = ("steps=3", "env_kwargs.chunk=2", "seed=7")
    for shard in ("1/3", "0/2", "1/2"):
        assert mirage_env("rollout", "run", run_yaml, *values, "--out", tmp_path / "many", "--shard", shard)[0] == 0
    assert mirage_env("rollout", "run", run_yaml, *values, "--out", tmp_path / "one")[0] == 0
    assert files(tmp_path / "one") == files(tmp_path / "many")
    episodes = list(RunFolder(tmp_path / "one").episodes())
    assert [(len(e), e.metadata["chunk"]) for e in episodes] == [(4, 2)] * 5


def test_keep_refuses_episodes(mirage_env: Command, run_yaml: Path, tmp_path: Path) -> None:
    code, _ = mirage_env("rollout", "run", run_yaml, "--out", tmp_path / "out", "--keep", "reprojection_rel < 0")
    assert code == 0
    assert "0 frames" in (said := mirage_env("rollout", "status", tmp_path / "out")[1]) and "5 episodes refused" in said
    code, said = mirage_env("export", tmp_path / "out", "--to", "ply", "--out", tmp_path / "ply")
    assert code == 2 and "holds no episode" in said


def test_a_bad_picture_is_exit_code_3_and_can_be_tried_again(
    mirage_env: Command, run_yaml: Path, pictures: Path, tmp_path: Path
) -> None:
    out, good = tmp_path / "out", (pictures / "p20.png").read_bytes()
    (pictures / "p20.png").write_text("no picture")
    code, said = mirage_env("rollout", "run", run_yaml, "--out", out)
    assert code == 3 and "3 episodes, 21 frames" in said and "2 episodes failed" in said and "rollout retry" in said
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(line["unit"], line["episode"]) for line in lines] == [(0, 1), (2, 4)]
    assert all("p20.png" in line["error"] and "\n" not in line["error"] for line in lines)
    assert "unit 2, episode 4: " in mirage_env("rollout", "status", out)[1]
    assert mirage_env("rollout", "verify", out)[0] == 0  # what is stored is whole
    assert mirage_env("rollout", "retry", out)[0] == 3
    (pictures / "p20.png").write_bytes(good)
    assert mirage_env("rollout", "retry", out)[0] == 0
    assert not (out / "failures.jsonl").exists()
    mirage_env("rollout", "run", run_yaml, "--out", tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_no_room_is_exit_code_3_and_the_same_command_goes_on(
    mirage_env: Command, run_yaml: Path, tmp_path: Path
) -> None:
    """The system lets no file grow beyond 8 kB: every unit is refused, as on a full disk."""
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        code, _ = mirage_env("rollout", "run", run_yaml, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 3
    lines = RunFolder(out).failures()
    assert [(line["unit"], line["episode"]) for line in lines] == [(0, None), (1, None), (2, None)]
    assert all("cannot write" in line["error"] and "make room" in line["error"] for line in lines)
    assert set(files(out)) == {"run.json", "failures.jsonl"}
    assert mirage_env("rollout", "retry", out)[0] == 0
    assert "5 of 5 episodes" in mirage_env("rollout", "status", out)[1]


def test_verify_tells_a_changed_byte_by_exit_code_3(mirage_env: Command, run_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mirage_env("rollout", "run", run_yaml, "--out", out)
    unit = out / "units/000/000001.zip"
    data = bytearray(unit.read_bytes())
    data[len(data) // 2] ^= 1
    unit.write_bytes(data)
    code, said = mirage_env("rollout", "verify", out)
    assert code == 3 and "000001.zip is not what was written" in said and "2 of 3 units are whole" in said
    (out / "units/000/000002.json").unlink()
    assert "1 of 2 units are whole; 1 are missing" in mirage_env("rollout", "verify", out)[1]


def test_plan_says_what_it_costs(mirage_env: Command, run_yaml: Path) -> None:
    code, said = mirage_env("rollout", "plan", run_yaml, "episodes=1000", "--shards", "10")
    assert code == 0
    assert "1000 episodes, at most 7000 frames, in 500 units" in said
    for word in ("MB in 1001 files", "node-hours", "frames/s each", "10 at a time", "done 2", "SIGTERM"):
        assert word in said


def test_mistakes_are_one_sentence_and_exit_code_2(
    mirage_env: Command, run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "SLURM_ARRAY_TASK_ID",
        "SLURM_PROCID",
        "SGE_TASK_ID",
        "PBS_ARRAY_INDEX",
        "PBS_ARRAYID",
        "LSB_JOBINDEX",
    ):
        monkeypatch.delenv(name, raising=False)
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "bad.yaml").write_text("epsiodes: 3\n")
    run = ("rollout", "run", run_yaml, "--out", out)
    mistakes: list[tuple[tuple[Any, ...], str]] = [
        (("rollout", "run", tmp_path / "none.yaml"), "none.yaml"),
        (("rollout", "run", tmp_path / "file"), "a run is described by a .yaml file"),
        (("rollout", "run", tmp_path / "bad.yaml"), "epsiodes"),
        ((*run, "steps=many"), "steps"),
        ((*run, "images=/no/such/folder"), "/no/such/folder"),
        ((*run, f"images={empty}"), str(empty)),
        ((*run, "mover=wlak"), 'did you mean "walk"'),
        ((*run, "mover=cameras"), "mover_kwargs.path"),
        ((*run, "env_kwargs.speed=3"), "Mirage-v0 cannot be made"),
        ((*run, "--shard", "3/2"), "shard 3 of 2 does not exist"),
        ((*run, "--shard", "auto"), "found no array variables"),
        ((*run, "--workers", "spark"), "--workers must be ray or ray:N"),
        ((*run, "--keep", "speed < 3"), "speed"),
        (("rollout", "run", run_yaml, "--out", tmp_path / "file" / "out"), "choose another output folder"),
        (("rollout", "plan", run_yaml, "images=/no/such.png"), "/no/such.png"),
        (("rollout", "status", empty), "holds no run"),
        (("rollout", "verify", empty), "holds no run"),
        (("rollout", "retry", empty), "holds no run"),
        (("export", empty, "--to", "ply", "--out", out), "holds no run"),
        (("export", tmp_path / "file", "--to", "video", "--out", out), "of a saved world only the points"),
        (("export", tmp_path / "file", "--to", "ply", "--out", out), "is damaged or none"),
    ]
    for arguments, words in mistakes:
        code, said = mirage_env(*arguments)
        assert (code, words in said, said.count("error:")) == (2, True, 1), (arguments, said)
        assert not out.exists()
    assert mirage_env(*run)[0] == 0
    for arguments, words in (
        ((*run, "steps=7"), "steps differ"),
        (("export", out, "--to", "minary", "--out", tmp_path / "m"), 'did you mean "minari"'),
        (("export", out, "--to", "ply", "--out", out), "exists already"),
    ):
        code, said = mirage_env(*arguments)
        assert (code, words in said) == (2, True), (arguments, said)


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A mistake is one line on stderr and nothing on the disk; then the run itself, by the simulator."""
    simulated = {"env": "MirageSim-v0", "episodes": 1, "steps": 2, "env_kwargs": {"size": [32, 32], "chunk": 2}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(simulated))

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mirage_env.cli", "rollout", "run", "run.yaml", "--out", "out", *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    wrong = call("images=room")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "error: MirageSim-v0 takes no images" in wrong.stderr and not (tmp_path / "out").exists()
    right = call()
    assert (right.returncode, right.stderr) == (0, "") and "1 episodes, 3 frames" in right.stdout
