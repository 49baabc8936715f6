"""Exceptions of one sentence: what was wrong, what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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


class OutputError(MirageError, OSError):
    """A place that cannot be written to."""
