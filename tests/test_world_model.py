"""The chunk, end to end, on small random networks: mechanics, not pictures."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from mirage_env.codec.tiny import TinyDecoder, TinyDecoderConfig
from mirage_env.codec.wan import CodecConfig, WanCodec, to_uint8
from mirage_env.denoise.denoiser import Denoiser, DenoiserConfig
from mirage_env.denoise.sampler import SamplerConfig
from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.memory import ChunkRecord, LatentMemory, MemoryConfig
from mirage_env.memory.none import NoMemory
from mirage_env.memory.resampled import ResampledMemory, ResampledMemoryConfig
from mirage_env.perception.drawn import DepthDrawer, DrawerConfig, to_draw
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception
from mirage_env.types import Cameras, SceneSpec
from mirage_env.world_model import Preset, WorldModel, generate, resolve_device

SIZE = (32, 48)
CODEC = CodecConfig(channels=6, base_dim=8, decoder_base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, is_residual=True)


def build(codec: CodecConfig = CODEC, **changes) -> WorldModel:
    torch.manual_seed(1)
    shape = DenoiserConfig(
        channels=6, heads=2, head_dim=24, ffn_dim=48, layers=2, memory_layers=(0,), text_dim=8, patch_size=2
    )
    preset = Preset(
        codec, PerceptionConfig(widths=(8, 16), blocks=1), MemoryConfig(), shape, SamplerConfig(steps=2), **changes
    )
    denoiser, perception = Denoiser(preset.denoiser), TinyPerception(preset.perception)
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight, std=0.05)
    tiny = None
    if preset.tiny_decoder is not None:
        tiny = TinyDecoder(preset.tiny_decoder, codec.channels, codec.spatial_stride)
    return WorldModel(preset, WanCodec(codec), perception, denoiser, SIZE, tiny_decoder=tiny)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return build()


def scene(seed: int = 0) -> SceneSpec:
    image = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    return SceneSpec(torch.eye(4), intrinsics_from_fov(1.2, SIZE), 1.2, image)


def path(count: int, start: int = 1) -> Cameras:
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 2, 3] = 0.1 * torch.arange(start, start + count)
    return Cameras(poses, intrinsics_from_fov(1.2, SIZE).expand(count, 3, 3), SIZE)


def reading_between(**changes) -> WorldModel:
    """A model whose memory reads with weights of its own."""
    model = build(keyframe_stride=2, keyframes_first=True, **changes)
    memory = ResampledMemory(ResampledMemoryConfig(channels=6, maps=2, hidden=8, width=8, blocks=1))
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.with_memory(memory)


def test_frames_that_are_known_well_enough_get_no_transformer() -> None:
    """A wall that the camera walks up to is known all over: frames between keyframes show what the memory reads."""
    wall = np.full(SIZE, 2.0, np.float32)
    pictures = {}
    for enough, expected in ((None, [3, 2]), (0.9, [3])):
        model = reading_between(known_enough=enough)
        denoise, asked = model.parts["denoise"], []

        def watched(noise, condition, denoise=denoise, asked=asked):
            asked.append(noise.shape[1])
            return denoise(noise, condition)

        frames, _ = model.with_parts(denoise=watched).advance(
            model.begin(replace(scene(), depth_m=wall), 0)[1], path(5, start=2)
        )
        assert asked == expected and bool(frames.remembered.all())
        pictures[enough] = frames.rgb
    assert (pictures[None].int() - pictures[0.9].int()).abs().max() <= 1  # all cells are the memory's either way
    plain, asked = build(keyframe_stride=2, keyframes_first=True, known_enough=0.1), []
    plain.with_parts(refine=lambda *inputs: asked.append(inputs)).advance(plain.begin(scene(), 0)[1], path(5))
    assert not asked  # a memory that knows nothing for certain
    with pytest.raises(InvalidValueError, match=r"known_enough is a share above 0 and at most 1, got 1\.5"):
        build(known_enough=1.5)


@pytest.mark.parametrize("exact", [True, False])
def test_what_a_memory_reads_between_its_points_is_remembered_in_company_as_alone(exact: bool) -> None:
    model, wall = reading_between(), np.full(SIZE, 2.0, np.float32)
    memory = model.memory
    states = [model.begin(replace(scene(seed), depth_m=wall), seed)[1] for seed in (0, 1)]
    cameras = [path(5, start=8), path(5, start=6)]  # so near that there are cells without a point
    for state, views, (frames, _) in zip(states, cameras, model.advance_many(states, cameras, exact), strict=True):
        alone, _ = model.advance(state, views)
        assert (alone.rgb.int() - frames.rgb.int()).abs().max() <= (0 if exact else 1)
        assert torch.equal(alone.remembered, frames.remembered)
        reading = memory.read(state.memory, views.resized((4, 6)))
        shown, settled = reading.grid.visible, reading.settled(slice(None)).visible
        draft = model.draft(state, views)
        assert torch.equal(draft.remembered, settled) and int(settled.sum()) > int(shown.sum())
        assert bool(alone.remembered[settled].all())


def turned_around(count: int) -> Cameras:
    """One place, and nothing in sight that the first picture shows."""
    behind = path(count).world_from_camera.clone()
    behind[:, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 0.0]))[:3]
    return replace(path(count), world_from_camera=behind)


def same(a, b) -> bool:
    return torch.equal(a.rgb, b.rgb) and torch.equal(a.depth_m, b.depth_m) and torch.equal(a.remembered, b.remembered)


def test_a_world_begins_with_its_picture_and_remembers_it(model):
    frames, state = model.begin(scene(), seed=3)
    assert np.array_equal(frames.rgb[0].numpy(), scene().image)
    assert len(state.memory) > 0 and state.frame == 0 and bool(frames.remembered.all())
    assert frames.depth_m.shape == (1, *SIZE) and bool(torch.isfinite(frames.depth_m).all())


def test_somebodys_own_depth_of_the_picture_is_what_is_remembered(model):
    depth_m = np.full(SIZE, 3.0, np.float32)
    depth_m[:, : SIZE[1] // 2] = 0.0  # they do not know the left half
    frames, state = model.begin(replace(scene(), depth_m=depth_m), seed=3)
    known = torch.from_numpy(depth_m > 0)
    assert bool((frames.depth_m[0][known] == 3.0).all()) and bool(frames.depth_m[0][~known].isnan().all())
    points = state.memory.points
    torch.testing.assert_close(points[:, 2], torch.full((len(points),), 3.0))
    assert 0 < len(points) <= 4 * 3 and bool((points[:, 0] > 0).all())
    with pytest.raises(InvalidValueError, match="nowhere positive"):
        model.begin(replace(scene(), depth_m=np.zeros(SIZE, np.float32)), seed=3)


def test_chunks_follow_each_other(model):
    _, state = model.begin(scene(), seed=3)
    points = len(state.memory)
    for start in (1, 5, 9):
        frames, state = model.advance(state, path(4, start))
        assert frames.rgb.shape == (4, *SIZE, 3) and frames.remembered.shape == (4, 4, 6)
        assert torch.equal(frames.cameras.world_from_camera, path(4, start).world_from_camera)
    assert state.frame == 12 and len(state.memory) >= points
    assert state.history.latents.shape == (3, 6, 4, 6) and len(state.keyframes) == 4
    assert model.stats(state)["memory_bytes"] == state.memory.nbytes


def test_the_state_is_a_value(model):
    """The same state continues to the same frames as often as one likes, and other paths leave it as it was."""
    _, state = model.begin(scene(), seed=3)
    first, _ = model.advance(state, path(2))
    other, after = model.advance(state, path(2, start=4))
    model.advance(after, path(1, start=6))
    again, _ = model.advance(state, path(2))
    assert same(first, again) and not same(first, other)


def test_the_seed_decides_the_noise(model):
    frames = [model.advance(model.begin(scene(), seed)[1], path(2))[0] for seed in (3, 3, 4)]
    assert same(frames[0], frames[1]) and not same(frames[0], frames[2])


def test_the_given_picture_and_the_last_keyframes_stay_at_hand():
    model = build(keyframe_stride=1, max_keyframes=3)
    _, begun = model.begin(scene(), seed=0)
    _, state = model.advance(begun, path(4))
    _, state = model.advance(state, path(4, 5))
    assert len(state.keyframes) == 3 and torch.equal(state.keyframes[0].latents, begun.keyframes[0].latents)
    for keyframe, at in zip(state.keyframes[1:], (7, 8), strict=True):
        torch.testing.assert_close(keyframe.cameras.world_from_camera[0], path(1, at).world_from_camera[0])
    with pytest.raises(InvalidValueError, match=r"max_keyframes at least 2.* got 4 and 1"):
        build(max_keyframes=1)


def test_a_codec_with_temporal_stride_makes_several_frames_a_latent():
    codec = CodecConfig(channels=6, base_dim=8, decoder_base_dim=8, temporal_downsample=(True, True), num_res_blocks=1)
    model = build(codec)
    _, state = model.begin(scene(), seed=0)
    frames, state = model.advance(state, path(8))
    assert len(frames) == 8 and state.frame == 2
    torch.testing.assert_close(state.history.cameras.world_from_camera[-1], path(1, 8).world_from_camera[0])
    with pytest.raises(InvalidValueError, match="positive multiple of 4 cameras, got 6"):
        model.advance(state, path(6))


def test_a_draft_of_the_first_view_is_the_codec_of_the_picture(model):
    frames, state = model.begin(scene(), seed=0)
    draft = model.draft(state, frames.cameras)
    assert draft.rgb.shape == frames.rgb.shape
    seen = draft.remembered.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert bool(seen.any()) and bool((draft.depth_m[seen] > 0).all())


def test_bad_scenes_and_paths_are_told(model):
    _, state = model.begin(scene(), seed=0)
    with pytest.raises(InvalidValueError, match="begins with a picture, got none; pass image="):
        model.begin(replace(scene(), image=None), seed=0)
    with pytest.raises(InvalidValueError, match=r"must be 32 x 48 x 3, got \(16, 16, 3\)"):
        model.begin(replace(scene(), image=np.zeros((16, 16, 3), np.uint8)), seed=0)
    with pytest.raises(InvalidValueError, match="positive multiple of 1 cameras, got 0"):
        model.advance(state, path(0))
    bent = path(2)
    bent.world_from_camera[1, 0, 3] = float("nan")
    with pytest.raises(InvalidValueError, match="camera 1 has a pose or intrinsics that are not finite"):
        model.advance(state, bent)


def test_size_that_the_patches_do_not_divide_names_the_nearest(model):
    parts = (model.preset, model.codec, model.perception, model.denoiser)
    with pytest.raises(InvalidValueError, match=r"multiple of 16 pixels a side, got 24 x 48; .* is 32 x 48"):
        WorldModel(*parts, size=(24, 48))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (64, 0)}, "size must be two whole numbers"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"fov_deg": 0.5}, "fov_deg must be a number above 1 and at most 170"),
        ({"camera_height_m": float("nan")}, "camera_height_m must be a number above 0.05"),
        ({"device": "gpu"}, 'device must be auto, cpu or an available cuda, got "gpu"'),
    ],
)
def test_generate_tells_bad_arguments_before_any_work(changes, message):
    with pytest.raises(InvalidValueError, match=message):
        generate("room", np.eye(4)[None], **changes)


def test_cuda_in_a_forked_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert resolve_device("cpu").type == "cpu"
    for device in ("auto", "cuda"):
        with pytest.raises(InvalidValueError, match=r'CUDA does not work in a forked process; .*context="spawn"'):
            resolve_device(device)


def assert_equal(one: object, other: object) -> None:
    """Bit for bit, through dataclasses and tuples."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(-7.0), other.nan_to_num(-7.0))
    elif is_dataclass(one):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("exact", [True, False])
