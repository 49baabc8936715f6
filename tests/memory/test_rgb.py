"""The RGB memory, with a codec that takes the mean colour of every cell: what it shows is then known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.memory import ChunkRecord, make_memory
from mirage_env.memory.rgb import RgbMemory, RgbMemoryConfig, RgbState, fill_holes
from mirage_env.types import Cameras, Readout

PIXELS, GRID, STRIDE = (32, 48), (4, 6), 8


def mean_colour(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, STRIDE)


def at(*z: float) -> Cameras:
    poses = torch.eye(4).repeat(len(z), 1, 1)
    poses[:, 2, 3] = torch.tensor(z)
    return Cameras(poses, intrinsics_from_fov(math.pi / 2, PIXELS).repeat(len(z), 1, 1), PIXELS)


def record(cameras: Cameras, depth: float = 4.0) -> ChunkRecord:
    frames = len(cameras)
    rgb = torch.randint(0, 256, (frames, *PIXELS, 3), dtype=torch.uint8)
    nothing = torch.zeros(frames, *PIXELS, dtype=torch.bool)
    return ChunkRecord(
        torch.zeros(frames, 3, *GRID), torch.full((frames, *PIXELS), depth), nothing, nothing, cameras, rgb
    )


def read(memory: RgbMemory, state: RgbState, cameras: Cameras) -> Readout:
    grid = memory.read(state, cameras.resized(GRID)).grid
    assert grid is not None
    return grid


def test_one_view_reads_back_its_own_picture() -> None:
    memory, seen = RgbMemory(None, mean_colour), record(at(0.0))
    state = memory.write(memory.empty(3), seen)
    assert len(state) == 32 * 48 and state.stride == STRIDE
    shown = read(memory, state, at(0.0))
    assert seen.rgb is not None
    torch.testing.assert_close(shown.tokens, mean_colour(seen.rgb.movedim(3, 1) / 127.5 - 1.0))
    assert bool(shown.visible.all()) and not bool(shown.offset.any())
    torch.testing.assert_close(shown.depth_m, torch.full((1, *GRID), 4.0))


def test_bytes_a_pixel() -> None:
    """12 of place, 3 of colour, 4 of footprint and 8 of id, as a latent point has but for its token."""
    memory = RgbMemory(None, mean_colour)
    assert memory.write(memory.empty(3), record(at(0.0))).nbytes == 32 * 48 * (12 + 3 + 4 + 8)


def test_nothing_remembered_is_blank() -> None:
    memory = RgbMemory(None, mean_colour)
    shown = read(memory, memory.empty(5), at(0.0))
    assert shown.tokens.shape == (1, 5, *GRID) and not bool(shown.visible.any())
    assert read(memory, memory.write(memory.empty(3), record(at(0.0))), at()).tokens.shape == (0, 3, *GRID)


def test_cracks_are_filled_and_uncovered_cells_are_blank() -> None:
    """From twice as near a plain wall shows three cracks for every point; all of it has the wall's colour."""
    seen = record(at(0.0))
    plain = replace(seen, rgb=torch.full_like(seen.rgb, 200))
    patient = RgbMemory(RgbMemoryConfig(coverage=0.2), mean_colour)
    state = patient.write(patient.empty(3), plain)
    shown = read(patient, state, at(2.0))
    assert bool(shown.visible.all())
    torch.testing.assert_close(shown.tokens, torch.full_like(shown.tokens, 200 / 127.5 - 1.0))
    strict = RgbMemory(RgbMemoryConfig(coverage=0.9), mean_colour)
    shown = read(strict, state, at(2.0))
    assert not bool(shown.visible.any() | shown.tokens.any() | shown.depth_m.any()) and bool((shown.index == -1).all())


def test_holes_take_the_nearest_colours() -> None:
    picture = torch.zeros(1, 1, 8, 8)
    picture[..., 4:] = 1.0
    known = torch.zeros(1, 8, 8, dtype=torch.bool)
    known[:, ::2, ::2] = True
    filled = fill_holes(torch.where(known[:, None], picture, 9.0), known)
    assert torch.equal(filled[0, 0][known[0]], picture[0, 0][known[0]])
    assert float(filled[..., :3].max()) < 0.5 < float(filled[..., 5:].min())
    nothing = fill_holes(picture, torch.zeros_like(known))
    assert not bool(nothing.any())
    assert torch.equal(fill_holes(picture, torch.ones_like(known)), picture)


def test_it_is_a_memory_of_the_protocol() -> None:
    memory = make_memory(RgbMemoryConfig(), mean_colour)
    assert isinstance(memory, RgbMemory)
    state = memory.write(memory.empty(3), record(at(0.0)))
    again = RgbState.from_tensors(state.tensors())
    assert torch.equal(read(memory, again, at(1.0)).tokens, read(memory, state, at(1.0)).tokens)


def test_errors() -> None:
    memory = RgbMemory(None, mean_colour)
    with pytest.raises(InvalidValueError, match="stores pictures, and this record has none; pass rgb="):
        memory.write(memory.empty(3), replace(record(at(0.0)), rgb=None))
    with pytest.raises(InvalidValueError, match=r"coverage is a share .* got 0\.0"):
        RgbMemoryConfig(coverage=0.0)
