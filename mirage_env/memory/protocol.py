"""What a memory is, so that one can be exchanged for another: the latent memory, an RGB point cloud, one of your own.

    record --write--> state --read at coming cameras--> reading --> what the denoiser is told

A memory is a class whose state goes in and comes out; it may be an `nn.Module`, and what requires a gradient is then
trained with the denoiser. A preset names it by `memory: {kind: NAME, ...}`; names are those of `MEMORIES` and of the
entry point group `mirage_env.memories`. `examples/custom_memory.py` is one in forty lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.types import Cameras, Readout

S = TypeVar("S", bound="State")
Encode = Callable[[Float[Tensor, "T 3 H W"]], Float[Tensor, "T C h w"]]
"""Pictures in [-1, 1] to image latents: the world's codec, for memories that store something else than latents."""


@dataclass(frozen=True)
class ChunkRecord:
    """What happened in a chunk: T keyframes, each encoded as a single image, and all that is known of them."""

    latents: Float[Tensor, "T C h w"]
    depth_m: Float[Tensor, "_ H W"]
    """z-depth of every pixel, 0 where it is not known; only meaningful where `static`."""
    sky: Bool[Tensor, "_ _ _"]
    dynamic: Bool[Tensor, "_ _ _"]
    """Pixels of things that move by themselves."""
    cameras: Cameras
    """At pixel resolution."""
    rgb: UInt8[Tensor, "_ H W 3"] | None = None
    """The pictures themselves, where the writer has them; a `WorldModel` does."""
    actions: Float[Tensor, "_ A"] | None = None
    """What brought the camera here from the keyframe before, where the writer says so: a `WorldModel` and the trainer
    give the motion itself, `geometry.poses.camera_motion` (A = 6)."""

    @property
    def static(self) -> Bool[Tensor, "_ H W"]:
        """Pixels that show a surface that stays."""
        return ~(self.sky | self.dynamic)


@dataclass(frozen=True)
class PastFrames:
    """Past frames with their cameras, both at latent resolution, the most useful first."""

    latents: Float[Tensor, "k C h w"]
    cameras: Cameras

    def __getitem__(self, index: slice | Tensor) -> PastFrames:
        return PastFrames(self.latents[index], self.cameras[index])


@dataclass(frozen=True)
class MemoryReading:
    """What a memory has to say about V coming views. Every part is optional."""

    grid: Readout | None = None
    """What the views show, cell by cell; without one they are blank."""
    settled: Callable[[slice | Tensor], Readout] | None = None
    """Of some of the views, worked out when it is asked for: cells whose very latents the memory knows. A denoiser of
    residuals leaves them as they are; `grid` shows what they rest on."""
    frames: PastFrames | None = None
    """Frames to show to the denoiser as references; without them it gets the keyframes that `recall` chooses."""
    tokens: Float[Tensor, "n d"] | None = None
    """Further context to attend to, beside the text; d is the denoiser's `text_dim`, n the same at every read."""