def test_worlds_with_different_pasts_advance_together_as_alone(exact: bool) -> None:
    model = build(max_keyframes=3)
    scenes, seeds = [scene(seed) for seed in (0, 0, 1, 2, 3)], [5, 6, 5, 5, 5]
    begun = [model.begin(*one) for one in zip(scenes, seeds, strict=True)]
    for one, other in zip(begun, model.begin_many(scenes, seeds, exact), strict=True):
        assert_equal(one[0].rgb, other[0].rgb)
        if exact:
            assert_equal(one, other)
    states = [state for _, state in begun]
    for counts in ([1, 1, 1, 1, 1], [2, 1, 2, 2, 3], [2, 2, 2, 2, 2]):
        cameras = [path(count, start=states[i].frame + i) for i, count in enumerate(counts)]
        alone = [model.advance(*one) for one in zip(states, cameras, strict=True)]
        for _ in range(2):  # the first time both ways are compared, the second time the answer is known
            together = model.advance_many(states, cameras, exact)
            for (frames, state), (many_frames, many_state) in zip(alone, together, strict=True):
                torch.testing.assert_close(many_frames.depth_m, frames.depth_m, rtol=0.05, atol=0.01)
                if exact:
                    assert_equal((frames.rgb, frames.depth_m), (many_frames.rgb, many_frames.depth_m))
                    assert_equal(state, many_state)
        states = [state for _, state in alone]
        drafts = model.draft_many(states, cameras, exact)
        for state, camera, draft in zip(states, cameras, drafts, strict=True):
            assert_equal(model.draft(state, camera).rgb, draft.rgb)


