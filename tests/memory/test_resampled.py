"""The memory whose points know their neighbours: what it carries, of which point a cell is read, what it returns."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.geometry.projection import camera_rays
from mirage_env.memory import ChunkRecord, make_memory
from mirage_env.memory.latent import LatentMemory, MemoryState
from mirage_env.memory.resampled import (
    AROUND,
    LARGEST,
    ResampledMemory,
    ResampledMemoryConfig,
    inverse,
    nearest,
    tangents,
    with_neighbours,
)
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


def test_at_the_very_place_nothing_is_added_by_rounding() -> None:
    """On a floor, with a camera turned every way, whose steps a float16 does not hold exactly."""
    memory, view, grid = learned(), turned(0.7, 0.3, 0.1, (0.4, 0.0, 0.2)), (16, 24)
    depth = where_rays_meet(view, FLOOR, 1.5)[0][None]
    none = torch.zeros_like(depth, dtype=torch.bool)
    latents = torch.randn(1, C, *grid, generator=torch.Generator().manual_seed(2))
    half = ResampledMemory(replace(CONFIG, token_dtype="float16")).eval()
    half.load_state_dict(memory.state_dict())
    state = half.write(half.empty(C), ChunkRecord(latents, depth, none, none, view))
    reading = half.read(state, view.resized(grid))
    assert reading.grid is not None and reading.settled is not None
    seen = reading.grid.visible[0]
    assert int(seen.sum()) > 60
    assert torch.equal(reading.settled(slice(None)).tokens[0][:, seen], latents.half().float()[0][:, seen])


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
        shape = scale * torch.eye(2)[None, :, :, None, None].expand(1, 2, 2, 3, 5)
        cell, shown, place = nearest(a_grid(visible, offset), shape, reach=1.0)
        assert shown[0, 1].nonzero()[:, 0].tolist() == expected
        assert bool((cell[shown] == 6).all())  # of the middle row's second
        torch.testing.assert_close(place[0, :, 1, 1], torch.tensor([0.4, 0.0]))
    torch.testing.assert_close(place[0, :, 1, 2], torch.tensor([-0.6, 0.0]))
    assert not bool(place[:, :, ~shown[0]].any())


def test_a_flat_patch_reaches_farther_along_than_across() -> None:
    visible = torch.zeros(1, 5, 5, dtype=torch.bool)
    visible[0, 2, 2] = True
    shape = torch.tensor([[2.0, 0.0], [0.0, 0.5]])[None, :, :, None, None].expand(1, 2, 2, 5, 5)
    _, shown, _ = nearest(a_grid(visible, torch.zeros(1, 2, 5, 5)), shape, reach=1.0)
    assert shown[0].nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]


def turned(yaw: float, pitch: float, roll: float, place: tuple[float, float, float], tall: float = 1.0) -> Cameras:
    """A camera whose pixels are `tall` times as fine downwards as across."""
    rotation = torch.eye(3)
    for angle, i, j in ((yaw, 2, 0), (pitch, 1, 2), (roll, 0, 1)):
        step = torch.eye(3)
        step[i, i] = step[j, j] = math.cos(angle)
        step[i, j], step[j, i] = -math.sin(angle), math.sin(angle)
        rotation = rotation @ step
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, torch.tensor(place)
    pixels = (128, 192)
    intrinsics = intrinsics_from_fov(math.pi / 2, pixels).clone()
    intrinsics[1, 1] *= tall
    return Cameras(pose[None], intrinsics[None], pixels)


def where_rays_meet(cameras: Cameras, normal: Tensor, away: float) -> tuple[Tensor, Tensor]:
    """z-depth (H, W) of the plane normal . X = away, 0 where it is not met, and the points (H, W, 3)."""
    pose = cameras.world_from_camera[0]
    rays = camera_rays(cameras)[0] @ pose[:3, :3].T
    depth = (away - normal @ pose[:3, 3]) / (rays @ normal)
    return torch.where((depth > 0) & (depth < 30), depth, 0.0), pose[:3, 3] + depth[..., None] * rays


FLOOR, WALL = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.8, 0.0, 0.6])


def seen_from(first: Cameras, view: Cameras, depth: Tensor, sky: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of tokens that say where in the picture of `first` they lie: where the middle of every cell of `view` is found
    there, by the nearest point and the shape of its patch (2, h, w), which cells are shown, and their shapes."""
    grid = (16, 24)
    places = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(16.0), indexing="xy"))[None] + 0.5
    memory = ResampledMemory(ResampledMemoryConfig(channels=2, token_dtype="float32", sky_points=4096))
    state = memory.write(memory.empty(2), ChunkRecord(places, depth, sky, torch.zeros_like(sky), first))
    plain = memory.points.read(state, view.resized(grid)).grid
    assert plain is not None
    seen = memory.view(state, view.resized(grid), plain)
    found = seen.around[:, :2] - torch.einsum("vijhw,vjhw->vihw", inverse(seen.shape)[0], seen.offset)
    return found[0], seen.shown[0], seen.shape


