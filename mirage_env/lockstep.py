"""Coroutines that go together: each yields what it needs, and all that is needed at a time is answered at once.

Work is written once, for one world, as if it were alone; whoever runs it decides how many worlds share a call.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

Ask = TypeVar("Ask")
Reply = TypeVar("Reply")
Result = TypeVar("Result")


def in_step(
    works: Sequence[Generator[Ask, Reply, Result]], answer: Callable[[list[Ask]], Sequence[Reply]]
) -> list[Result]:
    """Runs all `works` to their ends; in each round, `answer` gets one question of every work that still asks.

    An exception, of a work or of `answer`, ends all of them: what raises in the first round has changed nothing yet.
    """
    results: dict[int, Result] = {}
    replies: dict[int, Reply | None] = dict.fromkeys(range(len(works)))
    try:
        while replies:
            asks: dict[int, Ask] = {}
            for index, reply in replies.items():
                try:
                    asks[index] = works[index].send(reply)  # type: ignore[arg-type]  # None starts it
                except StopIteration as end:
                    results[index] = end.value
            replies = dict(zip(asks, answer(list(asks.values())), strict=True)) if asks else {}
    finally:
        for work in works:
            work.close()
    return [results[index] for index in range(len(works))]
