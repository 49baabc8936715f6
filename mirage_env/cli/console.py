"""What the commands share: where they print, how they show progress, how they read a size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mirage_env.errors import InvalidValueError

out = Console(highlight=False)
Weights = Annotated[
    Path | None, typer.Option(help="A folder of weights of your own, such as [bold]mirage-env train[/] leaves.")
]


def say(text: str) -> None:
    """A line for people that may hold a path, and so is not cut where the window ends."""
    out.print(text, soft_wrap=True)


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) from "128" or "96x160"."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidValueError(f'size must look like 128 or 96x160 (HEIGHTxWIDTH), got "{text}"')
    return int(parts[0]), int(parts[-1])


class Meter:
    """A progress bar with its rate, and how long the work took."""

    def __init__(self, what: str, total: int, unit: str = "frames"):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=out,
        )
        self._task = self._bar.add_task(what, total=total, rate="", note="")
        self._total, self._unit = total, unit
        self._marks: list[tuple[float, int]] = []

    def __enter__(self) -> Meter:
        self._start = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._bar.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        self._marks = [*self._marks[:1], (time.perf_counter(), done)]
        rate = f"{self.rate:.1f} {self._unit}/s" if self.rate else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate, note=note)

    @property
    def rate(self) -> float:
        """Frames a second from the first report to the last, so without loading; over everything where there is one."""
        if len(self._marks) >= 2:
            (begin, first), (end, last) = self._marks[0], self._marks[-1]
            return (last - first) / max(end - begin, 1e-9)
        return self._total / self.seconds if hasattr(self, "seconds") else 0.0
