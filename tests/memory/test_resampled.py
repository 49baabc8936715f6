"""The memory whose points know their neighbours: what it carries, of which point a cell is read, what it returns."""

import math

import pytest
import torch
from torch import Tensor

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.memory import ChunkRecord, make_memory
from mirage_env.memory.latent import LatentMemory, MemoryState
from mirage_env.memory.resampled import AROUND, ResampledMemory, ResampledMemoryConfig, nearest, with_neighbours
from mirage_env.types import Cameras, Readout

PIXELS, GRID, C = (32, 48), (4, 6), 5
CONFIG = ResampledMemoryConfig(channels=C, maps=3, hidden=8, width=8, blocks=1, sky_points=64, token_dtype="float32")


def at(*places: tuple[float, float]) -> Cameras:
    """Cameras at (x, z) that look ahead."""
    poses = torch.eye(4).repeat(len(places), 1, 1)
    poses[:, [0, 2], 3] = torch.tensor(places)
    return Cameras(poses, intrinsics_from_fov(math.pi / 2, PIXELS).repeat(len(places), 1, 1), PIXELS)


def record(cameras: Cameras, sky_rows: int = 0) -> ChunkRecord:
    """A wall four metres ahead, below so many rows of sky."""
    frames = len(cameras)
    sky = torch.zeros(frames, *PIXELS, dtype=torch.bool)
    sky[:, :sky_rows] = True
    latents = torch.randn(frames, C, *GRID, generator=torch.Generator().manual_seed(1))
    return ChunkRecord(latents, torch.full((frames, *PIXELS), 4.0), sky, torch.zeros_like(sky), cameras)


def settled(memory: ResampledMemory, state: MemoryState, cameras: Cameras) -> Readout:
    reading = memory.read(state, cameras.resized(GRID))
    assert reading.settled is not None
    return reading.settled(slice(None))


def learned(seed: int = 0) -> ResampledMemory:
    """With weights that do something."""
    torch.manual_seed(seed)
    memory = ResampledMemory(CONFIG).eval().requires_grad_(False)
    for parameter in memory.parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter))
    return memory


def test_a_point_carries_its_token_and_those_around_it() -> None:
    latents = torch.arange(24.0).view(1, 1, *GRID)
    around = with_neighbours(latents)
    assert around.shape == (1, AROUND, *GRID)
    assert torch.equal(around[:, :1], latents)
    assert around[0, :, 1, 2].tolist() == [8, 1, 2, 3, 7, 9, 13, 14, 15]
    assert around[0, :, 0, 0].tolist() == [0, 0, 0, 1, 0, 1, 6, 6, 7]  # beyond the border the nearest cell's


def test_where_it_was_written_it_returns_what_was_written() -> None:
    memory, seen = learned(), record(at((0.0, 0.0)), sky_rows=8)
    state = memory.write(memory.empty(C), seen)
    shown = settled(memory, state, at((0.0, 0.0)))
    assert bool(shown.visible.all())
    torch.testing.assert_close(shown.tokens, seen.latents, atol=2e-2, rtol=0)  # products may be in bfloat16
    plain = memory.read(state, at((0.0, 0.0)).resized(GRID)).grid
    assert plain is not None and torch.equal(plain.tokens, seen.latents)


def test_it_shows_the_depth_that_the_latent_memory_shows() -> None:
    memory, plain, seen = learned(), LatentMemory(CONFIG), record(at((0.0, 0.0), (0.3, 0.0)), sky_rows=8)
    state, other = memory.write(memory.empty(C), seen), plain.write(plain.empty(C), seen)
    views = at((0.2, 1.0), (-1.0, -1.0)).resized(GRID)
    one, two = memory.read(state, views).grid, plain.read(other, views).grid
    assert one is not None and two is not None
    for name in ("tokens", "visible", "depth_m", "offset", "index"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_between_points_the_nearest_in_reach_is_read() -> None:
    """Two metres nearer every second cell is empty: each is read of the point that lies nearest."""
    memory = learned()
    state = memory.write(memory.empty(C), record(at((0.0, 0.0))))
    reading = memory.read(state, at((0.0, 2.0)).resized(GRID))
    assert reading.grid is not None and reading.settled is not None
    shown = reading.settled(slice(None))
    assert 0 < int(reading.grid.visible.sum()) < int(shown.visible.sum()) == math.prod(GRID)
    torch.testing.assert_close(shown.depth_m, torch.full_like(shown.depth_m, 2.0))
    assert not bool(shown.offset.any())


def a_grid(visible: Tensor, offset: Tensor) -> Readout:
    nothing = torch.zeros_like(visible, dtype=torch.float32)
    return Readout(nothing[:, None], visible, nothing, offset, torch.where(visible, 0, -1))


def test_a_patch_that_does_not_reach_shows_nothing() -> None:
    visible = torch.zeros(1, 3, 5, dtype=torch.bool)
    visible[0, 1, 1] = True
    offset = torch.zeros(1, 2, 3, 5)
    offset[0, :, 1, 1] = torch.tensor([0.4, 0.0])  # nearer to the cell on its right
    for scale, expected in ((0.5, [1]), (1.0, [1, 2]), (2.0, [0, 1, 2])):
        cell, shown, place = nearest(a_grid(visible, offset), torch.full((1, 3, 5), scale), reach=1.0)
        assert shown[0, 1].nonzero()[:, 0].tolist() == expected
        assert bool((cell[shown] == 6).all())  # of the middle row's second
        torch.testing.assert_close(place[0, :, 1, 1], torch.tensor([0.4, 0.0]))
    torch.testing.assert_close(place[0, :, 1, 2], torch.tensor([-0.6, 0.0]))
    assert not bool(place[:, :, ~shown[0]].any())


def test_company_changes_no_bit() -> None:
    memory = learned()
    states = [memory.write(memory.empty(C), record(at((x, 0.0)))) for x in (0.0, 0.7)]
    views = [at((0.1, 0.5)).resized(GRID), at((0.4, 1.0), (0.9, 0.2)).resized(GRID)]
    together = memory.read_many(states, views)
    for reading, state, cameras in zip(together, states, views, strict=True):
        alone = memory.read(state, cameras)
        assert reading.settled is not None and alone.settled is not None
        for views_asked in (slice(None), torch.tensor([0])):
            one, other = reading.settled(views_asked), alone.settled(views_asked)
            assert torch.equal(one.tokens, other.tokens) and torch.equal(one.visible, other.visible)


def test_an_empty_memory_knows_nothing() -> None:
    memory = learned()
    shown = settled(memory, memory.empty(C), at((0.0, 0.0)))
    assert not bool(shown.visible.any()) and not bool(shown.tokens.any())


def test_what_does_not_fit_is_told(unchecked: None) -> None:
    with pytest.raises(InvalidValueError, match=r"reads latents of 5 channels, got 24; set memory\.channels"):
        ResampledMemory(CONFIG).empty(24)
    for wrong, told in (
        ({"width": 12}, "width a multiple of 8"),
        ({"maps": 0}, "must be positive"),
        ({"reach": 2.0}, "reach must be from half a patch"),
        ({"trust": 0.0}, "trust must be positive"),
    ):
        with pytest.raises(InvalidValueError, match=told):
            ResampledMemoryConfig(**wrong)


def test_presets_name_it() -> None:
    assert isinstance(make_memory(CONFIG, lambda images: images), ResampledMemory)
