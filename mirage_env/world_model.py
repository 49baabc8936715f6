"""The world model: one image begins a world, a path of cameras continues it. State goes in and comes out.

image -> codec.encode -> memory.write -> memory.read -> denoise -> codec.decode -> depth/masks -> memory.write
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.cache import Cache
from mirage_env.codec.tiny import TinyDecoder, TinyDecoderConfig
from mirage_env.codec.wan import CodecConfig, WanCodec, to_float, to_uint8
from mirage_env.config import load_config
from mirage_env.denoise.denoiser import ChunkCondition, Denoiser, DenoiserConfig, make_condition
from mirage_env.denoise.pretrained import check_scheduler, load_denoiser
from mirage_env.denoise.sampler import SamplerConfig, sample
from mirage_env.denoise.text import PromptEncoder
from mirage_env.errors import (
    InvalidValueError,
    WeightsError,
    check_array,
    check_count,
    check_number,
    check_size,
    check_stride,
)
from mirage_env.geometry.poses import DEFAULT_FOV_DEG, camera_motion, check_cameras, intrinsics_from_fov
from mirage_env.lockstep import in_step
from mirage_env.memory.alignment import align_log_scale, anchored
from mirage_env.memory.depth_grid import depth_to_grid
from mirage_env.memory.protocol import (
    AnyMemoryConfig,
    ChunkRecord,
    Memory,
    MemoryReading,
    PastFrames,
    State,
    make_memory,
    read_many,
)
from mirage_env.memory.recall import recall
from mirage_env.memory.resampled import ResampledMemoryConfig
from mirage_env.perception.composed import ComposedConfig
from mirage_env.perception.drawn import DepthDrawer, DrawerConfig, draw_features, drawn, noise, to_draw
from mirage_env.perception.tiny import Perceived, Perception, PerceptionConfig, TinyPerception
from mirage_env.precision import fast_autocast, has_fast_bf16
from mirage_env.resources import sha256_of
from mirage_env.types import Cameras, Frames, Readout, SceneSpec
from mirage_env.values import moved
from mirage_env.weights import load_weights
from mirage_env.weights.checkpoint import check_extra, check_memory, find, is_diffusers, is_hub_id, part_bytes
from mirage_env.weights.offload import Offload, offload

Part = TypeVar("Part", bound=nn.Module)
T = TypeVar("T")
_PARTS = ("codec", "perception", "denoiser", "drawer", "tiny_decoder")
_BEGUN_BYTES = 64 * 2**20
"""How many first frames, with what is remembered of them, a model keeps for the next reset."""
DOUBTS = 3.0
"""So many times their doubt eyes may be off: one time in twenty by more, if errors are Laplace's. Else what was made up
far away would be taken for the wall that fog looks like as soon as one looks again."""
_PIXELS_AT_ONCE = 1 << 17
"""How much of several worlds goes through a network at once, on a CPU: more does not fit its cache and costs more."""


@dataclass(frozen=True)
class Preset:
    """A whole world model, as a YAML in `envs_config/` describes it."""

    codec: CodecConfig
    perception: ComposedConfig | PerceptionConfig
    memory: AnyMemoryConfig
    """Of the class that its `kind` names: "latent" is `MemoryConfig`."""
    denoiser: DenoiserConfig
    sampler: SamplerConfig
    weights: str | None = None
    """Where the weights lie: a folder of this package's, any folder, or a fetched checkpoint of the hub in diffusers'
    layout. None: the folder in the package that is named like the preset."""
    adapter: str | None = None
    """The folder with branch and LoRA that turn a public checkpoint into a Mirage."""
    offload: Offload = "none"
    """What waits in main memory: nothing, all parts but the one at work (`model`), or all but two blocks (`group`)."""
    compile: bool = False
    """Whether torch.compile fuses the denoiser's blocks, on a GPU that holds it: minutes once, less traffic a step."""
    keyframe_stride: int = 4
    """Counting back from a chunk's last latent frame, every how many-th is re-encoded and written to the memory."""
    keyframes_first: bool = False
    """A chunk's keyframes are made and remembered before its other frames, which then show them: what is invented is
    one place in all frames of its chunk. For codecs that take every frame alone; costs a second, shorter pass."""
    known_enough: float | None = None
    """The share of cells known for certain (`MemoryReading.settled`) from which on what lies between keyframes, where
    these come first, gets no transformer: the refiner alone fills the rest. None: it always gets one."""
    max_keyframes: int = 64
    """How many keyframes stay at hand as references: the given picture always, of all others the oldest go first."""
    anchor: float = 0.0
    """How far (natural logarithm of depth) what is seen may lie from the remembered surface and still be moved onto it,
    `DOUBTS` of the eyes' doubt beside; 0 leaves it where it is seen. See `anchored`."""
    drawer: DrawerConfig | None = None
    """Draws depth where nothing is remembered, given eyes that tell their doubt; None leaves it as perceived."""
    tiny_decoder: TinyDecoderConfig | None = None
    """Decodes what is never written to the memory, for a fraction of the price: drafts, and frames between keyframes
    where these come first; None leaves it to the codec."""

    def __post_init__(self) -> None:
        if self.codec.channels != self.denoiser.channels:
            raise InvalidValueError(
                f"codec and denoiser must have the same latent channels, got {self.codec.channels} and "
                f"{self.denoiser.channels}"
            )
        if self.keyframe_stride < 1 or self.max_keyframes < 2:
            raise InvalidValueError(
                "keyframe_stride must be at least 1 and max_keyframes at least 2, the given picture and the last one, "
                f"got {self.keyframe_stride} and {self.max_keyframes}"
            )
        if self.keyframes_first and any(self.codec.temporal_downsample):
            raise InvalidValueError(
                "keyframes_first takes the frames of a chunk out of their order, which a codec with temporal_downsample"
                " cannot decode; leave it false"
            )
        if not self.anchor >= 0:
            raise InvalidValueError(f"anchor must not be negative, got {self.anchor}")
        if self.known_enough is not None and not 0 < self.known_enough <= 1:
            raise InvalidValueError(f"known_enough is a share above 0 and at most 1, got {self.known_enough}")
        if not self.denoiser.memory_layers and not self.sampler.replace:
            raise InvalidValueError("without memory_layers the memory comes in through sampler.replace; set it above 0")
        if self.adapter is not None and self.sampler.replace:
            raise InvalidValueError("an adapter brings the memory in by itself; set sampler.replace to 0")

    def checkpoints(self) -> list[str]:
        """The names of the hub that this preset takes weights from."""
        eyes = self.perception.weights() if isinstance(self.perception, ComposedConfig) else []
        return [name for name in (self.weights, self.adapter, *eyes) if name is not None and is_hub_id(name)]

    @property
    def mode(self) -> str:
        """How the memory reaches the denoiser: `trained`, by the branch; or `training-free`, see `SamplerConfig`."""
        return "training-free" if self.sampler.replace else "trained"