def test_a_network_that_depends_on_its_company_is_asked_world_by_world(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = build(), build()
    asked: list[int] = []
    encode = model.codec.encode

    def spoilt(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return encode(images) + (len(images) - 1)

    monkeypatch.setattr(model.codec, "encode", spoilt)
    for seeds, expected in (((0, 1, 2), [1, 1, 1, 3]), ((3, 4, 5), [1, 1, 1])):
        scenes = [scene(seed) for seed in seeds]
        for one, many in zip(scenes, model.begin_many(scenes, seeds), strict=True):
            assert_equal(other.begin(one, many[1].seed), many)
        assert asked == expected
        asked.clear()
    assert len(model.begin_many([scene(s) for s in (6, 7, 8)], [0] * 3, exact=False)) == 3 and asked == [3]


def test_one_bad_path_among_many_changes_nothing() -> None:
    model = build()
    state = model.begin(scene(), 0)[1]
    with pytest.raises(InvalidValueError, match="positive multiple of 1 cameras, got 0"):
        model.advance_many([state, state], [path(1), path(0)])


def test_a_scene_that_was_begun_before_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    encode, encoded = model.codec.encode, []
    monkeypatch.setattr(model.codec, "encode", lambda images: encoded.append(len(images)) or encode(images))
    first = model.begin_many([scene(0), scene(0), scene(1)], [1, 2, 3])
    assert sum(encoded) == 4  # two scenes: each alone and both together, to compare
    assert [state.seed for _, state in first] == [1, 2, 3]
    assert_equal(model.begin(scene(0), 2), first[1])
    assert sum(encoded) == 4
    for changed in (
        {"camera_height_m": 1.0},
        {"world_from_camera": path(1).world_from_camera[0]},
        {"intrinsics_px": intrinsics_from_fov(1.0, SIZE)},
        {"depth_m": np.full(SIZE, 2.0, np.float32)},
    ):
        before = len(encoded)
        model.begin(replace(scene(0), **changed), 0)
        assert len(encoded) == before + 1


def test_a_model_with_other_eyes_does_not_begin_with_what_the_first_one_saw() -> None:
    model = build()
    seen = model.begin(scene(), 0)[0].depth_m

    def farther(*inputs):
        perceived = model.perception(*inputs)
        return replace(perceived, depth_m=2 * perceived.depth_m)

    torch.testing.assert_close(model.with_parts(see=farther).begin(scene(), 0)[0].depth_m, 2 * seen)


def doubtful(model: WorldModel, doubt: float = 0.4):
    """What the model's eyes see, and that they may be wrong."""

    def see(*inputs):
        perceived = model.perception(*inputs)
        return replace(perceived, doubt=torch.full_like(perceived.depth_m, doubt))

    return see


def that_draws(model: WorldModel) -> WorldModel:
    """The model with a drawer of random weights."""
    torch.manual_seed(0)
    model = model.with_parts()
    model.drawer = DepthDrawer(DrawerConfig(width=8, blocks=1)).eval()
    torch.nn.init.normal_(model.drawer.head.weight)
    model.parts["draw"] = model.drawer
    return model


def test_what_was_drawn_is_a_surface_for_whoever_looks_on() -> None:
    """Where the eyes saw the sky, or something that moves."""
    model = build()

    def see(*inputs):
        perceived = doubtful(model)(*inputs)
        return replace(perceived, sky=torch.ones_like(perceived.sky), dynamic=torch.ones_like(perceived.dynamic))

    blind = model.with_parts(see=see)
    for one, surface in ((blind, False), (that_draws(blind), True)):
        frames, _ = one.advance(one.begin(scene(), 0)[1], path(1))
        assert not frames.remembered.any()
        assert frames.sky.eq(not surface).all() and frames.dynamic.eq(not surface).all()


def test_what_nobody_has_seen_is_as_deep_as_the_seed_says() -> None:
    model = build()

    def depths(model: WorldModel, seed: int) -> torch.Tensor:
        _, state = model.begin(scene(), seed)
        aside = path(1).world_from_camera.clone()
        aside[0, :3, :3] = torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]])
        frames, _ = model.advance(state, replace(path(1), world_from_camera=aside))
        depth, cells = frames.depth_m[0], to_draw(frames.remembered)[0]
        means = depth.unflatten(0, (cells.shape[0], -1)).unflatten(2, (cells.shape[1], -1)).mean((1, 3))
        return torch.where(cells, means, torch.nan)

    sure = model.with_parts(denoise=lambda *inputs: inputs[1].base, see=doubtful(model))
    drawing = that_draws(sure)
    expected, one, other = depths(sure, 0), depths(drawing, 1), depths(drawing, 2)
    unseen = expected.isfinite()
    assert unseen.any() and torch.equal(one[unseen], depths(drawing, 1)[unseen])
    for drawn_depth in (one, other):
        assert ((drawn_depth / expected).log().abs()[unseen] > 0.01).float().mean() > 0.5
    assert not torch.allclose(one[unseen], other[unseen])


