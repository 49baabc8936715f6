"""Which picture an episode begins with; the model itself is replaced by the room with a known answer."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from PIL import Image

import mirage_env
from mirage_env import world_model
from mirage_env.codec.wan import CodecConfig, WanCodec
from mirage_env.denoise.denoiser import Denoiser, DenoiserConfig
from mirage_env.denoise.sampler import SamplerConfig
from mirage_env.envs.mirage import MirageEnv, picture_pool
from mirage_env.errors import ImageError, InvalidValueError, UnknownNameError, check_array, check_size
from mirage_env.memory.latent import MemoryConfig
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception
from mirage_env.types import Cameras, Frames, SceneSpec
from mirage_env.world_model import WorldModel

SIZE = (32, 40)


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, box_world: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Replaces the model by a room that shows the given picture first; returns what was asked of the loader."""
    calls: list[tuple[Any, ...]] = []

    class PictureRoom(box_world):  # type: ignore[misc, valid-type]
        def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, Any]:
            self.scenes = [*getattr(self, "scenes", []), scene]
            frames, state = super().begin(scene, seed)
            rgb = torch.from_numpy(np.array(scene.image))[None]
            shown = Frames(rgb, frames.depth_m, frames.sky, frames.dynamic, frames.remembered, frames.cameras)
            return shown, state

    def load_world(preset: str, size: tuple[int, int], device: str, weights: str | None) -> Any:
        calls.append((preset, size, device))
        return PictureRoom(size)

    monkeypatch.setattr(world_model, "load_world", load_world)
    return calls


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three plain pictures of grey level 10, 20 and 30, and something else."""
    for level in (10, 20, 30):
        Image.fromarray(np.full((50, 60, 3), level, np.uint8)).save(tmp_path / f"p{level}.png")
    (tmp_path / "notes.md").write_text("not a picture")
    return tmp_path


def test_no_arguments_at_all(asked: list[tuple[Any, ...]]) -> None:
    env = gym.make("Mirage-v0")
    obs, info = env.reset(seed=0)
    assert asked == [("mirage-tiny", (128, 128), "auto")]
    assert obs["rgb"].shape == (128, 128, 3)
    assert info["image"] in mirage_env.builtin_names() and len(info["image_sha256"]) == 64
    assert gym.make("mirage_env:Mirage-v0", size=[32, 40]).unwrapped.observation_space["rgb"].shape == (32, 40, 3)


def test_the_first_observation_is_the_picture(pictures: Path) -> None:
    path = str(pictures / "p20.png")
    env = gym.make("Mirage-v0", image=path, size=SIZE, prompt="a kitchen", fov_deg=60.0, camera_height_m=1.5)
    obs, info = env.reset(seed=0)
    assert (obs["rgb"] == 20).all() and info["image"] == path
    assert info["fov_deg"] == pytest.approx(60) and info["fov_source"] == "given"
    scene = env.unwrapped.world.scenes[0]
    assert scene.prompt == "a kitchen" and scene.camera_height_m == 1.5 and scene.scene_seed is None
    torch.testing.assert_close(scene.world_from_camera, torch.eye(4))

    array = MirageEnv(np.full((40, 40, 3), 99, np.uint8), size=SIZE)
    assert (array.reset(seed=0)[0]["rgb"] == 99).all()
    assert (array.reset(options={"image": path})[0]["rgb"] == 20).all()
    assert (array.reset()[0]["rgb"] == 99).all()


def test_the_field_of_view_that_the_picture_knows(pictures: Path) -> None:
    picture = Image.new("RGB", (60, 50))
    exif = picture.getexif()
    exif.get_ifd(0x8769)[0xA405] = 28
    picture.save(pictures / "exif.jpg", exif=exif)
    _, info = MirageEnv(str(pictures / "exif.jpg"), size=(50, 60)).reset(seed=0)
    diagonal = 0.5 * math.hypot(60, 50) / (0.5 * math.hypot(36, 24) / 28)
    assert info["fov_source"] == "picture"
    assert info["fov_deg"] == pytest.approx(2 * math.degrees(math.atan(30 / diagonal)), abs=0.1)
    assert MirageEnv(str(pictures / "p10.png"), size=SIZE).reset(seed=0)[1]["fov_source"] == "default"


def test_a_pool_is_drawn_from_by_seed(pictures: Path) -> None:
    env = gym.make("Mirage-v0", images=str(pictures), size=SIZE, obs="rgb")
    drawn = [int(env.reset(seed=seed)[0][0, 0, 0]) for seed in range(20)]
    assert set(drawn) == {10, 20, 30}
    assert drawn == [int(env.reset(seed=seed)[0][0, 0, 0]) for seed in range(20)]


def test_pools(pictures: Path) -> None:
    folder = [str(pictures / f"p{level}.png") for level in (10, 20, 30)]
    assert picture_pool(pictures) == folder
    manifest = pictures / "list.txt"
    manifest.write_text("# my pictures\np10.png\n\n  p30.png\n")
    assert picture_pool(str(manifest)) == [folder[0], folder[2]]
    assert picture_pool(folder[:2]) == folder[:2]

    (pictures / "empty").mkdir()
    for images, text in [
        (pictures / "empty", "holds no picture"),
        ([], "holds no picture"),
        (pictures / "none", "no folder or list of pictures at"),
        (pictures / "p10.png", "is not a list of pictures; images takes a folder or a text file"),
    ]:
        with pytest.raises(ImageError, match=text):
            picture_pool(images)


def test_a_bad_picture_of_a_pool_is_named_at_once_and_the_others_live(pictures: Path) -> None:
    (pictures / "p05.png").write_text("not a picture")
    Image.new("RGB", (8, 8)).save(pictures / "p15.png")
    with pytest.warns(UserWarning) as told:
        env = MirageEnv(images=pictures, size=SIZE)
    named = [str(one.message) for one in told]
    assert "left out of the pool" in named[0] and "p05.png is not a picture" in named[0]
    assert "p15.png is 8 x 8 pixels" in named[1] and len(named) == 2
    assert env.pool == [str(pictures / f"p{level}.png") for level in (10, 20, 30)]
    with pytest.warns(UserWarning, match='unknown built-in image "kitchn"'):
        assert MirageEnv(images=["kitchn", "coffee"], size=SIZE).pool == ["coffee"]
    with pytest.raises(ImageError, match=r"none of the 2 pictures can be used; the first: .*p05\.png is not a picture"):
        MirageEnv(images=[pictures / "p05.png", pictures / "p15.png"], size=SIZE)


def test_headers_are_all_that_is_read_of_a_pool(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were read"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were read"))
    assert len(MirageEnv(images=pictures, size=SIZE).pool) == 3


def test_a_picture_damaged_below_its_header_is_named_and_another_is_drawn(pictures: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(pictures / "p10.png")
    whole = (pictures / "p10.png").read_bytes()
    (pictures / "p10.png").write_bytes(whole[: len(whole) // 2])
    env = MirageEnv(images=pictures, size=SIZE, obs="rgb")
    with pytest.warns(UserWarning, match=r"another picture of the pool is drawn: .*p10\.png is damaged"):
        drawn = [int(env.reset(seed=seed)[0][0, 0, 0]) for seed in range(12)]
    assert set(drawn) == {20, 30}
    with pytest.warns(UserWarning, match="another picture"):
        assert drawn == [int(env.reset(seed=seed)[0][0, 0, 0]) for seed in range(12)]

    for level in (20, 30):
        (pictures / f"p{level}.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning), pytest.raises(ImageError, match="10 pictures drawn in a row cannot be used"):
        env.reset(seed=0)


def test_bad_pictures_fail_early_and_in_one_sentence(pictures: Path) -> None:
    for kwargs, error, text in [
        ({"image": str(pictures / "gone.png")}, ImageError, "no picture at"),
        ({"image": "kitchn"}, UnknownNameError, 'unknown built-in image "kitchn"; known are'),
        ({"image": str(pictures / "notes.md")}, ImageError, "is not a picture"),
        ({"image": "coffee", "size": (32,)}, InvalidValueError, r"size must be two whole numbers \(H, W\)"),
        (
            {"image": "coffee", "images": ["coffee"]},
            InvalidValueError,
            "give one of image, images and world, not several",
        ),
    ]:
        with pytest.raises(error, match=text):
            gym.make("Mirage-v0", **{"size": SIZE, **kwargs})
    env = MirageEnv("coffee", size=SIZE)
    env.reset(seed=0)
    with pytest.raises(UnknownNameError, match='unknown reset option "scene_seed"; known are depth, image,'):
        env.reset(options={"scene_seed": 1})


@pytest.mark.parametrize("kind", [str, Path])
def test_the_spec_can_be_written_to_json(pictures: Path, kind: type) -> None:
    env = gym.make("Mirage-v0", image=kind(pictures / "p30.png"), size=SIZE, chunk=4)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert (again.reset(seed=0)[0]["rgb"] == 30).all() and again.unwrapped.chunk == 4
    pool = gym.make_vec("Mirage-v0", 2, images=[kind(pictures / "p30.png")], size=SIZE)
    again = gym.make_vec(EnvSpec.from_json(pool.spec.to_json()))
    assert (again.reset(seed=0)[0]["rgb"] == 30).all() and again.num_envs == 2


@pytest.fixture
def real_model(monkeypatch: pytest.MonkeyPatch) -> WorldModel:
    """A small random world model: no picture worth seeing, but real parts."""
    torch.manual_seed(0)
    codec = CodecConfig(
        channels=6, base_dim=8, decoder_base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, is_residual=True
    )
    shape = DenoiserConfig(
        channels=6, heads=2, head_dim=24, ffn_dim=48, layers=2, memory_layers=(0,), text_dim=8, patch_size=2
    )
    perception = PerceptionConfig(widths=(8, 16), blocks=1)
    preset = world_model.Preset(codec, perception, MemoryConfig(), shape, SamplerConfig(steps=2))
    parts = WanCodec(codec), TinyPerception(perception), Denoiser(shape)
    model = WorldModel(preset, *parts, (32, 48))
    monkeypatch.setattr(world_model, "load_world", lambda *_: model)
    return model


def test_the_readout_itself_is_an_observation(real_model: WorldModel) -> None:
    env = gym.make("Mirage-v0", size=(32, 48), chunk=2, obs=("rgb", "latent"))
    space = env.observation_space["latent"]
    assert space.shape == (6, 4, 6) and space.dtype == np.float32
    first, _ = env.reset(seed=0)
    state = env.unwrapped._episode.world
    written = set(map(tuple, state.memory.tokens.tolist()))
    cells = {tuple(cell) for cell in first["latent"].reshape(6, -1).T.tolist()}
    assert cells - {(0.0,) * 6} == written and len(written) > 1  # from where it was written it shows what was written
    for generated in (False, True):  # a draft is seen from the new place, by the memory of the last chunk
        obs, *_, info = env.step(np.array([1.0, 0.0, 1.0], np.float32))
        assert info["generated"] is generated and obs in env.observation_space
        episode, pose = env.unwrapped._episode, torch.from_numpy(info["world_from_camera"])
        camera = Cameras(pose[None], episode.scene.intrinsics_px[None], (32, 48))
        shown = real_model.readout(episode.world, camera)
        np.testing.assert_array_equal(obs["latent"], shown.tokens[0].numpy())
        assert (episode.world is state) is not generated
    assert not np.array_equal(obs["latent"], first["latent"])
    here = env.unwrapped.snapshot()
    assert data_equivalence(env.unwrapped.restore(here)[0], obs, exact=True)


def test_only_worlds_with_a_latent_memory_show_it(real_model: WorldModel) -> None:
    twin = gym.make("MirageTwin-v0", size=(32, 48), obs="latent").unwrapped
    assert twin.reset(seed=0)[0].shape == (6, 4, 6)
    with pytest.raises(InvalidValueError, match='"latent" needs a world with a latent memory; this one has none'):
        gym.make("MirageSim-v0", size=(32, 48), obs=("rgb", "latent"))


def test_a_real_model_steps_restores_and_pickles(real_model: WorldModel) -> None:
    check_env(gym.make("Mirage-v0", size=(32, 48), disable_env_checker=True).unwrapped, skip_render_check=True)
    env = gym.make("Mirage-v0", size=(32, 48), chunk=2, task="explore", max_episode_steps=5)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(5)]
    for action in actions[:3]:
        env.step(action)
    saved, twin = env.unwrapped.snapshot(), pickle.loads(pickle.dumps(env))
    first = [env.step(action) for action in actions[3:]]
    env.unwrapped.restore(saved)
    second = [twin.step(action) for action in actions[3:]]
    assert data_equivalence(first, second, exact=True)
    env.unwrapped.step(actions[3])
    assert data_equivalence(env.unwrapped.step(actions[4]), second[-1], exact=True)
    assert second[-1][3] is True and second[-1][4]["generated"] is True
    assert second[-1][4]["memory_points"] > 0 and second[-1][4]["memory_bytes"] > 0


def test_a_lens_words_and_depth_may_come_with_the_picture(pictures: Path) -> None:
    env = gym.make("Mirage-v0", images=str(pictures), size=SIZE, prompt="a kitchen").unwrapped
    lens = np.array([[30.0, 0, 20], [0, 31, 16], [0, 0, 1]])
    depth = np.full(SIZE, 2.5)
    _, info = env.reset(seed=0, options={"intrinsics": lens, "prompt": "a hall", "depth": depth})
    assert info["fov_source"] == "intrinsics"
    scene = env.world.scenes[-1]
    np.testing.assert_allclose(scene.intrinsics_px, lens)
    np.testing.assert_array_equal(scene.depth_m, depth)
    assert scene.prompt == "a hall"

    _, info = env.reset(seed=0)
    assert info["fov_source"] == "default"
    assert (env.world.scenes[-1].prompt, env.world.scenes[-1].depth_m) == ("a kitchen", None)
    for bad in ("intrinsics", "depth"):
        with pytest.raises(InvalidValueError, match=f"{bad} must have shape"):
            env.reset(seed=0, options={bad: np.ones((4, 4))})


def test_a_pool_of_the_wrong_type_is_told() -> None:
    with pytest.raises(ImageError, match="images must be a folder, a text file or a list of pictures, got 5"):
        picture_pool(5)


def test_absurd_sizes_are_told() -> None:
    with pytest.raises(InvalidValueError, match="size must be at most 4096 pixels a side"):
        check_size(10**9)


def test_tensors_with_gradients_are_arrays() -> None:
    assert check_array("x", torch.ones(2, requires_grad=True), (2,)).tolist() == [1, 1]
