from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mirage_env.config import load_config
from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.memory import LatentMemory, MemoryConfig, MemoryState, State, make_memory
from mirage_env.memory.none import NoMemory, NoMemoryConfig
from mirage_env.memory.protocol import AnyMemoryConfig, memory_class
from mirage_env.types import Cameras, Readout


@dataclass(frozen=True)
class Leaf(State):
    rows: Tensor
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Tree(State):
    left: Leaf
    colour: Tensor

    def __len__(self) -> int:
        return len(self.left)


TREE = Tree(Leaf(torch.arange(6.0).view(2, 3), 7), torch.ones(4, dtype=torch.float16))


def test_a_state_is_a_tree_of_tensors() -> None:
    leaves = TREE.tensors()
    assert list(leaves) == ["left.rows", "left.count", "colour"]
    assert TREE.nbytes == 24 + 8
    again = Tree.from_tensors(leaves)
    assert torch.equal(again.left.rows, TREE.left.rows) and again.left.count == 7 and type(again.left.count) is int
    assert torch.equal(again.colour, TREE.colour) and len(again) == 7
    moved = TREE.to("meta")
    assert moved.left.rows.is_meta and moved.left.count == 7


def test_a_tree_with_leaves_missing_or_left_over_is_refused() -> None:
    leaves = TREE.tensors()
    with pytest.raises(InvalidValueError, match=r'a Tree holds no tensor "right\.rows"'):
        Tree.from_tensors(leaves | {"right.rows": torch.ones(1)})
    with pytest.raises(InvalidValueError, match='a Leaf holds no tensor "more"'):
        Tree.from_tensors(leaves | {"left.more": torch.ones(1)})
    del leaves["left.rows"]
    with pytest.raises(InvalidValueError, match='a Leaf needs the tensor "rows"'):
        Tree.from_tensors(leaves)


def test_the_latent_state_goes_through_its_tensors() -> None:
    state = MemoryState.of(torch.randn(3, 3), torch.randn(3, 5).half(), torch.ones(3), torch.tensor([1, 4, 9]), 10)
    again = MemoryState.from_tensors(state.tensors())
    assert again.next_id == 10 and torch.equal(again.tokens, state.tokens) and again.tokens.dtype == torch.float16
    broken = state.tensors() | {"points": torch.full((3, 3), torch.nan)}
    with pytest.raises(InvalidValueError, match="memory point 0 is not finite"):
        MemoryState.from_tensors(broken)


@dataclass(frozen=True)
class Holder:
    memory: AnyMemoryConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory: {write_rule: paper}", MemoryConfig(write_rule="paper")),
        ("memory: {kind: latent, max_points: 9}", MemoryConfig(max_points=9)),
        ("memory: {kind: none}", NoMemoryConfig()),
    ],
)
def test_a_preset_names_its_memory(tmp_path, text: str, expected: AnyMemoryConfig) -> None:
    (tmp_path / "preset.yaml").write_text(text)
    config = load_config(tmp_path / "preset.yaml", Holder).memory
    assert config == expected and type(config) is type(expected)
    memory = make_memory(config, lambda images: images)
    assert type(memory) is {"latent": LatentMemory, "none": NoMemory}[expected.kind]
    assert memory.config == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory: {kind: latents}", 'unknown memory "latents"; known are .*did you mean "latent"'),
        ("memory: {kind: none, max_points: 9}", 'has no key "max_points"'),
        ("memory: {max_point: 9}", 'has no key "max_point"; did you mean "max_points"'),
        ("memory: latent", "must be a mapping of AnyMemoryConfig fields"),
    ],
)
def test_a_preset_that_names_none_is_refused(tmp_path, text: str, message: str) -> None:
    (tmp_path / "preset.yaml").write_text(text)
    with pytest.raises((InvalidValueError, UnknownNameError), match=message):
        load_config(tmp_path / "preset.yaml", Holder)


def test_plugins_are_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "mine"

        def load(self) -> type:
            return NoMemory

    monkeypatch.setattr("mirage_env.memory.protocol.entry_points", lambda group: [Point()])
    assert memory_class("mine") is NoMemory
    with pytest.raises(UnknownNameError, match='did you mean "mine"'):
        memory_class("mines")


def test_blank_is_what_an_empty_memory_shows() -> None:
    cameras = Cameras(torch.eye(4).repeat(2, 1, 1), torch.eye(3).repeat(2, 1, 1), (3, 4))
    memory = LatentMemory()
    shown, blank = memory.read(memory.empty(5), cameras).grid, Readout.blank(cameras, 5)
    assert shown is not None
    for name in ("tokens", "visible", "depth_m", "offset", "index"):
        assert torch.equal(getattr(shown, name), getattr(blank, name))
