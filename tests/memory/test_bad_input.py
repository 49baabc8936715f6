"""Whatever comes in: a memory either refuses it in one sentence or stays a memory."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirage_env.errors import InvalidValueError, MirageError, OutputError, WeightsError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.memory import ChunkRecord, LatentMemory, MemoryConfig, MemoryState
from mirage_env.memory.none import NoMemory
from mirage_env.memory.saved import load_memory, save_memory
from mirage_env.types import Cameras

PIXELS, GRID = (8, 12), (2, 3)
ODD = st.sampled_from([0.0, -0.0, -1.0, 1e-30, 1e-6, 1.0, 7.5, 1e6, 2e6, 3e38, math.inf, -math.inf, math.nan])


def at(*places: tuple[float, float, float]) -> Cameras:
    poses = torch.eye(4).repeat(len(places), 1, 1)
    if places:
        poses[:, :3, 3] = torch.tensor(places)
    return Cameras(poses, intrinsics_from_fov(math.pi / 2, PIXELS).repeat(len(places), 1, 1), PIXELS)


def record(cameras: Cameras, depth: torch.Tensor | float = 2.0) -> ChunkRecord:
    frames = len(cameras)
    depth_m = depth if isinstance(depth, torch.Tensor) else torch.full((frames, *PIXELS), depth)
    nothing = torch.zeros(frames, *PIXELS, dtype=torch.bool)
    return ChunkRecord(torch.randn(frames, 2, *GRID), depth_m, nothing, nothing, cameras)


def check(state: MemoryState, memory: LatentMemory, cameras: Cameras) -> None:
    """The promises of a state and of its readout."""
    assert bool(torch.isfinite(state.points).all())
    assert bool((state.footprint_m > 0).all())
    assert bool((state.ids[1:] > state.ids[:-1]).all())
    assert memory.config.max_points is None or len(state) <= memory.config.max_points
    shown = memory.read(state, cameras).grid
    assert shown is not None
    assert bool((shown.depth_m[shown.visible] > 0).all()) and bool(torch.isfinite(shown.depth_m).all())
    assert float(shown.offset.abs().max() if shown.offset.numel() else 0.0) <= 0.5
    assert torch.equal(shown.tokens[0, :, ~shown.visible[0]], torch.zeros(2, int((~shown.visible[0]).sum())))
    hit = shown.index[shown.visible]
    assert torch.equal(shown.tokens.movedim(1, 3)[shown.visible], state.tokens[hit].float())


@settings(max_examples=80, deadline=None)
@given(
    depths=st.lists(ODD, min_size=6, max_size=6) | st.lists(ODD.filter(math.isfinite), min_size=6, max_size=6),
    places=st.lists(st.tuples(ODD, ODD, ODD), min_size=1, max_size=3),
    rule=st.sampled_from(["paper", "novel"]),
    budget=st.sampled_from([None, 1, 5, 1000]),
)
def test_any_depth_and_any_pose(depths: list[float], places: list, rule: str, budget: int | None) -> None:
    memory = LatentMemory(MemoryConfig(write_rule=rule, max_points=budget, reject_depth_edges=rule == "novel"))  # type: ignore[arg-type]
    cells = torch.tensor(depths).view(1, *GRID).repeat_interleave(4, 1).repeat_interleave(4, 2)
    state, cameras = memory.empty(2), at(*places)
    impossible = [n for n, place in enumerate(places) if not all(abs(x) <= 1e6 for x in place)]
    if impossible:
        with pytest.raises(InvalidValueError, match=f"camera {impossible[0]} |camera {_first_not_finite(places)} "):
            memory.write(state, record(cameras, cells.repeat(len(places), 1, 1)))
        return
    nonsense = [n for n, depth in enumerate(depths) if not math.isfinite(depth)]
    if nonsense:
        row, column = (4 * x for x in divmod(nonsense[0], GRID[1]))
        with pytest.raises(InvalidValueError, match=f"depth map 0 is not finite at row {row}, column {column};"):
            memory.write(state, record(cameras, cells.repeat(len(places), 1, 1)))
        return
    for _ in range(2):
        state = memory.write(state, record(cameras, cells.repeat(len(places), 1, 1)))
        check(state, memory, cameras.resized(GRID)[:1])
    assert len(state) <= 2 * len(places) * sum(d > 0 for d in depths)


def _first_not_finite(places: list) -> int:
    """What is not finite is looked for before what is too far."""
    return next((n for n, place in enumerate(places) if not all(map(math.isfinite, place))), -1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ODD, ODD, ODD), min_size=1, max_size=6))
def test_any_points(points: list) -> None:
    bad = [n for n, point in enumerate(points) if not all(map(math.isfinite, point))]
    count = len(points)
    state = (torch.tensor(points), torch.randn(count, 2), torch.ones(count), torch.arange(count), count)
    if bad:
        with pytest.raises(InvalidValueError, match=f"memory point {bad[0]} is not finite"):
            MemoryState(*state)
    else:
        check(MemoryState(*state), LatentMemory(), at((0.0, 0.0, 0.0)).resized(GRID))


def test_a_camera_inside_a_point() -> None:
    """It does not see that one, nor does it trip over it."""
    state = MemoryState(torch.tensor([[0.0, 0, 0], [0, 0, 2]]), torch.ones(2, 2), torch.ones(2), torch.arange(2), 2)
    memory = LatentMemory()
    shown = memory.read(state, at((0.0, 0.0, 0.0)).resized((3, 3))).grid
    assert shown is not None and shown.index[shown.visible].tolist() == [1]
    assert len(memory.write(state, record(at((0.0, 0.0, 0.0))))) >= 2


def test_a_million_metres_away() -> None:
    memory, far = LatentMemory(), at((1e6, 0.0, -1e6))
    state = memory.write(memory.empty(2), record(far))
    check(state, memory, far.resized(GRID))
    with pytest.raises(InvalidValueError, match=r"camera 0 is farther than 1e\+06 m from the origin"):
        memory.read(state, at((1.1e6, 0.0, 0.0)).resized(GRID))


def test_no_views_and_no_frames() -> None:
    memory = LatentMemory()
    state = memory.write(memory.empty(2), record(at((0.0, 0.0, 0.0))))
    shown = memory.read(state, at().resized(GRID)).grid
    assert shown is not None and shown.tokens.shape == (0, 2, *GRID)
    assert memory.write(state, record(at())) is state


def test_a_budget_of_nothing() -> None:
    with pytest.raises(InvalidValueError, match="max_points must be at least 1, got 0; use null for no budget"):
        MemoryConfig(max_points=0)


@pytest.mark.usefixtures("unchecked")
def test_mixed_devices_and_dtypes() -> None:
    memory, good = LatentMemory(), record(at((0.0, 0.0, 0.0)))
    with pytest.raises(InvalidValueError, match=r"must share a device, got \['cpu', 'meta'\]"):
        memory.write(memory.empty(2), replace(good, depth_m=good.depth_m.to("meta")))
    with pytest.raises(InvalidValueError, match=r"must be float32, got \['float32', 'float64'\]; call \.float\(\)"):
        memory.write(memory.empty(2), replace(good, depth_m=good.depth_m.double()))


# On disk


def test_a_saved_memory_comes_back(tmp_path: Path) -> None:
    memory = LatentMemory(MemoryConfig(token_dtype="float16"))
    state = memory.write(memory.empty(2), record(at((0.0, 0.0, 0.0))))
    save_memory(tmp_path / "m.safetensors", memory, state, "codec-a")
    again = load_memory(tmp_path / "m.safetensors", memory, "codec-a")
    for name, leaf in state.tensors().items():
        assert torch.equal(leaf, again.tensors()[name]) and leaf.dtype == again.tensors()[name].dtype
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_memory_of_another_codec_names_both(tmp_path: Path) -> None:
    memory = LatentMemory()
    save_memory(tmp_path / "m", memory, memory.empty(2), "codec-a")
    with pytest.raises(WeightsError, match="was written with the codec codec-a, but the codec in use is codec-b"):
        load_memory(tmp_path / "m", memory, "codec-b")
    with pytest.raises(WeightsError, match='holds a "latent" memory, but this world\'s is "none"'):
        load_memory(tmp_path / "m", NoMemory(), "codec-a")


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 1.0, exclude_max=True), st.booleans(), st.integers(0, 255))
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path_factory, share: float, cut: bool, byte: int) -> None:
    """Cut anywhere it is refused; with one byte changed it is refused, or is a memory still."""
    folder = tmp_path_factory.mktemp("damaged")
    memory = LatentMemory()
    state = memory.write(memory.empty(2), record(at((0.0, 0.0, 0.0))))
    save_memory(folder / "m", memory, state, "codec-a")
    whole = (folder / "m").read_bytes()
    place = int(share * len(whole))
    (folder / "m").write_bytes(whole[:place] if cut else whole[:place] + bytes([byte]) + whole[place + 1 :])
    if cut:
        with pytest.raises(WeightsError, match=r"damaged|no memory that this version wrote"):
            load_memory(folder / "m", memory, "codec-a")
        return
    try:
        assert isinstance(load_memory(folder / "m", memory, "codec-a"), MemoryState)
    except MirageError as error:
        assert "\n" not in str(error)


def test_no_file_a_foreign_file_and_nowhere_to_write(tmp_path: Path) -> None:
    memory = LatentMemory()
    with pytest.raises(WeightsError, match="no saved memory at"):
        load_memory(tmp_path / "m", memory, "a")
    from safetensors.torch import save_file

    save_file({"points": torch.zeros(1, 3)}, tmp_path / "other")
    with pytest.raises(WeightsError, match="holds no memory that this version wrote"):
        load_memory(tmp_path / "other", memory, "a")
    with pytest.raises(OutputError, match="cannot write the memory to"):
        save_memory(tmp_path / "missing" / "m", memory, memory.empty(2), "a")