def test_eyes_that_doubt_leave_it_to_the_memory_how_deep_a_remembered_place_is() -> None:
    """What was far is seen near: unsure eyes are overruled, sure ones have found something new."""

    def seen_again(doubt: float) -> torch.Tensor:
        model = build(anchor=0.6)
        first, state = model.begin(scene(), 0)
        near = doubtful(model, doubt)

        def see(*inputs):
            perceived = near(*inputs)
            nothing = torch.zeros(1, *SIZE, dtype=torch.bool)
            return replace(perceived, depth_m=first.depth_m / 5, sky=nothing, dynamic=nothing)

        again = model.with_parts(denoise=lambda *inputs: inputs[1].base, see=see).advance(state, path(1)[:1])[0]
        return (again.depth_m / first.depth_m).log()[0][8:-8, 8:-8].median()

    assert seen_again(0.6) > -0.3 and seen_again(0.05) < -1.0


def test_frames_of_a_chunk_settle_on_what_its_keyframes_wrote() -> None:
    """A wall where nothing was remembered, seen at another distance in every frame: the first keyframe's is kept."""
    model = build(keyframe_stride=2, anchor=0.6)

    def unsteady(images, *rest):
        perceived, nothing = model.perception(images, *rest), torch.zeros(len(images), *SIZE, dtype=torch.bool)
        distance = torch.tensor([2.0, 2.2, 2.4, 1.9])[: len(images), None, None]
        return replace(perceived, depth_m=distance.expand(-1, *SIZE).clone(), sky=nothing, dynamic=nothing)

    cameras = turned_around(4)
    frames, points = {}, {}
    for anchor in (0.0, 0.6):
        model.preset = replace(model.preset, anchor=anchor)
        world = model.with_parts(see=unsteady)
        _, state = world.begin(scene(), 0)
        frames[anchor], after = world.advance(state, cameras)
        points[anchor] = len(after.memory) - len(state.memory)
        assert len(after.keyframes) == 3 and not frames[anchor].remembered.any()
    torch.testing.assert_close(frames[0.0].depth_m[:, 5, 5], torch.tensor([2.0, 2.2, 2.4, 1.9]))
    torch.testing.assert_close(frames[0.6].depth_m, torch.full((4, *SIZE), 2.2))
    assert 2 * points[0.6] == points[0.0] == SIZE[0] * SIZE[1] // 32


