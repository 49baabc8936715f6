"""What episodes begin with: a picture, a folder of them, or a manifest that says more about each."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirage_env.cameras_io import CameraPath
from mirage_env.envs.mirage import picture_pool
from mirage_env.errors import ImageError, InvalidValueError
from mirage_env.images import lens_after_crop, load_depth, upright_size

COLUMNS = ("image", "intrinsics", "depth", "prompt", "seed", "trajectory")


@dataclass(frozen=True)
class Input:
    """One row of a manifest; a folder is a manifest of pictures alone. Paths are as written, resolved."""

    image: str | None
    """None: the environment's own choice."""
    intrinsics: tuple[float, ...] | None = None
    """fx fy cx cy in pixels of the picture as it is on disk, upright."""
    depth: str | None = None
    """A 16-bit grey picture in millimetres or a .npy in metres; 0 where unknown."""
    prompt: str | None = None
    seed: int | None = None
    """Stands in for the run's seed."""
    trajectory: str | None = None
    """A camera file that the camera follows, whatever the run's mover."""

    def reset_options(self, size: tuple[int, int], cameras: CameraPath | None) -> dict[str, Any]:
        """For `reset(options=...)` of an environment with frames of `size`; raises where a file cannot be used."""
        options: dict[str, Any] = {} if self.image is None else {"image": self.image}
        if self.prompt is not None:
            options["prompt"] = self.prompt
        if self.depth is not None:
            options["depth"] = load_depth(self.depth, size)
        if self.image is not None and self.intrinsics is not None:
            fx, fy, cx, cy = self.intrinsics
            lens = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
            options["intrinsics"] = lens_after_crop(lens, upright_size(self.image), size)
        elif self.image is not None and cameras is not None:
            whole = upright_size(self.image)
            lenses = cameras.intrinsics_px(whole)
            if lenses is not None:
                options["intrinsics"] = lens_after_crop(lenses[0], whole, size)
        return options

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def read_inputs(source: str | None) -> tuple[Input, ...]:
    """Rows in a stable order: a built-in name or a picture is one row, a folder one a picture, a .csv one a line.

    A manifest has a header with `image` and any of the other COLUMNS; empty fields are not given, paths are relative to
    the manifest. Raises ImageError or InvalidValueError where there is nothing, or a line makes no sense.
    """
    if source is None:
        return (Input(None),)
    path = Path(source).expanduser()
    if path.suffix.lower() == ".csv":
        return _manifest(path)
    if path.is_dir():
        return tuple(Input(image) for image in picture_pool(path))
    upright_size(source)  # one of many may fail, and the others go on; the only one is told before anything begins
    return (Input(source),)


def _manifest(path: Path) -> tuple[Input, ...]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restkey="", strict=True))
    except FileNotFoundError:
        raise ImageError(f"no manifest at {path}; images takes a picture, a folder or a .csv") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidValueError(f"the manifest {path} cannot be read as CSV ({error})") from None
    if not rows:
        raise ImageError(f"the manifest {path} has no line after its header")
    if "image" not in rows[0] or (unknown := sorted(set(rows[0]) - {*COLUMNS, ""})):
        about = f"has unknown columns {', '.join(unknown)}" if "image" in rows[0] else "has no column image"
        raise InvalidValueError(f"the manifest {path} {about}; known are {', '.join(COLUMNS)}")
    return tuple(_row(row, path, number) for number, row in enumerate(rows, start=2))


def _row(row: dict[str, Any], path: Path, number: int) -> Input:
    given = {key: value.strip() for key, value in row.items() if key and value and value.strip()}
    where = f"{path}, line {number}"
    if "" in row or "image" not in given:
        raise InvalidValueError(f"{where}: {'more fields than the header' if '' in row else 'the image is missing'}")
    for key in ("image", "depth", "trajectory"):
        if key in given and (key != "image" or Path(given[key]).suffix):  # an image may be a built-in name
            given[key] = str(path.parent / Path(given[key]).expanduser())
    try:
        seed = int(given["seed"]) if "seed" in given else None
        lens = (
            tuple(float(word) for word in given["intrinsics"].replace(",", " ").split())
            if "intrinsics" in given
            else None
        )
    except ValueError:
        raise InvalidValueError(f"{where}: seed must be a whole number and intrinsics four numbers") from None
    if seed is not None and seed < 0:
        raise InvalidValueError(f"{where}: seed must be at least 0, got {seed}")
    if lens is not None and (len(lens) != 4 or not np.isfinite(lens).all() or min(lens[:2]) <= 0):
        raise InvalidValueError(f"{where}: intrinsics must be fx fy cx cy in pixels of the picture, got {lens}")
    return Input(given["image"], lens, given.get("depth"), given.get("prompt"), seed, given.get("trajectory"))