@dataclass(frozen=True)
class State(ABC):
    """What a memory holds: a frozen dataclass of tensors, whole numbers and further states (or None). A value."""

    @abstractmethod
    def __len__(self) -> int:
        """How many things are remembered: points, frames, tokens."""

    def tensors(self) -> dict[str, Tensor]:
        """Every leaf by its dotted name; whole numbers become tensors of no dimension."""
        leaves: dict[str, Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            if isinstance(value, State):
                leaves |= {f"{f.name}.{name}": leaf for name, leaf in value.tensors().items()}
            else:
                leaves[f.name] = value if isinstance(value, Tensor) else torch.tensor(value)
        return leaves

    @classmethod
    def from_tensors(cls: type[S], leaves: Mapping[str, Tensor]) -> S:
        """The inverse of `tensors`; raises InvalidValueError where names are missing or unknown."""
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        unknown = set(leaves)
        for f in fields(cls):
            inner = {name: name[len(f.name) + 1 :] for name in leaves if name.startswith(f"{f.name}.")}
            kinds = get_args(hints[f.name]) or (hints[f.name],)  # X | None: a further state that may be missing
            if len(kinds) == 2 and not inner:
                values[f.name] = None
            elif isinstance(kinds[0], type) and issubclass(kinds[0], State):
                values[f.name] = kinds[0].from_tensors({short: leaves[name] for name, short in inner.items()})
                unknown -= set(inner)
            elif f.name not in leaves:
                raise InvalidValueError(f'a {cls.__name__} needs the tensor "{f.name}"; got {sorted(leaves)}')
            else:
                values[f.name] = whole_number(cls, f.name, leaves) if hints[f.name] is int else leaves[f.name]
                unknown.discard(f.name)
        if unknown:
            raise InvalidValueError(f'a {cls.__name__} holds no tensor "{sorted(unknown)[0]}"')
        return cls(**values)

    def to(self: S, device: torch.device | str) -> S:
        """The same state on another device."""
        moved = {n: t.to(device) if t.dim() else t for n, t in self.tensors().items()}
        return self.from_tensors(moved)

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors; whole numbers do not count."""
        return sum(leaf.nbytes for leaf in self.tensors().values() if leaf.dim())


def whole_number(kind: type[State], name: str, leaves: Mapping[str, Tensor]) -> int:
    """One of the leaves of a state of this kind; raises InvalidValueError where it is missing or something else."""
    leaf = leaves.get(name)
    if leaf is None:
        raise InvalidValueError(f'a {kind.__name__} needs the tensor "{name}"; got {sorted(leaves)}')
    if leaf.dim() or leaf.is_floating_point():
        raise InvalidValueError(f'"{name}" of a {kind.__name__} must be one whole number, got {leaf}')
    return int(leaf)


@dataclass(frozen=True)
class AnyMemoryConfig:
    """Base of every memory's config. A preset's `memory:` is that of the class which `kind` names."""

    kind: str = "latent"

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[AnyMemoryConfig]:
        """Which dataclass a YAML's mapping fills; `config.build` asks."""
        return memory_class(str(values.get("kind", "latent"))).config_class


@runtime_checkable
class Memory(Protocol[S]):
    """Writes and reads a state. Called as `SomeMemory(config, encode)` where a preset names it.

    One that reads many worlds better together than one by one has `read_many(states, cameras)`, too.
    """

    config_class: ClassVar[Any]
    """Subclass of `AnyMemoryConfig`: what a preset may say."""
    state_class: ClassVar[Any]
    """Subclass of `State`: what a saved world is read into."""
    config: Any

    def empty(self, channels: int, device: torch.device | str = "cpu") -> S:
        """A memory of nothing, for latents of `channels` channels."""

    def write(self, state: S, record: ChunkRecord) -> S:
        """The memory after a chunk; the old state stays as it was."""

    def read(self, state: S, cameras: Cameras) -> MemoryReading:
        """What it has to say about `cameras`, which come at latent resolution."""


MEMORIES: dict[str, Any] = {
    "latent": "mirage_env.memory.latent:LatentMemory",
    "resampled": "mirage_env.memory.resampled:ResampledMemory",
    "rgb": "mirage_env.memory.rgb:RgbMemory",
    "none": "mirage_env.memory.none:NoMemory",
}
"""Name -> class, or where to import it from. A process may add its own."""
ENTRY_POINT_GROUP = "mirage_env.memories"


def _plugins() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def memory_kinds() -> list[str]:
    """Every name that a preset may give: those of `MEMORIES` and of installed packages."""
    return sorted({*MEMORIES, *_plugins()})


def memory_class(kind: str) -> Any:
    """The class of that name; raises UnknownNameError for one that neither `MEMORIES` nor an entry point has."""
    if kind in MEMORIES:
        found = MEMORIES[kind]
    elif kind in (plugins := _plugins()):
        found = plugins[kind].load()
    else:
        raise UnknownNameError("memory", kind, memory_kinds())
    if isinstance(found, str):
        module, name = found.split(":")
        return getattr(import_module(module), name)
    return found


def make_memory(config: AnyMemoryConfig, encode: Encode) -> Memory:
    """The memory that a preset describes."""
    return memory_class(config.kind)(config, encode)


def read_many(memory: Memory, asked: Sequence[tuple[Any, Cameras]]) -> list[MemoryReading]:
    """What each of several states has to say about its own cameras, in one call where the memory can."""
    together = getattr(memory, "read_many", None)
    if together is None or not asked:
        return [memory.read(state, cameras) for state, cameras in asked]
    return together(*map(list, zip(*asked, strict=True)))
