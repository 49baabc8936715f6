from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mirage_env.errors import InvalidValueError, OutputError, SavedWorldError
from mirage_env.values import StoredValues, classes_in, moved, write_values


class Spot(NamedTuple):
    x: float
    z: float


@dataclass(frozen=True)
class Inner:
    tokens: torch.Tensor
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    anything: Any
    count: int = 1


@dataclass(frozen=True)
class Stranger:
    x: int


def everything() -> Outer:
    tokens = torch.arange(6.0).view(2, 3)
    words = {"a": [1, 2.5, None], "b": ("x", True), "huge": 2**127, "tiny": 0.1 + 0.2, "odd": float("inf")}
    arrays = (np.arange(4, dtype=np.uint8), np.zeros((0, 3), bool), torch.tensor(3), tokens.T)
    return Outer(Inner(tokens, (Spot(1.0, -2.0),)), (words, arrays, np.float32(0.1)))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    classes = classes_in(Outer)
    assert set(classes) == {"Outer", "Inner", "Spot"}
    path = write_values(tmp_path / "a.world", {"one": everything(), "two": None}, {"note": "hi"}, classes)
    stored = StoredValues(path)
    assert stored.about == {"note": "hi"} and stored.read("two", {}) is None
    before, after = everything(), stored.read("one", classes)
    assert torch.equal(after.inner.tokens, before.inner.tokens) and after.inner.spots == before.inner.spots
    assert type(after.inner.spots[0]) is Spot and after.count == 1
    (words, arrays, number), (old_words, old_arrays, _) = after.anything, before.anything
    assert words == old_words and type(words["a"]) is list and type(words["b"]) is tuple
    assert number == float(np.float32(0.1))
    for one, other in zip(arrays, old_arrays, strict=True):
        assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)
    assert moved(after, "cpu").inner.spots == before.inner.spots


def test_only_expected_classes_come_in_or_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="a Stranger cannot be saved: nothing says that it may be read"):
        write_values(tmp_path / "a", {"x": Stranger(1)}, {}, classes_in(Outer))
    with pytest.raises(InvalidValueError, match="a function cannot be saved; a state is made of numbers"):
        write_values(tmp_path / "a", {"x": everything}, {}, {})
    assert not list(tmp_path.iterdir())
    write_values(tmp_path / "a", {"x": Stranger(1)}, {}, classes_in(Stranger))
    with pytest.raises(SavedWorldError, match="a Stranger was saved, which is nothing that belongs here"):
        StoredValues(tmp_path / "a").read("x", classes_in(Outer))


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_an_interrupted_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = write_values(tmp_path / "a", {"x": 1}, {}, {})
    before = path.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, fails, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_values(path, {"x": 2}, {}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SavedWorldError, match="no saved world at"):
        StoredValues(tmp_path / "none")
    with pytest.raises(OutputError, match="cannot write"):
        write_values(tmp_path / "no" / "such" / "folder", {}, {}, {})
    path = write_values(tmp_path / "a", {"x": np.arange(1000)}, {}, {})
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(SavedWorldError, match="is damaged or none"):
            StoredValues(path)
    path.write_bytes(whole)
    stored = StoredValues(path)
    with path.open("r+b") as file:
        file.truncate(0)
    np.testing.assert_array_equal(stored.read("x", {}), np.arange(1000))
    weights = Path(__file__).parents[1] / "mirage_env" / "weights" / "mirage-tiny" / "codec.safetensors"
    with pytest.raises(SavedWorldError, match="is no world that this version of mirage-env saved"):
        StoredValues(weights)