def test_keyframes_come_first_and_the_frames_between_show_them() -> None:
    def from_pure_noise(model: WorldModel) -> WorldModel:  # so that draws do not matter
        return model.with_parts(denoise=lambda noise, given: model.denoiser.clean(noise, torch.ones(1), given))

    model = from_pure_noise(build(keyframe_stride=2, keyframes_first=True))
    alone = from_pure_noise(build(keyframe_stride=1))
    cameras, (_, state) = turned_around(5), model.begin(scene(), 0)
    frames, after = model.advance(state, cameras)
    keys, wrote = alone.advance(state, cameras[::2])
    assert same(frames[slice(0, 5, 2)], keys) and not keys.remembered.any()
    for name in ("points", "tokens"):
        assert torch.equal(getattr(after.memory, name), getattr(wrote.memory, name))
    assert frames[slice(1, 5, 2)].remembered.float().mean() > 0.5
    assert torch.equal(frames[slice(1, 5, 2)].remembered, model.readout(after, cameras[1::2]).visible)
    assert torch.equal(frames.cameras.world_from_camera, cameras.world_from_camera)
    assert torch.equal(after.history.cameras.world_from_camera, cameras[2:].world_from_camera)
    assert len(after.keyframes) == 4 and after.frame == 5


def test_what_is_remembered_is_looked_at_and_the_frames_between_get_a_glance() -> None:
    model = build(keyframe_stride=2, keyframes_first=True)
    looks: list[tuple[str, int]] = []

    def noting(part: str):
        def look(images, *others):
            looks.append((part, len(images)))
            return model.perception(images, *others)

        return look

    world = model.with_parts(see=noting("see"), glance=noting("glance"))
    world.advance(world.begin(scene(), 0)[1], path(5))
    assert looks == [("see", 1), ("see", 3), ("glance", 2)]

    looks.clear()
    world = model.with_parts(see=noting("see"))  # who sees otherwise glances so, too
    world.advance(world.begin(scene(), 0)[1], path(5))
    assert looks == [("see", 1), ("see", 3), ("see", 2)]


