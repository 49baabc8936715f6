"""A walk without end, cut short; nothing here asserts a time."""

import json

import pytest
import torch

from mirage_env.errors import InvalidValueError
from mirage_env.evaluation import endless
from mirage_env.evaluation.memory_bench import Scale
from mirage_env.geometry.projection import backproject
from mirage_env.memory import LatentMemory, MemoryConfig
from mirage_env.memory.rgb import RgbMemory, RgbMemoryConfig

SCALE = Scale("small", (32, 48), channels=6, stride=8, temporal_stride=1, views=4, keyframes=2)
BUDGET = 60


@pytest.fixture(scope="module")
def alone() -> endless.Endless:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endless, "ROUNDS", 2)
        return endless.memory_alone(SCALE, LatentMemory(MemoryConfig(max_points=BUDGET)), 25, lambda done, total: None)


def test_the_corridor_goes_on() -> None:
    cameras = endless.onward(8, 7, (16, 24))
    depth = endless.corridor_depth(cameras)
    points, known = backproject(depth, cameras), depth > 0
    to_wall = (points[..., :2].abs() - torch.tensor(endless.HALF_CORRIDOR_M)).abs().amin(-1)
    assert float(to_wall[known].max()) < 1e-4 and 0 < float((~known).float().mean()) < 0.3
    together = torch.cat([endless.onward(8, n, (4, 4)).world_from_camera[:, 2, 3] for n in (1, 2)])
    torch.testing.assert_close(together.diff(), torch.full((15,), endless.STEP_M))


def test_the_memory_is_bounded_and_both_ends_are_measured(alone: endless.Endless) -> None:
    assert [mark.chunk for mark in alone.marks] == [10, 20, 25]
    assert [mark.points for mark in alone.marks] == [BUDGET] * 3
    assert len({mark.bytes for mark in alone.marks}) == 1 and alone.marks[0].resident_mib > 10
    assert set(alone.early_ms) == set(alone.late_ms) == {"read", "write", "all"}
    assert alone.ratio == alone.late_ms["all"] / alone.early_ms["all"] > 0
    assert alone.growth_mib == alone.marks[2].resident_mib - alone.marks[1].resident_mib


def test_whole_chunks_of_a_model(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless, "ROUNDS", 1)
    walk = endless.whole_chunks(model, 12, lambda done, total: None)
    assert walk.marks[-1].chunk == 12 and {"denoise", "decode", "see", "read", "write", "all"} <= set(walk.late_ms)
    assert all(0 < walk.late_ms[part] < walk.late_ms["all"] for part in ("denoise", "decode", "read", "write"))


def test_the_report(alone: endless.Endless, tmp_path) -> None:
    numbers, text = endless.write_report(tmp_path, [alone])
    assert json.loads(numbers.read_text())["walks"][0]["marks"][2]["points"] == BUDGET
    assert f"{alone.ratio:.2f}x" in text.read_text() and "25 chunks" in text.read_text()


def test_any_memory_is_walked_and_one_without_a_budget_says_so() -> None:
    colours = RgbMemory(RgbMemoryConfig(max_points=None), lambda images: torch.zeros(len(images), SCALE.channels, 4, 6))
    walk = endless.memory_alone(SCALE, colours, 11, lambda done, total: None)
    assert walk.about.endswith("keyframes written a chunk, no budget") and walk.marks[-1].points > BUDGET


def test_too_short_a_walk() -> None:
    with pytest.raises(InvalidValueError, match="chunks must be a whole number of at least 11, got 10"):
        endless.memory_alone(SCALE, LatentMemory(MemoryConfig(max_points=BUDGET)), 10, lambda done, total: None)
