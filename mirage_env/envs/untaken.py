"""Generated frames that wait until somebody takes them."""

from __future__ import annotations

from mirage_env.errors import MirageError
from mirage_env.types import Frames

KEPT_BYTES = 256 * 2**20


class Untaken:
    """Whole chunks of the running episode and of the one before it; older ones are gone.

    At most 256 MiB of each are kept, which `sharers` environments divide among them.
    """

    def __init__(self, sharers: int = 1) -> None:
        self._sharers = sharers
        self._before: list[Frames] = []
        self._now: list[Frames] = []
        self._now_bytes = 0
        self._lost = 0

    def next_episode(self) -> Untaken:
        """A new one in which what was kept here is the episode before; this one stays as it is."""
        after = Untaken(self._sharers)
        after._before, after._lost = self._now, self._lost
        return after

    def keep(self, frames: Frames) -> None:
        """Adds a chunk to the running episode."""
        self._now.append(frames)
        self._now_bytes += frames.nbytes
        while len(self._now) > 1 and self._now_bytes > KEPT_BYTES // self._sharers:
            self._now_bytes -= self._now[0].nbytes
            self._lost += len(self._now.pop(0))

    def take(self) -> Frames | None:
        """All that is kept of the older episode, else of the running one; None when nothing is.

        Raises MirageError, once, when frames had to be dropped.
        """
        if self._lost:
            lost, self._lost = self._lost, 0
            raise MirageError(
                f"{lost} frames were dropped because nobody took them; call take_chunk() after each step that generates"
            )
        chunks, self._before = self._before, []
        if not chunks:
            chunks, self._now, self._now_bytes = self._now, [], 0
        return Frames.cat(chunks) if chunks else None