@pytest.mark.parametrize("tall", [1.0, 1.4])
@pytest.mark.parametrize(("normal", "away"), [(FLOOR, 1.5), (WALL, 3.0)])
@pytest.mark.parametrize(
    "turn", [(0.2, 0.0, 0.0, (0.3, 0.0, 0.6)), (-0.3, 0.1, 0.15, (-0.4, 0.2, 0.2))], ids=["yaw", "all"]
)
def test_a_plane_is_read_where_it_was_seen(normal: Tensor, away: float, turn: tuple, tall: float) -> None:
    first, view = turned(0.0, 0.0, 0.0, (0.0, 0.0, 0.0), tall), turned(*turn, tall)
    depth = where_rays_meet(first, normal, away)[0][None]
    found, shown, _ = seen_from(first, view, depth, torch.zeros_like(depth, dtype=torch.bool))
    truth = where_rays_meet(view.resized((16, 24)), normal, away)[1] @ first.resized((16, 24)).intrinsics_px[0].T
    wrong = (found - (truth[..., :2] / truth[..., 2:]).permute(2, 0, 1)).abs().amax(0)[shown]
    assert len(wrong) > 60
    assert float(wrong.median()) < 0.02 and float(wrong.quantile(0.9)) < 0.1


@pytest.mark.parametrize(("yaw", "pitch"), [(0.6, 0.3), (-0.3, 0.0), (0.0, -0.5)])
def test_the_sky_is_read_where_it_was_seen(yaw: float, pitch: float) -> None:
    """However oblique the direction, whose patch is the smaller the farther from the middle of the picture."""
    first, view = turned(0.0, 0.0, 0.0, (0.0, 0.0, 0.0)), turned(yaw, pitch, 0.0, (0.0, 0.0, 0.0))
    depth = torch.ones(1, *first.size)
    found, shown, _ = seen_from(first, view, depth, torch.ones_like(depth, dtype=torch.bool))
    rays = camera_rays(view.resized((16, 24)))[0] @ view.world_from_camera[0, :3, :3].T
    truth = rays @ first.resized((16, 24)).intrinsics_px[0].T
    wrong = (found - (truth[..., :2] / truth[..., 2:]).permute(2, 0, 1)).abs().amax(0)[shown]
    assert len(wrong) > 150
    assert float(wrong.median()) < 0.01 and float(wrong.quantile(0.9)) < 0.03


def test_patches_seen_from_behind_or_from_close_by_stay_patches() -> None:
    first, behind = turned(0.0, 0.0, 0.0, (0.0, 0.0, 0.0)), turned(math.pi, 0.0, 0.0, (0.0, 0.0, 6.0))
    close = turned(0.0, 0.0, 0.0, (-0.1, -0.1, 2.98))
    depth = where_rays_meet(first, torch.tensor([0.3, 0.0, 0.95]), 3.0)[0][None]
    for view in (behind, close):
        _, shown, shape = seen_from(first, view, depth, torch.zeros_like(depth, dtype=torch.bool))
        det = inverse(shape)[1][0]
        assert bool(shown.any()) and bool((det > 0).all()) and bool(shape.isfinite().all())
        assert 2.0 < float(shape.abs().max()) < 2 * LARGEST or view is behind


def test_patches_without_a_slant_face_the_camera() -> None:
    """The sky, and cells that straddle an edge: steps of one patch along the camera's own axes."""
    view = turned(0.4, 0.0, 0.0, (0.0, 0.0, 0.0))
    depth = torch.full((1, *view.size), 4.0)
    depth[..., 100:] = 8.0  # inside a cell
    sky = torch.zeros(1, *view.size, dtype=torch.bool)
    sky[:, :8] = True
    seen = ChunkRecord(torch.zeros(1, 1, 16, 24), depth, sky, torch.zeros_like(sky), view)
    steps = tangents(seen).unflatten(1, (2, 3))
    right, down = view.world_from_camera[0, :3, 0], view.world_from_camera[0, :3, 1]
    for row, column in ((0, 3), (5, 12), (9, 2)):
        torch.testing.assert_close(steps[0, :, :, row, column], torch.stack([right, down]))


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
    memory, seen = learned(), record(at((0.0, 0.0)))
    for changed, sentence in (
        ({"latents": torch.zeros(1, 3, *GRID)}, "holds tokens of 5 channels, got latents of 3"),
        ({"depth_m": seen.depth_m.double()}, "depth and cameras must be float32"),
        ({"depth_m": seen.depth_m.repeat(2, 1, 1)}, "1 latent frames need as many depth maps"),
        ({"cameras": replace(seen.cameras, intrinsics_px=math.nan * seen.cameras.intrinsics_px)}, "camera 0 has"),
    ):
        with pytest.raises(InvalidValueError, match=sentence):
            memory.write(memory.empty(C), replace(seen, **changed))
    former = LatentMemory(CONFIG).empty(AROUND * C)
    for use in (lambda: memory.read(former, at((0.0, 0.0))), lambda: memory.write(former, seen)):
        with pytest.raises(
            InvalidValueError, match=r"carry 51 numbers, got a state whose points carry 45: .* begin anew"
        ):
            use()
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