def test_what_is_remembered_is_decoded_by_the_codec_and_the_rest_by_a_tiny_decoder() -> None:
    model = build(keyframe_stride=2, keyframes_first=True)
    asked: list[tuple[str, int]] = []

    def noting(part: str, shade: int):
        def decode(latents, overlap):
            asked.append((part, latents.shape[1]))
            return torch.full_like(model.parts["decode"](latents, overlap), shade)

        return decode

    world = model.with_parts(decode=noting("codec", 200), sketch=noting("tiny", 50))
    frames, state = world.advance(world.begin(scene(), 0)[1], path(5))
    assert asked == [("codec", 3), ("tiny", 2)]
    assert [int(picture[0, 0, 0]) for picture in frames.rgb] == [200, 50, 200, 50, 200]
    assert int(world.draft(state, path(1)).rgb.max()) == 50

    asked.clear()
    world = model.with_parts(decode=noting("codec", 200))  # who decodes otherwise sketches so, too
    world.draft(world.advance(world.begin(scene(), 0)[1], path(5))[1], path(1))
    assert asked == [("codec", 3), ("codec", 2), ("codec", 1)]


@pytest.mark.parametrize("exact", [True, False])
def test_a_tiny_decoder_shows_every_frame_of_every_world_as_it_would_alone(exact: bool) -> None:
    model = build(keyframe_stride=2, keyframes_first=True, tiny_decoder=TinyDecoderConfig((8, 8), 1))
    decoder = model.tiny_decoder
    assert decoder is not None

    def one_by_one(latents, overlap):
        return torch.stack([torch.cat([to_uint8(decoder(x[None])) for x in world]) for world in latents])

    states = [model.begin(scene(seed), seed)[1] for seed in (0, 1)]
    cameras = [path(5), path(5, start=3)]
    for state, views, (frames, _) in zip(states, cameras, model.advance_many(states, cameras, exact), strict=True):
        alone = model.with_parts(sketch=one_by_one).advance(state, views)[0]
        assert (alone.rgb.int() - frames.rgb.int()).abs().max() <= (0 if exact else 1)
        assert (alone.rgb != build().with_parts(decode=model.parts["decode"]).advance(state, views)[0].rgb).any()
    for state, views, draft in zip(states, cameras, model.draft_many(states, cameras, exact), strict=True):
        assert_equal(model.with_parts(sketch=one_by_one).draft(state, views).rgb, draft.rgb)


