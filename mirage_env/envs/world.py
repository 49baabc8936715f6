"""What an environment asks of a world, generated or simulated."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from mirage_env.types import Cameras, Frames, SceneSpec

__all__ = ["SceneSpec", "World"]


@runtime_checkable
class World(Protocol):
    """Turns cameras into frames. Stateless: state goes in and comes out."""

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
