from __future__ import annotations

from collections.abc import Generator

import pytest

from mirage_env.lockstep import in_step


def countdown(start: int) -> Generator[int, int, list[int]]:
    replies = []
    for number in range(start, 0, -1):
        replies.append((yield number))
    return replies


def test_every_round_answers_those_that_still_ask() -> None:
    rounds: list[list[int]] = []

    def doubled(asks: list[int]) -> list[int]:
        rounds.append(asks)
        return [2 * ask for ask in asks]

    assert in_step([countdown(n) for n in (2, 0, 3)], doubled) == [[4, 2], [], [6, 4, 2]]
    assert rounds == [[2, 3], [1, 2], [1]]
    assert in_step([], doubled) == []


def test_replies_may_be_anything_even_nothing() -> None:
    assert in_step([countdown(2)], lambda asks: [None for _ in asks]) == [[None, None]]


def test_an_exception_ends_all() -> None:
    ended = []

    def work() -> Generator[int, int, None]:
        try:
            yield 1
        finally:
            ended.append(True)

    def fails(asks: list[int]) -> list[int]:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        in_step([work(), work()], fails)
    assert ended == [True, True]
