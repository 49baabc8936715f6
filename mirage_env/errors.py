"""Exceptions of one sentence: what was wrong, what was expected, what came, what to do; and checks that many share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np

MOST_PIXELS = 4096
"""The longest side of a frame."""


class MirageError(Exception):
    """Base of every error this package raises for a caller's mistake; the command line prints it and exits with 2."""


class InvalidValueError(MirageError, ValueError):
    """A value outside what a function accepts."""


class UnknownNameError(MirageError, ValueError):
    """A name that is not registered."""

    def __init__(self, what: str, name: str, known: Iterable[str]):
        known = sorted(known)
        close = get_close_matches(str(name), known, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        super().__init__(f'unknown {what} "{name}"; known are {", ".join(known)}{hint}')


class ImageError(MirageError, ValueError):
    """A picture that cannot be read or used."""


class WeightsError(MirageError, ValueError):
    """A weights file that is missing, damaged, or made for another model."""


class SavedWorldError(MirageError, ValueError):
    """A saved world that cannot be read, or that does not fit where it is wanted."""


class OutputError(MirageError, OSError):
    """A place that cannot be written to."""


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float in (low, high], or `InvalidValueError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low < float(value) <= high:
        raise InvalidValueError(f"{name} must be a number above {low:g} and at most {high:g}, got {value!r}")
    return float(value)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int of at least `least`, or `InvalidValueError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def check_size(size: Any) -> tuple[int, int]:
    """(H, W) as a tuple, which JSON and YAML cannot write; one number is a square; else `InvalidValueError`."""
    sides = (size, size) if isinstance(size, Integral) else size
    try:
        height, width = (check_count("size", side) for side in sides)
    except (TypeError, ValueError):
        raise InvalidValueError(f"size must be two whole numbers (H, W) of pixels, got {size!r}") from None
    if max(height, width) > MOST_PIXELS:
        raise InvalidValueError(f"size must be at most {MOST_PIXELS} pixels a side, got {size!r}")
    return height, width


def check_stride(size: tuple[int, int], stride: int) -> None:
    """Raises `InvalidValueError`, with the nearest that works, where `stride` does not divide both sides."""
    if any(side % stride or side <= 0 for side in size):
        height, width = (max(stride, round(side / stride) * stride) for side in size)
        raise InvalidValueError(
            f"the picture size must be a multiple of {stride} pixels a side, got {size[0]} x {size[1]}; "
            f"the nearest that works is {height} x {width}"
        )


def check_array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The value as finite float32 of `shape` (-1 is any length), or `InvalidValueError`."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float32)
    except (TypeError, ValueError):
        raise InvalidValueError(f"{name} must be numbers of shape {shape}, got {type(value).__name__}") from None
    if array.ndim != len(shape) or any(want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)):
        raise InvalidValueError(f"{name} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidValueError(f"{name} must be finite, but some entries are not")
    return array
