"""The folder of a run: what it is a run of, which units exist, what failed. Truth is in the units; nothing is cached.

run.json          the configuration and its fingerprint, the weights' hashes; a run of another one is refused
units/            see `mirage_env.rollout.store`
failures.jsonl    one line a failure: unit, episode (null: all of it), one sentence
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mirage_env import __version__
from mirage_env.config import build
from mirage_env.errors import InvalidValueError, OutputError
from mirage_env.resources import revision
from mirage_env.rollout.config import Run, RunConfig
from mirage_env.rollout.keep import parse_keep
from mirage_env.rollout.store import (
    FORMAT,
    StoredEpisode,
    read_sealed,
    remove_stray,
    sidecar_of,
    verify_unit,
    write_sealed,
)

UNITS_A_FOLDER = 1000


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    units: int
    units_done: int
    episodes: int
    episodes_done: int
    """Generated, whether they were kept or not."""
    dropped: int
    """Generated, but refused by `keep`."""
    failed: int
    frames: int
    bytes: int


class RunFolder:
    """A run on disk, to write to or to read from."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    def claim(self, run: Run, weights: Mapping[str, str]) -> None:
        """Makes this the folder of `run`, or checks that it is.

        Raises InvalidValueError where it holds another run, OutputError where it cannot be written to.
        """
        about: dict[str, Any] = {"format": FORMAT, "config": asdict(run.config), "fingerprint": run.fingerprint()}
        about |= {"weights_sha256": dict(weights), "revision": revision(), "version": __version__}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "run.json").exists():
                write_sealed(self.path / "run.json", about)
        except OSError as error:
            raise OutputError(
                f"cannot write to the folder {self.path} ({error.strerror or error}); choose another output folder"
            ) from error
        there = self.about()
        for key, what in (("fingerprint", "configuration or other inputs"), ("weights_sha256", "weights")):
            if there.get(key) != json.loads(json.dumps(about[key])):
                raise InvalidValueError(
                    f"{self.path} holds a run of another {what}{_differing(there, about)}; "
                    "choose another folder, or go on with what it was begun with"
                )

    def about(self) -> dict[str, Any]:
        """What run.json says; raises InvalidValueError where there is none."""
        if not (self.path / "run.json").exists():
            raise InvalidValueError(f"{self.path} holds no run (no run.json); name a folder that rollout run wrote to")
        return read_sealed(self.path / "run.json")

    def run(self) -> Run:
        """The run as it was begun."""
        return Run(build(RunConfig, self.about()["config"], f"{self.path / 'run.json'}: config"))

    def archive(self, unit: int) -> Path:
        return self.path / "units" / f"{unit // UNITS_A_FOLDER:03d}" / f"{unit:06d}.zip"

    def exists(self, unit: int) -> bool:
        """Whether the unit is whole: its sidecar comes last."""
        return sidecar_of(self.archive(unit)).exists()

    def sidecars(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """(archive, sidecar) of every unit that exists, in order; raises InvalidValueError for a damaged one."""
        for path in sorted(self.path.glob("units/*/*.json")):
            if not path.name.startswith("."):
                yield path.with_suffix(".zip"), read_sealed(path)

    def episodes(self, keep: str | None = None) -> Iterator[StoredEpisode]:
        """The stored episodes in order, those that fulfil `keep`."""
        wanted = parse_keep(keep)
        for archive, sidecar in self.sidecars():
            for summary in sidecar["episodes"]:
                if summary["kept"] and wanted(numbers(summary)):
                    yield StoredEpisode(archive, summary)

    def status(self) -> Status:
        config = self.run().config
        counts = dict.fromkeys(("units_done", "episodes_done", "dropped", "failed", "frames", "bytes"), 0)
        for _, sidecar in self.sidecars():
            counts["units_done"] += 1
            counts["bytes"] += sidecar["bytes"]
            for summary in sidecar["episodes"]:
                counts["failed"] += summary["error"] is not None
                counts["episodes_done"] += summary["error"] is None
                counts["dropped"] += summary["error"] is None and not summary["kept"]
                counts["frames"] += summary["frames"] if summary["kept"] else 0
        counts["failed"] += sum(
            len(self.run().jobs(unit)) for unit in {line["unit"] for line in self.failures() if line["episode"] is None}
            if not self.exists(unit)
        )  # fmt: skip
        return Status(units=config.units, episodes=config.episodes, **counts)

    def verify(self) -> Iterator[tuple[Path, list[str]]]:
        """(archive, what is wrong with it) of every unit that exists; every byte is read."""
        fingerprint = self.about()["fingerprint"]
        for path in sorted(self.path.glob("units/*/*.json")):
            if not path.name.startswith("."):
                yield path.with_suffix(".zip"), verify_unit(path.with_suffix(".zip"), fingerprint)

    def tidy(self) -> None:
        """Removes what killed processes left of files that others have made whole; the rest is taken over in time."""
        for partial in (*self.path.glob(".run.json.partial"), *self.path.glob("units/*/.*.partial*")):
            if partial.with_name(f"{partial.name[1:].partition('.')[0]}.json").exists():
                remove_stray(partial)

    def fail(self, unit: int, episode: int | None, error: str) -> None:
        """Adds a line to failures.jsonl; where even that is impossible, the exit code and the message must do."""
        line = json.dumps({"unit": unit, "episode": episode, "error": error}) + "\n"
        with contextlib.suppress(OSError):
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / "failures.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                if os.lseek(file, 0, os.SEEK_END):
                    os.lseek(file, -1, os.SEEK_END)
                    line = line if os.read(file, 1) == b"\n" else f"\n{line}"  # a full disk cut one off
                os.write(file, line.encode())  # one write a line, so that workers do not mix theirs
            finally:
                os.close(file)

    def failures(self) -> list[dict[str, Any]]:
        """The lines of failures.jsonl, each once; a line that a full disk cut off is not one."""
        try:
            lines = (self.path / "failures.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in dict.fromkeys(lines):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def forget_failures(self) -> list[int]:
        """Removes the units that have a failed episode, and the list; returns the units to run again."""
        again = {line["unit"] for line in self.failures()}
        for archive, sidecar in self.sidecars():
            if any(summary["error"] is not None for summary in sidecar["episodes"]):
                again.add(sidecar["unit"])
                sidecar_of(archive).unlink()  # first, so that a unit never exists without its archive
                archive.unlink()
        (self.path / "failures.jsonl").unlink(missing_ok=True)
        return sorted(unit for unit in again if not self.exists(unit))


def numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a `keep` expression may ask of an episode."""
    return {**summary["certificate"], "frames": summary["frames"], "return": summary["return"]}


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Which keys of the configuration differ, for the message."""
    old, new = there.get("config", {}), json.loads(json.dumps(here["config"]))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return f" ({', '.join(keys)} differ)" if keys else ""
