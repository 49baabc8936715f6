import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import backproject
from mirage_env.memory.recall import recall
from mirage_env.memory.reference import splat_by_loops
from mirage_env.types import Cameras

SIZE = (6, 6)


def towards(*degrees: float) -> Cameras:
    """Cameras at the origin, turned right by so much, with a 60 degree view."""
    yaw = torch.tensor(degrees) * math.pi / 180
    pose = rigid(rotation_from_yaw_pitch_roll(yaw, yaw * 0, yaw * 0), torch.zeros(len(degrees), 3))
    return Cameras(pose, intrinsics_from_fov(math.pi / 3, SIZE).repeat(len(degrees), 1, 1), SIZE)


def ask(keyframes: Cameras, targets: Cameras, count: int, depth: float = 3.0) -> list[int]:
    return recall(torch.full((len(keyframes), *SIZE), depth), keyframes, targets, count).tolist()


def test_the_frame_that_looked_there_is_recalled() -> None:
    assert ask(towards(180, 90, 10, 270), towards(15), 1) == [2]


def test_each_further_frame_adds_coverage() -> None:
    """Frames 0 and 1 see most of the first target, frame 1 a little less; the second target needs frame 2."""
    chosen = ask(towards(0, 4, 60), towards(0, 60), 2)
    assert sorted(chosen) == [0, 2]


def test_several_targets_count_together() -> None:
    assert ask(towards(0, 90), towards(90, 90, 0), 1) == [1]


def test_ties_go_to_the_earliest() -> None:
    assert ask(towards(0, 0, 0), towards(0), 3) == [0]


def test_frames_that_saw_nothing_of_it_are_left_out() -> None:
    assert ask(towards(180, 150), towards(0), 4) == []


def test_no_keyframes_no_count_no_targets() -> None:
    assert ask(towards(), towards(0), 2) == []
    assert ask(towards(0), towards(0), 0) == []
    assert ask(towards(0), towards(), 2) == []


@pytest.mark.parametrize("unknown", [math.nan, math.inf, 0.0, -1.0])
def test_cells_without_depth_cover_nothing(unknown: float) -> None:
    assert ask(towards(0), towards(0), 1, depth=unknown) == []
    depth = torch.full((2, *SIZE), 3.0)
    depth[0, :, 2:] = unknown
    assert recall(depth, towards(0, 0), towards(0), 1).tolist() == [1]


def test_depth_and_cameras_must_fit() -> None:
    with pytest.raises(InvalidValueError, match="latent resolution"):
        recall(torch.ones(1, 48, 48), towards(0), towards(0), 1)


def recall_by_loops(depth: torch.Tensor, keyframes: Cameras, targets: Cameras, count: int) -> list[int]:
    """The same with sets of cells, one keyframe at a time."""
    covers: list[set[tuple[int, ...]]] = []
    for k in range(len(keyframes)):
        points = backproject(depth[k : k + 1], keyframes[k : k + 1]).reshape(-1, 3)
        known = (depth[k] > 0).flatten() & torch.isfinite(points).all(1)
        ids = torch.arange(int(known.sum()))
        shown = splat_by_loops(points[known], torch.zeros(len(ids), 1), ids, targets)
        covers.append({tuple(cell) for cell in shown.visible.nonzero().tolist()})
    chosen: list[int] = []
    covered: set[tuple[int, ...]] = set()
    while len(chosen) < count and covers:
        best = max(range(len(covers)), key=lambda k: (len(covers[k] - covered), -k))
        if not covers[best] - covered:
            break
        chosen.append(best)
        covered |= covers[best]
    return chosen


@pytest.mark.parametrize("kernel", ["torch", "numba"])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 8), st.integers(0, 3), st.integers(0, 5))
def test_equals_sets_of_cells(kernel: str, seed: int, keyframes: int, targets: int, count: int) -> None:
    torch.manual_seed(seed)
    there = towards(*(torch.randn(keyframes) * 60).tolist())
    here = towards(*(torch.randn(targets) * 60).tolist())
    depth = torch.rand(keyframes, *SIZE) * 5 - 0.5
    depth[torch.rand_like(depth) < 0.1] = math.nan
    splat = import_module("mirage_env.memory.splat")  # the package's own name for it is the function
    numba = splat._load_numba()
    assert numba is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splat, "_numba", lambda pairs=0: numba if kernel == "numba" else None)
        assert recall(depth, there, here, count).tolist() == recall_by_loops(depth, there, here, count)