def test_a_chunk_of_keyframes_alone_is_the_same_whether_they_come_first_or_not() -> None:
    (_, state), first, usual = build().begin(scene(), 0), build(keyframes_first=True), build()
    assert same(first.advance(state, path(1))[0], usual.advance(state, path(1))[0])


def test_keyframes_first_together_are_those_of_each_world_alone() -> None:
    model = build(keyframes_first=True)
    states = [model.begin(scene(seed), seed)[1] for seed in range(3)]
    cameras = [path(6), path(2), path(6, 3)]
    together = model.advance_many(states, cameras)
    for (frames, after), state, views in zip(together, states, cameras, strict=True):
        expected, then = model.advance(state, views)
        assert same(frames, expected) and torch.equal(after.memory.tokens, then.memory.tokens)


def test_frames_between_keyframes_need_no_past_where_the_memory_shows_views() -> None:
    for memory, whole in ((LatentMemory(MemoryConfig()), False), (NoMemory(), True)):
        model, asked = build(keyframe_stride=2, keyframes_first=True).with_memory(memory), []

        def denoise(noise, condition, model=model, asked=asked):
            asked.append((int((~condition.noisy).sum()) - condition.references, condition.references))
            return condition.base

        world = model.with_parts(denoise=denoise)
        _, state = world.begin(scene(), 0)
        for start in (1, 5, 9):
            _, state = world.advance(state, path(4, start))
        assert asked[-2][0] == 3  # the keyframes: the frame before them, and two before that
        assert asked[-1][0] == 3 and asked[-1][1] > 0 if whole else asked[-1] == (1, 0)


def test_keyframes_cannot_come_first_where_frames_are_decoded_together() -> None:
    with pytest.raises(InvalidValueError, match=r"keyframes_first .* temporal_downsample cannot decode"):
        build(replace(CODEC, temporal_downsample=(True, False)), keyframes_first=True)


class Witness(LatentMemory):
    """Keeps what it was told."""

    def __init__(self):
        super().__init__(MemoryConfig(sky_points=16))
        self.records: list[ChunkRecord] = []
        self.worlds_read: list[int] = []

    def write(self, state, record):
        self.records.append(record)
        return super().write(state, record)

    def read_many(self, states, cameras):
        self.worlds_read.append(len(states))
        return super().read_many(states, cameras)


def test_a_memory_is_told_everything_about_a_chunk() -> None:
    memory = Witness()
    model = build().with_memory(memory)
    _, state = model.begin(scene(), 0)
    cameras = path(3)
    model.advance(state, cameras)
    first, second = memory.records
    assert first.rgb is not None and np.array_equal(first.rgb[0].numpy(), scene().image)
    assert first.actions is not None and not first.actions.any()
    keys = len(second.latents)
    assert second.rgb is not None and len(second.rgb) == len(second.cameras) == len(second.depth_m) == keys
    assert torch.equal(second.cameras.world_from_camera[-1], cameras.world_from_camera[-1])
    assert second.actions is not None
    moved = (first.cameras.camera_from_world @ second.cameras.world_from_camera[0])[0, :3, 3]
    torch.testing.assert_close(second.actions[0, :3], moved)


def test_worlds_that_go_together_are_read_in_one_call() -> None:
    memory = Witness()
    model = build().with_memory(memory)
    states = [state for _, state in model.begin_many([scene(0), scene(1)], [0, 1])]
    model.advance_many(states, [path(2), path(1)])
    model.draft_many(states, [path(1), path(1)])
    assert memory.worlds_read == [2, 2]


def test_eyes_that_do_not_know_write_nothing() -> None:
    """A depth of infinity, or of nothing that is a number, is their way to say so."""
    model = build()

    def half_blind(*inputs):
        perceived = model.perception(*inputs)
        depth = perceived.depth_m.clone()
        depth[..., : SIZE[1] // 2] = torch.inf
        depth[:, 0] = torch.nan
        return replace(perceived, depth_m=depth, sky=torch.zeros_like(perceived.sky))

    blind = model.with_parts(see=half_blind)
    _, state = blind.begin(scene(), 0)
    assert len(state.memory) > 0 and bool((state.memory.points[:, 0] > 0).all())
