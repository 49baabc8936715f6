"""What an environment asks of a world, generated or simulated."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from mirage_env.types import Cameras, Frames, Readout, SceneSpec

__all__ = ["Advance", "Begin", "Draft", "LatentWorld", "Need", "SceneSpec", "Walk", "World", "answer"]

T = TypeVar("T")


@runtime_checkable
class World(Protocol):
    """Turns cameras into frames. Stateless: state goes in and comes out.

    A world whose states can be saved also has `state_class`, their dataclass; where states do not fit every world of
    its class, `identity`, what two must have in common (names and values for people); and where they live on a device,
    `placed(state)`, which puts one there.
    """

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        ...

    @property
    def temporal_stride(self) -> int:
        """Sub-frames a step: an action is interpolated over them and the last one is the observation."""
        ...

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of `Frames.remembered`."""
        ...

    def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, Any]:
        """The first frame (one), seen from `scene.world_from_camera`, and the state after it."""
        ...

    def advance(self, state: Any, cameras: Cameras) -> tuple[Frames, Any]:
        """One frame for each camera, in order, and the state that remembers them; the given state is left as it was."""
        ...

    def draft(self, state: Any, cameras: Cameras) -> Frames:
        """A cheap picture for each camera from what the state already knows."""
        ...

    def stats(self, state: Any) -> dict[str, Any]:
        """`memory_points` and `memory_bytes` (int), `drift` (float, 0 is none)."""
        ...


@runtime_checkable
class LatentWorld(World, Protocol):
    """One whose memory holds latent tokens."""

    @property
    def channels(self) -> int:
        """Of a token."""
        ...

    def readout(self, state: Any, cameras: Cameras) -> Readout:
        """What the memory shows to pixel-resolution cameras (Eq. 5), on the grid `latent_size`."""
        ...


class Begin(NamedTuple):
    """A walk needs `World.begin`."""

    scene: SceneSpec
    seed: int


class Advance(NamedTuple):
    """A walk needs `World.advance`."""

    state: Any
    cameras: Cameras


class Draft(NamedTuple):
    """A walk needs `World.draft`."""

    state: Any
    cameras: Cameras


Need = Begin | Advance | Draft
Walk = Generator[Need, Any, T]
"""A reset or a step, up to its result: it yields what it needs of its world, so that many can go together."""


def answer(world: World, needs: Sequence[Need], exact: bool = True) -> list[Any]:
    """What the world gives for each of the needs.

    A world that also has `begin_many`, `advance_many` or `draft_many` (lists of arguments, and `exact`: the same
    numbers as one by one, to the bit) is asked once for all needs of a kind.
    """
    replies: list[Any] = [None] * len(needs)
    for kind, name in ((Begin, "begin"), (Advance, "advance"), (Draft, "draft")):
        chosen = [index for index, need in enumerate(needs) if isinstance(need, kind)]
        many = getattr(world, f"{name}_many", None)
        if many is not None and chosen:
            given = many(*map(list, zip(*(needs[index] for index in chosen), strict=True)), exact=exact)
        else:
            given = [getattr(world, name)(*needs[index]) for index in chosen]
        for index, reply in zip(chosen, given, strict=True):
            replies[index] = reply
    return replies