@dataclass(frozen=True)
class LatentFrames:
    """Past latent frames with what places them in the world."""

    latents: Float[Tensor, "k c h w"]
    depth_m: Float[Tensor, "k h w"]
    """On the latent grid; not finite where nothing static was seen."""
    cameras: Cameras
    """At latent resolution."""

    def __getitem__(self, index: slice | Tensor) -> LatentFrames:
        return LatentFrames(self.latents[index], self.depth_m[index], self.cameras[index])

    @staticmethod
    def cat(frames: Sequence[LatentFrames]) -> LatentFrames:
        return LatentFrames(
            torch.cat([one.latents for one in frames]),
            torch.cat([one.depth_m for one in frames]),
            Cameras.cat([one.cameras for one in frames]),
        )

    def apart(self) -> tuple[LatentFrames, ...]:
        """Each frame by itself; indices copy, so that none keeps the others in memory."""
        return tuple(self[torch.tensor([index])] for index in range(len(self.latents)))


@dataclass(frozen=True)
class WorldState:
    """Everything a world is between two chunks: a value, so that to snapshot, fork or replay it is to keep it."""

    memory: State
    history: LatentFrames
    """The last latent frames, oldest first; the very last is the overlap frame."""
    keyframes: tuple[LatentFrames, ...]
    """One frame each, the given picture first, so that worlds with a common past hold it once."""
    floor_y: float
    """The floor is the plane y = floor_y."""
    seed: int
    frame: int
    """Latent frames generated so far; with `seed` it decides the next noise."""
    drift: float
    """Mean distance, in latent units, between the last chunk's frames and the tokens of the memory's points, where they
    lay in each as it was made; 0 is none."""
    prompt: str | None = None
    """Words that accompany the first picture."""


@dataclass(frozen=True)
class _Made:
    """Frames that were denoised together."""

    latents: Float[Tensor, "n c h w"]
    rgb: UInt8[Tensor, "T H W 3"]
    seen: Perceived
    shown: Readout
    """What the memory's points showed of them."""
    known: Bool[Tensor, "T h w"]
    """Which of their cells are remembered."""
    moved: Float[Tensor, "n h w"]
    """How far each cell went from the warp, in latent units."""


class Ask(NamedTuple):
    """One read of the memory or one pass of a network that a world needs before it can go on."""

    part: Literal["read", "encode", "decode", "denoise", "refine", "see", "glance", "draw", "sketch"]
    inputs: tuple[Any, ...]


Work = Generator[Ask, Any, T]
"""Something that a world does, up to its result, written as if the world were alone."""


