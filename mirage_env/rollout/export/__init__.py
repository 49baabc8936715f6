"""Stored episodes in the formats of others' training code; each is one module with one function, `write`."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mirage_env.errors import InvalidValueError, OutputError, UnknownNameError
from mirage_env.rollout.export import ply
from mirage_env.rollout.folder import RunFolder
from mirage_env.rollout.store import StoredEpisode

FORMATS = {
    "minari": "a Minari dataset, lossless: OUT is a MINARI_DATASETS_PATH",
    "lerobot": "LeRobot v3.0: parquet, RGB as mp4, depth in 16 bits and marked as depth",
    "webdataset": "WebDataset tar shards, one sample a frame, lossless",
    "realestate10k": "RealEstate10K camera text, frames as PNG beside it",
    "video": "an mp4 and a contact sheet an episode",
    "ply": "the coloured points of each episode, or of a saved world's memory",
}
"""Format -> what comes out."""


def export(
    source: str | Path,
    form: str,
    out: str | Path,
    keep: str | None = None,
    tell: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> int:
    """Writes the stored episodes of a run that fulfil `keep` to the folder `out`; returns how many.

    `source` is the folder of a run or, for "ply", the file of a saved world. `out` appears whole or not at all. Raises
    UnknownNameError for a format that is not in FORMATS, InvalidValueError where its library is missing or nothing is
    to be exported, OutputError where `out` is taken or cannot be written.
    """
    if form not in FORMATS:
        raise UnknownNameError("export format", form, FORMATS)
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists already; choose another folder for the export")
    world = Path(source).expanduser()
    if world.is_file():
        if form != "ply" or keep is not None:
            raise InvalidValueError(f"{source} is a file; of a saved world only the points can be exported: --to ply")
        with _appearing(target, form) as staging:
            ply.write_world(world, staging)
        return 1
    folder = RunFolder(source)
    folder.about()
    episodes = list(folder.episodes(keep))
    if not episodes:
        raise InvalidValueError(f"{source} holds no episode{' that keep lets pass' if keep else ''}; nothing to export")

    def told() -> Iterator[StoredEpisode]:
        for done, episode in enumerate(episodes):
            tell(done, len(episodes), f"episode {episode.summary['episode']}")
            yield episode

    with _appearing(target, form) as staging:
        importlib.import_module(f"mirage_env.rollout.export.{form}").write(told(), staging)
    tell(len(episodes), len(episodes), "")
    return len(episodes)


@contextmanager
def _appearing(target: Path, form: str) -> Iterator[Path]:
    """A folder to write to that becomes `target` when all went well, and else is gone."""
    staging = target.absolute().with_name(f".{target.name}.partial")  # Minari needs it absolute
    shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed
    try:
        staging.mkdir(parents=True)
        yield staging
        if target.exists():
            target.rmdir()
        os.replace(staging, target)
    except ImportError as error:
        extra = "pip install 'mirage-env[export]'"
        raise InvalidValueError(f"the format {form} needs a package that is missing ({error}); {extra}") from None
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
