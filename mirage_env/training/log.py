"""What a stage tells while it trains: a line of JSON a report, and TensorBoard events where that is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image


class TrainingLog:
    """Appends to `<name>.jsonl` and, where the package tensorboard is found, to the events in `tensorboard/<name>`.

    A resumed run goes on in the same files.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self._events: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(folder / "tensorboard" / name)

    def values(self, step: int, values: dict[str, float]) -> None:
        """Scalars by name."""
        with (self.folder / f"{self.name}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step} | {k: round(v, 6) for k, v in values.items()}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def strip(self, step: int, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """A sample strip: the newest lies in `<name>.png`, all of them are in the events."""
        Image.fromarray(picture).save(self.folder / f"{self.name}.png")
        if self._events is not None:
            self._events.add_image("strip", picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def rows_of_pictures(*rows: UInt8[np.ndarray, "n H W 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """A strip: the pictures of a row side by side, the rows below each other."""
    return np.concatenate([np.concatenate(list(row), 1) for row in rows])