class WorldModel:
    """The parts of Mirage and the order in which a chunk passes through them. Holds weights, never a world's state."""

    state_class = WorldState
    name = "unnamed"
    """Of the preset, where one was loaded."""

    def __init__(
        self,
        preset: Preset,
        codec: WanCodec,
        perception: Perception,
        denoiser: Denoiser,
        size: tuple[int, int],
        device: torch.device | str = "cpu",
        weights: dict[str, str] | None = None,
        memory: Memory | None = None,
        text: PromptEncoder | None = None,
        drawer: DepthDrawer | None = None,
        tiny_decoder: TinyDecoder | None = None,
    ):
        self.preset, self.size, self.device = preset, size, torch.device(device)
        check_stride(size, codec.spatial_stride * denoiser.config.patch_size)
        self.latent_size = codec.latent_size(size)
        resident = self.device if preset.offload == "none" else torch.device("cpu")
        self.codec = _for_inference(codec, resident, self.device)
        self.perception = perception  # outside models come as they are: they know their own precision
        if isinstance(perception, TinyPerception):
            self.perception = _for_inference(perception, resident, self.device)
        self.denoiser = _for_inference(denoiser, resident, self.device)
        self.drawer = None if drawer is None else _for_inference(drawer, self.device, self.device)
        self.tiny_decoder = None if tiny_decoder is None else _for_inference(tiny_decoder, self.device, self.device)
        if preset.offload != "none":
            self.codec.mean, self.codec.std = codec.mean.to(self.device), codec.std.to(self.device)
            eyes = list(perception.children()) if isinstance(perception, nn.Module) else []
            offload([denoiser.transformer, codec.vae, *eyes], preset.offload, self.device)
        if preset.compile and preset.offload != "group" and self.device.type == "cuda":
            denoiser.transformer.compile_repeated_blocks(fullgraph=True)
        self.text = text
        self.memory = self._placed(memory or make_memory(preset.memory, self.encode))
        self.weights = weights or {}
        """sha256 of every part's file; empty for parts that were not loaded from one."""
        self.parts: dict[str, Callable[..., Any]] = {
            "encode": lambda images: self.codec.encode(images).float(),
            "decode": lambda latents, overlap: to_uint8(self.codec.decode_after(overlap, latents)),
            "denoise": lambda noise, condition: sample(self.denoiser, condition, noise, self.preset.sampler),
            "refine": lambda noise, condition: self.denoiser.refined(condition).base,
            "see": lambda *inputs: self.perception(*inputs),
            "glance": lambda *inputs: getattr(self.perception, "glance", self.perception)(*inputs),
            "draw": lambda inputs: self.drawer(inputs),  # type: ignore[misc]  # asked for only where there is one
            "sketch": self._sketch,
        }
        """What answers each `Ask`, by the name of its part."""
        self._alike: dict[Any, bool] = {}
        self._begun: Cache[tuple[Frames, WorldState]] = Cache(_BEGUN_BYTES)

    @property
    def temporal_stride(self) -> int:
        return self.codec.temporal_stride

    @property
    def channels(self) -> int:
        """Of a latent token."""
        return self.codec.channels

    @property
    def identity(self) -> dict[str, str]:
        """What another model must share to go on with a state of this one; names and values for people."""
        return {
            "preset": self.name,
            "memory": type(self.memory).__name__,
            **{part: digest[:12] for part, digest in self.weights.items()},
        }

    def placed(self, state: WorldState) -> WorldState:
        """The state on the model's device."""
        return moved(state, self.device)

    def with_memory(self, memory: Memory) -> WorldModel:
        """The same model, and the same weights, with another memory; worlds that this one began do not fit it."""
        other = self._like_this()
        other.memory = self._placed(memory)
        return other

    def with_perception(self, perception: Perception) -> WorldModel:
        """The same model, and the same weights, with eyes of your own: any callable that follows `Perception`."""
        glance = getattr(perception, "glance", perception)
        other = self.with_parts(see=lambda *inputs: perception(*inputs), glance=lambda *inputs: glance(*inputs))
        other.perception = perception
        return other

    def with_parts(self, **parts: Callable[..., Any]) -> WorldModel:
        """The same model with other answers to some of what its worlds ask for; see `parts`. Who sees or decodes
        otherwise glances or sketches so, too, unless told."""
        for part, for_less in (("see", "glance"), ("decode", "sketch")):
            if part in parts:
                parts = {for_less: parts[part]} | parts
        other = self._like_this()
        other.parts = self.parts | parts
        return other

    def _like_this(self) -> WorldModel:
        """The same parts; nothing of what this model found out about them."""
        other = copy.copy(self)
        other._alike, other._begun = {}, Cache(_BEGUN_BYTES)
        return other

    def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, WorldState]:
        """The given picture as the first frame, and a world that remembers it.

        Raises `InvalidValueError` where the picture is missing or not of the model's size.
        """
        return self.begin_many([scene], [seed])[0]

    def advance(self, state: WorldState, cameras: Cameras) -> tuple[Frames, WorldState]:
        """One chunk (Algorithm 1): `temporal_stride` frames a latent frame, at the given pixel-resolution cameras.

        Raises `InvalidValueError` where the number of cameras is not a positive multiple of `temporal_stride`, their
        size is not the model's, or a pose is not rigid.
        """
        return self.advance_many([state], [cameras])[0]

    def draft(self, state: WorldState, cameras: Cameras) -> Frames:
        """What the memory alone shows to the cameras, decoded as it is; holes are filled from the last frame."""
        return self.draft_many([state], [cameras])[0]

    @torch.inference_mode()
    def readout(self, state: WorldState, cameras: Cameras) -> Readout:
        """What the memory shows to the given pixel-resolution cameras (Eq. 5), on the latent grid."""
        views = self._checked(cameras).resized(self.latent_size)
        return self.memory.read(state.memory, views).grid or Readout.blank(views, self.channels)

    # Many worlds at once, of any histories and numbers of cameras. With `exact` every world gets the numbers that it
    # would get alone, to the bit; without, they may differ by the order of sums.

    def begin_many(
        self, scenes: Sequence[SceneSpec], seeds: Sequence[int], exact: bool = True
    ) -> list[tuple[Frames, WorldState]]:
        """See `begin`. A scene that was begun before is not encoded again: only its seed is new."""
        keys = [_scene_key(scene) for scene in scenes]
        begun = {key: known for key in keys if (known := self._begun.get(key)) is not None}
        new = {key: scene for key, scene in zip(keys, scenes, strict=True) if key not in begun}
        for key, result in zip(new, self._together([self._begin(scene) for scene in new.values()], exact), strict=True):
            begun[key] = result
            self._begun.put(key, result, result[0].nbytes + result[1].memory.nbytes)
        return [(begun[key][0], replace(begun[key][1], seed=seed)) for key, seed in zip(keys, seeds, strict=True)]

    def advance_many(
        self, states: Sequence[WorldState], cameras: Sequence[Cameras], exact: bool = True
    ) -> list[tuple[Frames, WorldState]]:
        """See `advance`."""
        return self._together([self._advance(*one) for one in zip(states, cameras, strict=True)], exact)

    def draft_many(self, states: Sequence[WorldState], cameras: Sequence[Cameras], exact: bool = True) -> list[Frames]:
        """See `draft`."""
        return self._together([self._draft(*one) for one in zip(states, cameras, strict=True)], exact)

    def _begin(self, scene: SceneSpec) -> Work[tuple[Frames, WorldState]]:
        if scene.image is None:
            raise InvalidValueError("a generated world begins with a picture, got none; pass image=")
        if scene.image.shape != (*self.size, 3):
            raise InvalidValueError(
                f"the first picture must be {self.size[0]} x {self.size[1]} x 3, got {scene.image.shape}; "
                "mirage_env.load_image(path, size) scales one"
            )
        camera = Cameras(scene.world_from_camera[None].float(), scene.intrinsics_px[None].float(), self.size)
        camera = check_cameras(camera).to(self.device)
        rgb = torch.from_numpy(np.array(scene.image))[None].to(self.device)
        floor_y = float(scene.camera_height_m)
        images = to_float(rgb)
        latents = yield Ask("encode", (images,))
        seen = yield Ask("see", (images, camera, images.new_zeros(1, *self.latent_size), floor_y))
        if scene.depth_m is not None:
            seen = replace(seen, depth_m=self._given_depth(scene.depth_m))
        memory = self.memory.empty(self.channels, self.device)
        first, memory = self._remember(memory, latents, rgb, seen, camera, camera[:0])
        state = WorldState(memory, first, first.apart(), floor_y, seed=0, frame=0, drift=0.0, prompt=scene.prompt)
        remembered = torch.ones(1, *self.latent_size, dtype=torch.bool, device=self.device)
        return Frames(rgb, seen.depth_m, seen.sky, seen.dynamic, remembered, camera), state

    def _advance(self, state: WorldState, cameras: Cameras) -> Work[tuple[Frames, WorldState]]:
        stride, every = self.temporal_stride, self.preset.keyframe_stride
        cameras = self._checked(cameras, stride)
        count = len(cameras) // stride
        order = torch.arange(count, device=self.device)
        keys = order.flip(0)[::every].flip(0)
        initial = self._noise(state, count)
        if self.preset.keyframes_first and len(keys) < count:
            between = order[~torch.isin(order, keys)]
            first, shows = yield from self._made(state, cameras[keys], initial[:, keys])
            seen, written, memory = yield from self._written(state, first, cameras[keys], torch.arange(len(keys)))
            past = replace(state, memory=memory)
            if shows:  # what lies between: more of the past is of no use and costs time
                past = replace(past, history=state.history[-1:], keyframes=state.keyframes[-1:])
            rest, _ = yield from self._made(past, cameras[between], initial[:, between], kept=False)
            others = yield from self._settled(rest.seen, rest.shown, cameras[between], state)
            back = torch.cat([keys, between]).argsort()
            made = _interleaved(replace(first, seen=seen), replace(rest, seen=others), back)
            seen = made.seen
        else:
            made, _ = yield from self._made(state, cameras, initial)
            seen, written, memory = yield from self._written(state, made, cameras, (keys + 1) * stride - 1)

        grid = cameras.resized(self.latent_size)
        unknown = made.latents.new_full(made.latents[:, 0].shape, torch.nan)
        recent = LatentFrames(made.latents, unknown, grid[stride - 1 :: stride])
        history = LatentFrames.cat([state.history, recent[:-1], written[-1:]])
        moved = made.moved[made.shown.visible[stride - 1 :: stride]]
        given, *keyframes = state.keyframes
        after = WorldState(
            memory=memory,
            history=history[-1 - self.denoiser.config.preceding :],
            keyframes=(given, *(*keyframes, *written.apart())[1 - self.preset.max_keyframes :]),
            floor_y=state.floor_y,
            seed=state.seed,
            frame=state.frame + count,
            drift=float(moved.mean()) if len(moved) else 0.0,
            prompt=state.prompt,
        )
        return Frames(made.rgb, seen.depth_m, seen.sky, seen.dynamic, made.known, cameras), after

    def _made(
        self, state: WorldState, cameras: Cameras, initial: Float[Tensor, "1 n c h w"], kept: bool = True
    ) -> Work[tuple[_Made, bool]]:
        """Frames that are denoised together from `initial` noise, what is seen in them, as deep as the memory says on
        the whole, and whether it is one that shows views. What is not `kept`, since no memory will rest on it, is
        decoded and looked at for less."""
        stride = self.temporal_stride
        grid = cameras.resized(self.latent_size)
        past = state.history.cameras
        views = Cameras.cat([past, grid])  # one projection serves the whole chunk
        reading = yield Ask("read", (state.memory, views))
        readout = reading.grid or Readout.blank(views, self.channels)
        shown = readout[len(past) :]
        condition = self._condition(state, grid[stride - 1 :: stride], readout, reading)
        remembered = condition.known[0, :, 0]
        enough = None if kept or condition.settled is None else self.preset.known_enough
        known_enough = enough is not None and float(remembered.float().mean()) >= enough
        latents = yield Ask("refine" if known_enough else "denoise", (initial, condition))
        rgb = (yield Ask("decode" if kept else "sketch", (latents, state.history.latents[-1:][None])))[0]
        latents = latents[0].float()
        images = to_float(rgb)  # what an observer gets is what is seen and remembered

        seen = yield Ask("see" if kept else "glance", (images, cameras, shown.depth_m, state.floor_y))
        scale = align_log_scale(seen.depth_m, ~(seen.sky | seen.dynamic), shown.depth_m)
        seen = replace(seen, depth_m=seen.depth_m * float(np.exp(scale)))
        moved = (latents - condition.base[0]).abs().mean(1)
        known = shown.visible | remembered.repeat_interleave(stride, 0)
        return _Made(latents, rgb, seen, shown, known, moved), reading.grid is not None

    def _written(
        self, state: WorldState, made: _Made, cameras: Cameras, pixels: Int64[Tensor, " k"]
    ) -> Work[tuple[Perceived, LatentFrames, State]]:
        """What is seen once it has settled, the keyframes `pixels`, and the memory with them.

        Keyframes settle one after another, each on what the one before wrote, and then all other frames on theirs: else
        frames of one chunk would each have a surface of their own where nothing was remembered before it.
        """
        rgb, seen, shown = made.rgb, made.seen, made.shown
        clean = yield Ask("encode", (to_float(rgb[pixels]),))
        grid = cameras.resized(self.latent_size)
        settles = bool(self.preset.anchor) or (self.drawer is not None and seen.doubt is not None)
        at_once = 1 if settles else len(pixels)
        memory, written = state.memory, [state.keyframes[-1]]
        after = Perceived(seen.depth_m.clone(), seen.sky.clone(), seen.dynamic.clone())
        for one, latents in zip(pixels.split(at_once), clean.split(at_once), strict=True):
            there = shown[one] if memory is state.memory else (yield from self._shown(memory, grid[one]))
            settled = yield from self._settled(seen[one], there, cameras[one], state)
            frames, memory = self._remember(memory, latents, rgb[one], settled, cameras[one], written[-1].cameras)
            _put(settled, after, one)
            written.append(frames)
        others = torch.ones(len(cameras), dtype=torch.bool, device=self.device)
        others[pixels] = False
        if settles and len(pixels) < len(cameras):
            there = yield from self._shown(memory, grid[others])
            _put((yield from self._settled(seen[others], there, cameras[others], state)), after, others)
        return after, LatentFrames.cat(written[1:]), memory

    def _shown(self, memory: State, views: Cameras) -> Work[Readout]:
        """What the memory shows of some views, at latent resolution."""
        reading = yield Ask("read", (memory, views))
        return reading.grid or Readout.blank(views, self.channels)

    def _settled(self, seen: Perceived, shown: Readout, cameras: Cameras, state: WorldState) -> Work[Perceived]:
        """What was seen, with its depth moved onto what the memory shows, and drawn where it shows nothing."""
        if self.preset.anchor:
            surface, off = ~(seen.sky | seen.dynamic), 0.0 if seen.doubt is None else DOUBTS * seen.doubt
            limit = torch.as_tensor(self.preset.anchor + off, device=self.device).expand_as(seen.depth_m)
            seen = replace(seen, depth_m=anchored(seen.depth_m, surface, shown, limit))
        if self.drawer is None or seen.doubt is None:
            return seen
        cells, grid, given = to_draw(shown.visible), cameras.resized(self.latent_size), state.keyframes[0]
        features, places = draw_features(seen, cells, shown.depth_m, cameras, state.floor_y)
        off = torch.zeros_like(shown.depth_m)
        if bool(cells.any()):
            off = yield Ask("draw", (torch.cat([features, noise(places, [state.seed] * len(cameras))], 1),))
        eyes_m = state.floor_y - cameras.world_from_camera[:, 1, 3]
        picture = given.depth_m, given.cameras
        return drawn(seen, features, off, shown, grid, picture, eyes_m, self.perception.max_depth_m)

    def _draft(self, state: WorldState, cameras: Cameras) -> Work[Frames]:
        cameras = self._checked(cameras)
        views = cameras.resized(self.latent_size)
        reading = yield Ask("read", (state.memory, views))
        shown = reading.grid or Readout.blank(views, self.channels)
        if reading.settled is not None:
            shown = reading.settled(slice(None))
        last = state.history.latents[-1:]
        latents = torch.where(shown.visible[:, None], shown.tokens, last)
        rgb = (yield Ask("sketch", (latents[:, None], latents[:, None][:, :0])))[:, 0]
        far = torch.nan_to_num(state.keyframes[-1].depth_m[0], nan=self.perception.max_depth_m)
        depth = torch.where(shown.visible, shown.depth_m, far)
        depth = F.interpolate(depth[:, None], size=self.size, mode="nearest")[:, 0]
        nothing = torch.zeros_like(depth, dtype=torch.bool)
        return Frames(rgb, depth, nothing, nothing, shown.visible, cameras)

    def _sketch(self, latents: Float[Tensor, "b t c h w"], overlap: Tensor) -> UInt8[Tensor, "b t H W 3"]:
        if self.tiny_decoder is None:
            return self.parts["decode"](latents, overlap)
        return to_uint8(self.tiny_decoder(latents.flatten(0, 1)).unflatten(0, latents.shape[:2]))

    @torch.inference_mode()
    def _together(self, works: list[Work[T]], exact: bool) -> list[T]:
        return in_step(works, lambda asks: self._answer(asks, exact))

    def _answer(self, asks: list[Ask], exact: bool) -> list[Any]:
        """Every ask's reply; those for the same network with inputs of equal shapes go through it together."""
        alike: dict[Any, list[int]] = {}
        for index, ask in enumerate(asks):
            alike.setdefault((ask.part, *(_shape(value) for value in ask.inputs)), []).append(index)
        replies: list[Any] = [None] * len(asks)
        reads = [index for key in list(alike) if key[0] == "read" for index in alike.pop(key)]
        for index, reading in zip(reads, read_many(self.memory, [asks[i].inputs for i in reads]), strict=True):
            replies[index] = reading
        with self.precision():
            for key, members in alike.items():
                most = len(members)
                if self.device.type == "cpu":  # the first input leads with its frames: (..., channels, height, width)
                    most = max(1, _PIXELS_AT_ONCE // (math.prod(key[1][:-3]) * math.prod(self.size)))
                for start in range(0, len(members), most):
                    group = members[start : start + most]
                    passes = self._passes(key, [asks[index].inputs for index in group], exact)
                    for index, reply in zip(group, passes, strict=True):
                        replies[index] = reply
        return replies

    def _passes(self, key: tuple[Any, ...], inputs: list[tuple[Any, ...]], exact: bool) -> list[Any]:
        """The network's outputs, from one pass where that is allowed.

        Whether a kernel sums alike in a batch and alone depends on the machine, the shapes and the threads. So `exact`
        compares the two when it first meets a case, and where they differ leaves that case to one pass a world.
        """
        part = self.parts[key[0]]

        def alone() -> list[Any]:
            return [part(*one) for one in inputs]

        def batched() -> list[Any]:
            return _split(part(*map(_joined, zip(*inputs, strict=True))), len(inputs))

        if len(inputs) == 1 or (key[0] in ("see", "glance") and not self.perception.frames_alone):
            return alone()
        case = (key, len(inputs), torch.get_num_threads())
        if not exact or self._alike.get(case):
            return batched()
        replies = alone()
        if case not in self._alike:
            self._alike[case] = all(map(_equal, replies, batched()))
        return replies

    def stats(self, state: WorldState) -> dict[str, Any]:
        """What a world holds: points and bytes of its memory, and its drift score."""
        return {"memory_points": len(state.memory), "memory_bytes": state.memory.nbytes, "drift": state.drift}

    def _given_depth(self, depth_m: Float[np.ndarray, "H W"]) -> Float[Tensor, "1 H W"]:
        """Somebody's own depth of the first picture; NaN where they do not know it, and nothing is remembered there."""
        known = np.isfinite(depth_m) & (depth_m > 0)
        if not known.any():
            raise InvalidValueError("the depth of the first picture is nowhere positive; give metres along the view")
        return torch.from_numpy(np.where(known, depth_m, np.nan).astype(np.float32))[None].to(self.device)

    def _condition(
        self, state: WorldState, targets: Cameras, readout: Readout, reading: MemoryReading
    ) -> ChunkCondition:
        """All that the denoiser is told; `readout` shows the memory to the history's and to every coming frame."""
        past, stride = len(state.history.cameras), self.temporal_stride
        overlap, coming = [past - 1], range(past + stride - 1, past + stride * len(targets), stride)
        count = self.denoiser.config.references
        if reading.frames is None:
            keyframes = LatentFrames.cat(state.keyframes)[:-1]  # the last keyframe is the overlap frame itself
            chosen = recall(keyframes.depth_m, keyframes.cameras, targets, count)
            references = PastFrames(keyframes.latents[chosen], keyframes.cameras[chosen])
        else:
            references = reading.frames[:count]
        return make_condition(
            readout[torch.tensor([*overlap, *coming, *range(past - 1)], device=self.device)],
            targets,
            state.history.latents,
            state.history.cameras,
            references.latents,
            references.cameras,
            reading.tokens,
            self.text(state.prompt) if self.text is not None else None,
            reading.settled(torch.tensor([*coming], device=self.device)) if reading.settled else None,
        )

    def _noise(self, state: WorldState, count: int) -> Float[Tensor, "1 n c h w"]:
        """A pure function of the world's seed and of how far it has come, the same on every device."""
        words = np.random.SeedSequence([state.seed, state.frame]).generate_state(2)
        generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
        shape = (1, count, self.channels, *self.latent_size)
        return torch.randn(shape, generator=generator).to(self.device)

    def _remember(
        self,
        memory: State,
        latents: Float[Tensor, "k c h w"],
        rgb: UInt8[Tensor, "k H W 3"],
        seen: Perceived,
        cameras: Cameras,
        before: Cameras,
    ) -> tuple[LatentFrames, State]:
        """Writes keyframes (Eq. 6); `before` is the camera of the last one, or none."""
        known = torch.where(torch.isfinite(seen.depth_m), seen.depth_m, 0.0)  # eyes may say that they do not know
        moves = camera_motion(Cameras.cat([before, cameras]))[len(before) :]
        record = ChunkRecord(latents, known, seen.sky, seen.dynamic, cameras, rgb, moves)
        depth = depth_to_grid(known, record.static, self.latent_size)
        return LatentFrames(latents, depth, cameras.resized(self.latent_size)), self.memory.write(memory, record)

    def _checked(self, cameras: Cameras, stride: int = 1) -> Cameras:
        if len(cameras) == 0 or len(cameras) % stride:
            raise InvalidValueError(f"a chunk needs a positive multiple of {stride} cameras, got {len(cameras)}")
        if tuple(cameras.size) != self.size:
            raise InvalidValueError(f"cameras must be of size {self.size}, got {tuple(cameras.size)}")
        poses, intrinsics = cameras.world_from_camera.float(), cameras.intrinsics_px.float()
        return check_cameras(Cameras(poses, intrinsics, self.size).to(self.device))

    def encode(self, images: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T c h w"]:
        """Image latents of pictures in [-1, 1], each encoded alone."""
        with self.precision():
            return self.codec.encode(images).float()

    def _placed(self, memory: Memory) -> Memory:
        """The memory, and its weights where it has any, on the model's device; they stay in full precision."""
        if isinstance(memory, nn.Module):
            memory.to(self.device).eval().requires_grad_(False)
        return memory

    def precision(self) -> torch.autocast:
        """The autocast that the networks run in: bfloat16 where the hardware is fast at it. Geometry stays outside."""
        return fast_autocast(self.device)


def _interleaved(one: Any, two: Any, order: Int64[Tensor, " n"]) -> Any:
    """The frames of both, put in order."""
    if isinstance(one, Tensor):
        return torch.cat([one, two])[order]
    if one is None:
        return None
    return type(one)(**{f.name: _interleaved(getattr(one, f.name), getattr(two, f.name), order) for f in fields(one)})


def _put(some: Perceived, into: Perceived, pictures: Tensor) -> None:
    into.depth_m[pictures], into.sky[pictures], into.dynamic[pictures] = some.depth_m, some.sky, some.dynamic


def _scene_key(scene: SceneSpec) -> tuple[Any, ...]:
    """Equal for scenes that begin alike."""
    arrays = (scene.image, scene.depth_m, scene.world_from_camera.numpy(), scene.intrinsics_px.numpy())
    digests = (None if a is None else (a.shape, sha256(a.tobytes()).digest()) for a in arrays)
    return (*digests, scene.camera_height_m, scene.prompt)


def _shape(value: Any) -> Any:
    """What must agree for two worlds' values to be joined."""
    if isinstance(value, ChunkCondition):
        context = None if value.context is None else tuple(value.context.shape)
        return tuple(value.clean.shape), value.references, context, value.settled is None
    return tuple(value.shape) if isinstance(value, Tensor) else len(value) if isinstance(value, Cameras) else None


def _joined(values: Sequence[Any]) -> Any:
    """The values of several worlds, of equal shapes, as those of one larger world."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, Cameras):
        return Cameras.cat(values)
    if isinstance(first, ChunkCondition):
        return ChunkCondition.cat(list(values))
    return torch.tensor(values)


def _split(output: Tensor | Perceived, worlds: int) -> list[Any]:
    if isinstance(output, Tensor):
        return list(output.chunk(worlds))
    parts = {f.name: value.chunk(worlds) for f in fields(output) if (value := getattr(output, f.name)) is not None}
    return [Perceived(**dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True)]


def _equal(one: Tensor | Perceived, other: Tensor | Perceived) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Perceived)]
    return all(torch.equal(a, b) for a, b in pairs if a is not None)


def _for_inference(part: Part, resident: torch.device, device: torch.device) -> Part:
    """Frozen, where it waits, its matrix weights rounded once to what autocast would round them to at every call."""
    part = part.to(resident).eval().requires_grad_(False)
    if has_fast_bf16(device):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d, nn.RMSNorm)):
                module.to(torch.bfloat16)
    return part


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one; raises `InvalidValueError` for a device that this machine lacks, and for CUDA
    in a process that was forked from one which used it."""
    if device != "cpu" and torch.cuda._is_in_bad_fork():
        raise InvalidValueError(
            'CUDA does not work in a forked process; start the workers with context="spawn", use device="cpu", or let '
            "gym.make_vec hold all worlds in one process"
        )
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not (isinstance(device, str) and device.startswith("cuda") and torch.cuda.is_available()):
        raise InvalidValueError(f'device must be auto, cpu or an available cuda, got "{device}"; use cpu')
    return torch.device(device)


def load_world(
    preset: str = "mirage-tiny",
    size: tuple[int, int] = (128, 128),
    device: str = "auto",
    weights: str | Path | None = None,
) -> WorldModel:
    """The preset's world model with its weights; one a process for the same arguments.

    `preset` is a name in `envs_config/` or the path of a YAML; `size` is (H, W); `weights` is a folder of weights that
    were trained for this preset, or the folder of a training, in place of those that come with it. Raises
    `UnknownNameError`, `InvalidValueError` or `WeightsError`, each in one sentence.
    """
    folder = None if weights is None else _own(weights)
    model = _load_world(str(preset), check_size(size), str(resolve_device(device)), folder)
    model.name = Path(preset).stem
    return model


def _own(weights: str | Path) -> str:
    """Somebody's weights by a name that means the same wherever the process goes."""
    if not isinstance(weights, (str, Path)):
        raise InvalidValueError(f"weights must be the path of a folder, got {weights!r}")
    place = Path(weights).expanduser()
    return str(place.resolve()) if place.is_dir() else str(weights)


@lru_cache(maxsize=4)
def _load_world(preset: str, size: tuple[int, int], device: str, weights: str | None) -> WorldModel:
    config, place = load_config(preset, Preset), torch.device(device)
    folder = find(weights or config.weights or Path(preset).stem)
    if is_diffusers(folder):
        return _load_released(config, folder, size, place)
    wanted = {"drawer": config.drawer, "tiny_decoder": config.tiny_decoder}
    parts = [part for part in _PARTS if wanted.get(part, part) is not None]
    files = {part: folder / f"{part}.safetensors" for part in parts}
    codec, denoiser = WanCodec(config.codec), Denoiser(config.denoiser)
    load_weights(files["codec"], codec, "codec")
    hashes = {part: sha256_of(path) for part, path in files.items() if path.exists()}
    perception: Perception
    if isinstance(config.perception, PerceptionConfig):
        perception = TinyPerception(config.perception)
        load_weights(files["perception"], perception, "perception")
    else:
        perception = config.perception.load(place, weight_dtype(place))
    load_weights(files["denoiser"], denoiser, "denoiser", codec_hash=hashes["codec"])
    drawer = tiny_decoder = None  # a training that has not come so far has neither
    if config.drawer is not None and "drawer" in hashes:
        drawer = DepthDrawer(config.drawer)
        load_weights(files["drawer"], drawer, "drawer")
    if config.tiny_decoder is not None and "tiny_decoder" in hashes:
        tiny_decoder = TinyDecoder(config.tiny_decoder, codec.channels, codec.spatial_stride)
        load_weights(files["tiny_decoder"], tiny_decoder, "tiny_decoder", codec_hash=hashes["codec"])
    model = WorldModel(
        config, codec, perception, denoiser, size, device, hashes, drawer=drawer, tiny_decoder=tiny_decoder
    )
    if isinstance(model.memory, nn.Module):
        path = folder / "memory.safetensors"
        load_weights(path, model.memory, "memory", codec_hash=hashes["codec"])
        hashes["memory"] = sha256_of(path)
    return model


def _load_released(config: Preset, checkpoint: Path, size: tuple[int, int], device: torch.device) -> WorldModel:
    """The parts of a public checkpoint in diffusers' layout, and the adapter that makes a Mirage of them."""
    if isinstance(config.perception, PerceptionConfig):
        raise InvalidValueError("a public checkpoint brings no eyes of its own; set perception to depth and masks")
    if isinstance(config.memory, ResampledMemoryConfig):
        raise InvalidValueError("no public checkpoint brings weights for memory.kind resampled; set it to latent")
    if config.denoiser.memory_layers and config.adapter is None:
        raise WeightsError(
            f"{checkpoint.name} has not learned to read the memory and the preset names no adapter; set adapter to the "
            "folder of a trained one, train one (mirage-env train --recipe wan2.2-ti2v-5b), or use the training-free "
            "preset (wan2.2-ti2v-5b-training-free)"
        )
    check_extra("wan", "accelerate", "ftfy", "peft", "psutil", "transformers")
    adapter = None if config.adapter is None else find(config.adapter)
    dtype = weight_dtype(device)
    stored = {part: part_bytes(checkpoint / part) for part in ("transformer", "vae")}
    share = dtype.itemsize / 4  # released in float32, which is the most that a file can hold
    needed = int(sum(stored.values()) * share) + (0 if adapter is None else _folder_bytes(adapter))
    check_memory(f"{checkpoint.name} in {dtype}", needed, "cpu", "close other programs or use a larger machine")
    if config.offload == "none":
        check_memory(f"{checkpoint.name} in {dtype}", needed, device, "set offload: model, or group, in the preset")
    check_scheduler(checkpoint, config.sampler)
    codec = WanCodec.from_checkpoint(checkpoint, config.codec, dtype)
    denoiser = load_denoiser(checkpoint, config.denoiser, dtype, adapter)
    perception = config.perception.load(device if config.offload == "none" else torch.device("cpu"), dtype)
    weights = {"checkpoint": checkpoint.name} | (
        {} if adapter is None else {"adapter": sha256_of(adapter / "config.json")}
    )
    text = PromptEncoder(checkpoint, device, dtype)
    return WorldModel(config, codec, perception, denoiser, size, device, weights, text=text)


def weight_dtype(device: torch.device) -> torch.dtype:
    """The precision that weights are held in: what `WorldModel.precision` computes in."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


@dataclass(frozen=True)
class Episode:
    """A walk through a world: its first frame, then the generated ones, and what made them."""

    frames: Frames
    metadata: dict[str, Any]


def generate(
    image: str | Path | UInt8[np.ndarray, "H W 3"],
    cameras: Cameras | Float[np.ndarray, "T 4 4"],
    *,
    preset: str = "mirage-tiny",
    size: tuple[int, int] = (128, 128),
    chunk: int = 8,
    seed: int = 0,
    fov_deg: float | Literal["auto"] = "auto",
    camera_height_m: float = 1.2,
    device: str = "auto",
    weights: str | Path | None = None,
    progress: Any = None,
) -> Episode:
    """Walks through a picture without gym.

    `cameras` are the T cameras after the first one, which is the picture's own, level at the world's origin; an array
    of world_from_camera poses shares the picture's intrinsics. `chunk` latent frames are generated together; the last
    chunk is shorter where `chunk` does not divide T. `weights` are your own, see `load_world`. After every chunk
    `progress(done, total)` is called.
    """
    from mirage_env.images import load_image

    if progress is not None and not callable(progress):
        raise InvalidValueError(f"progress must be a function of (done, total), got {progress!r}")
    size, chunk, seed = check_size(size), check_count("chunk", chunk), check_count("seed", seed, least=0)
    height = check_number("camera_height_m", camera_height_m, 0.05, 100.0)
    given = None if fov_deg == "auto" else check_number("fov_deg", fov_deg, 1.0, 170.0)
    poses = (
        None if isinstance(cameras, Cameras) else torch.from_numpy(check_array("cameras", cameras, (-1, 4, 4)).copy())
    )
    loaded = load_image(image, size)
    model = load_world(preset, size, device, weights)
    fov = given or loaded.fov_deg or DEFAULT_FOV_DEG
    intrinsics = intrinsics_from_fov(float(np.radians(fov)), size)
    if not isinstance(cameras, Cameras):
        assert poses is not None
        cameras = Cameras(poses, intrinsics.expand(len(poses), 3, 3), size)
    first, state = model.begin(SceneSpec(torch.eye(4), intrinsics, height, loaded.rgb), seed)
    frames, step = [first], chunk * model.temporal_stride
    for start in range(0, len(cameras), step):
        chunk_frames, state = model.advance(state, cameras[start : start + step])
        frames.append(chunk_frames)
        if progress is not None:
            progress(min(start + step, len(cameras)), len(cameras))
    metadata = {
        "preset": preset,
        "memory_mode": model.preset.mode,
        "weights_sha256": model.weights,
        "seed": seed,
        "chunk": chunk,
        "fov_deg": fov,
        "camera_height_m": height,
    }
    return Episode(Frames.cat(frames), metadata | model.stats(state))
