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
    edges = "reject" if rule == "novel" else "keep"
    memory = LatentMemory(MemoryConfig(write_rule=rule, max_points=budget, depth_edges=edges))  # type: ignore[arg-type]
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
            MemoryState.of(*state)
    else:
        check(MemoryState.of(*state), LatentMemory(), at((0.0, 0.0, 0.0)).resized(GRID))


def test_a_camera_inside_a_point() -> None:
    """It does not see that one, nor does it trip over it."""
    state = MemoryState.of(torch.tensor([[0.0, 0, 0], [0, 0, 2]]), torch.ones(2, 2), torch.ones(2), torch.arange(2), 2)
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


@settings(max_examples=30, deadline=None)
@given(
    views=st.integers(0, 3),
    writes=st.integers(0, 3),
    frames=st.integers(0, 2),
    rule=st.sampled_from(["paper", "novel"]),
    share=st.sampled_from([0.0, 0.02, 0.5]),
    sky=st.sampled_from([0, 5]),
    inside=st.booleans(),
)
def test_any_numbers_of_views_points_and_frames(
    views: int, writes: int, frames: int, rule: str, share: float, sky: int, inside: bool
) -> None:
    """None of either, too, and cameras that stand in a point."""
    memory = LatentMemory(MemoryConfig(write_rule=rule, same_surface=share, sky_points=sky))  # type: ignore[arg-type]
    state = memory.empty(2)
    for step in range(writes):
        told = record(at(*[(0.1 * step, 0.0, 0.0)] * frames), 2.0)
        told.sky[:, :4] = True
        state = memory.write(state, told)
    assert (len(state) > 0) == (writes > 0 and frames > 0)
    places = state.points[:1].tolist() * views if inside and len(state) else [(0.0, 0.0, 0.0)] * views
    cameras = at(*map(tuple, places)).resized(GRID)
    shown = memory.read(state, cameras).grid
    assert shown is not None and shown.tokens.shape == (views, 2, *GRID)
    if views:
        assert len(state) or not bool(shown.visible.any())
        assert bool((shown.depth_m[shown.visible] > 0).all())


@given(st.integers(-(2**40), 0))
def test_a_budget_of_nothing(budget: int) -> None:
    with pytest.raises(InvalidValueError, match=f"max_points must be at least 1, got {budget}; use null for no budget"):
        MemoryConfig(max_points=budget)


OTHER_KINDS = st.sampled_from([torch.float16, torch.bfloat16, torch.float64])
GEOMETRY = st.sampled_from(["depth_m", "world_from_camera", "intrinsics_px"])


def changed(told: ChunkRecord, name: str, to: str | torch.dtype) -> ChunkRecord:
    if name in ("world_from_camera", "intrinsics_px"):
        return replace(told, cameras=replace(told.cameras, **{name: getattr(told.cameras, name).to(to)}))
    return replace(told, **{name: getattr(told, name).to(to)})


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=30, deadline=None)
@given(GEOMETRY, OTHER_KINDS, st.booleans())
def test_mixed_dtypes(name: str, kind: torch.dtype, empty: bool) -> None:
    memory, good = LatentMemory(), record(at((0.0, 0.0, 0.0)))
    state = memory.empty(2) if empty else memory.write(memory.empty(2), good)
    bad = changed(good, name, kind)
    names = sorted({"float32", str(kind).removeprefix("torch.")})
    with pytest.raises(InvalidValueError, match=rf"must be float32, got \{names}; call \.float\(\)"):
        memory.write(state, bad)
    if name != "depth_m":
        with pytest.raises(InvalidValueError, match=rf"must be float32, got \{names}; call \.float\(\)"):
            memory.read(state, bad.cameras.resized(GRID))


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=30, deadline=None)
@given(GEOMETRY | st.sampled_from(["latents", "sky", "dynamic"]), st.booleans())
def test_mixed_devices(name: str, empty: bool) -> None:
    memory, good = LatentMemory(), record(at((0.0, 0.0, 0.0)))
    state = memory.empty(2) if empty else memory.write(memory.empty(2), good)
    bad = changed(good, name, "meta")
    with pytest.raises(InvalidValueError, match=r"must share a device, got \['cpu', 'meta'\]"):
        memory.write(state, bad)
    if name in ("world_from_camera", "intrinsics_px"):
        with pytest.raises(InvalidValueError, match=r"must share a device, got \['cpu', 'meta'\]"):
            memory.read(state, bad.cameras.resized(GRID))


# On disk


def test_a_saved_memory_comes_back(tmp_path: Path) -> None:
    memory = LatentMemory(MemoryConfig(token_dtype="float16"))
    state = memory.write(memory.empty(2), record(at((0.0, 0.0, 0.0))))
    save_memory(tmp_path / "m.safetensors", memory, state, "codec-a")
    again = load_memory(tmp_path / "m.safetensors", memory, "codec-a")
    for name, leaf in state.tensors().items():
        assert torch.equal(leaf, again.tensors()[name]) and leaf.dtype == again.tensors()[name].dtype
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@settings(max_examples=20, deadline=None)
@given(st.text("abc/.-", max_size=70), st.text("abc/.-", max_size=70))
def test_a_memory_of_another_codec_names_both(tmp_path_factory, one: str, other: str) -> None:
    path, memory = tmp_path_factory.mktemp("codecs") / "m", LatentMemory()
    save_memory(path, memory, memory.empty(2), one)
    if one == other:
        assert len(load_memory(path, memory, other)) == 0
        return
    with pytest.raises(WeightsError) as refused:
        load_memory(path, memory, other)
    assert f"was written with the codec {one}, but the codec in use is {other};" in str(refused.value)


def test_another_kind_of_memory_is_told(tmp_path: Path) -> None:
    memory = LatentMemory()
    save_memory(tmp_path / "m", memory, memory.empty(2), "codec-a")
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


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("points", torch.zeros(1, 2), r"points \(N, 3\) and tokens \(N, C\), got \(1, 2\)"),
        ("points", torch.zeros(1, 3, dtype=torch.int32), "memory points must be torch.float32 .* got torch.int32"),
        ("ids", torch.zeros(1, 1, dtype=torch.int64), r"memory ids must be torch.int64 of 1 .* shape \(1, 1\)"),
        ("tokens", torch.zeros(2, 2), "one row of tokens a point, got 2 for 1"),
        ("next_id", torch.tensor([7, 8]), '"next_id" of a MemoryState must be one whole number'),
        ("next_id", torch.tensor(1.5), '"next_id" of a MemoryState must be one whole number'),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_file_with_wrong_contents_is_refused(tmp_path: Path, name: str, value: torch.Tensor, why: str) -> None:
    from safetensors.torch import save_file

    memory = LatentMemory()
    good = MemoryState.of(torch.ones(1, 3), torch.ones(1, 2), torch.ones(1), torch.zeros(1, dtype=torch.int64), 1)
    about = {"mirage_memory": '{"format": 1, "memory": "latent", "codec": "a"}'}
    save_file(good.tensors() | {name: value}, tmp_path / "m", about)
    with pytest.raises(WeightsError, match=f"m is damaged: .*{why}"):
        load_memory(tmp_path / "m", memory, "a")


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
