"""The true world behind the same protocol: a procedural scene, drawn exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from mirage_env.envs.actions import pose_from_matrix
from mirage_env.envs.floor_plan import FloorPlan
from mirage_env.envs.occupancy import BODY_RADIUS_M
from mirage_env.errors import InvalidValueError, UnknownNameError, check_stride
from mirage_env.geometry.poses import rigid, rotation_from_yaw_pitch_roll
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY, Scene, free, make_scene, move, render, sample_trajectory
from mirage_env.simulator.trajectories import SECONDS_PER_FRAME
from mirage_env.types import Cameras, Frames, SceneSpec

CELL_PX = 8
"""Pixels a side of a cell of `Frames.remembered`, as in the generated world."""
PLAN_CELL_M = 0.05
"""Cells of the true floor plan."""
ROUNDING_M = 1e-4
"""Collisions are worked out in float32; less than this is not a hindrance."""

_scene = lru_cache(maxsize=128)(make_scene)


@dataclass(frozen=True)
class SimulatorState:
    """Where in which scene the world's origin is, and how many frames were drawn."""

    scene: Scene
    scene_from_world: Float64[Tensor, "4 4"]
    """A turn about the vertical and a shift: a scene's floor is y = 0, a world's origin is its first camera."""
    frames: int


class SimulatorWorld:
    """Draws what is there. Its memory is the scene itself: all is remembered, nothing drifts, a draft is the truth.

    `begin` builds the scene of `scene_seed` and draws with `seed` where in it the walk begins.
    """

    temporal_stride = 1
    state_class = SimulatorState

    def __init__(self, size: tuple[int, int], family: str | None = None):
        """`size` (H, W) in multiples of 8; without a `family` each scene's seed chooses one of FAMILIES.

        Raises InvalidValueError and UnknownNameError.
        """
        check_stride(size, CELL_PX)
        if family is not None and family not in (*FAMILIES, HELD_OUT_FAMILY):
            raise UnknownNameError("scene family", family, (*FAMILIES, HELD_OUT_FAMILY))
        self.size, self.family = size, family
        self.latent_size = (size[0] // CELL_PX, size[1] // CELL_PX)

    def family_of(self, scene_seed: int) -> str:
        """The family of the scene that a seed stands for in this world."""
        return self.family or FAMILIES[scene_seed % len(FAMILIES)]

    def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, SimulatorState]:
        """The first frame, from a free place with a view that `seed` draws.

        Raises InvalidValueError for a spec without a scene seed.
        """
        return self.begin_many([scene], [seed])[0]

    def advance(self, state: SimulatorState, cameras: Cameras) -> tuple[Frames, SimulatorState]:
        """What the cameras see, one time step after the other."""
        return self.advance_many([state], [cameras])[0]

    def draft(self, state: SimulatorState, cameras: Cameras) -> Frames:
        """As `advance`, and the state stays."""
        return self.draft_many([state], [cameras])[0]

    def begin_many(
        self, scenes: Sequence[SceneSpec], seeds: Sequence[int], exact: bool = True
    ) -> list[tuple[Frames, SimulatorState]]:
        """`begin` for every scene."""
        states = [self._origin(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)]
        first = [Cameras(scene.world_from_camera[None], scene.intrinsics_px[None], self.size) for scene in scenes]
        return self.advance_many(states, first)

    def advance_many(
        self, states: Sequence[SimulatorState], cameras: Sequence[Cameras], exact: bool = True
    ) -> list[tuple[Frames, SimulatorState]]:
        """`advance` for every state."""
        after = [replace(state, frames=state.frames + len(path)) for state, path in zip(states, cameras, strict=True)]
        return list(zip(self.draft_many(states, cameras), after, strict=True))

    def draft_many(
        self, states: Sequence[SimulatorState], cameras: Sequence[Cameras], exact: bool = True
    ) -> list[Frames]:
        """`draft` for every state, drawn together: a picture is the same, bit for bit, in any company."""
        pairs = list(zip(states, cameras, strict=True))
        poses = [(state.scene_from_world @ path.world_from_camera.double()).float() for state, path in pairs]
        lenses = torch.cat([path.intrinsics_px for path in cameras])
        counts = torch.tensor([len(path) for path in cameras])
        which = torch.arange(len(states)).repeat_interleave(counts)
        frame = torch.cat([state.frames + torch.arange(len(path), dtype=torch.float32) for state, path in pairs])
        drawn = render(
            [state.scene for state in states], which, Cameras(torch.cat(poses), lenses, self.size),
            SECONDS_PER_FRAME * frame, CELL_PX,
        )  # fmt: skip
        ends = counts.cumsum(0).tolist()
        return [replace(drawn[end - len(path) : end], cameras=path) for end, path in zip(ends, cameras, strict=True)]

    def _origin(self, scene: SceneSpec, seed: int) -> SimulatorState:
        if scene.scene_seed is None:
            raise InvalidValueError("a simulated world needs a scene_seed, got none")
        built = _scene(scene.scene_seed, self.family_of(scene.scene_seed))
        start = pose_from_matrix(sample_trajectory(built, np.random.default_rng(seed), "turn", 1)[0])
        yaw, level = torch.tensor(start.yaw, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        origin = torch.tensor([start.x, -scene.camera_height_m, start.z], dtype=torch.float64)
        return SimulatorState(built, rigid(rotation_from_yaw_pitch_roll(yaw, level, level), origin), frames=0)

    def stats(self, state: SimulatorState) -> dict[str, Any]:
        """Zero points and bytes: nothing is remembered where everything is there."""
        return {"memory_points": 0, "memory_bytes": 0, "drift": 0.0}

    def plan(self, state: SimulatorState) -> FloorPlan:
        """Where the body fits, by the true geometry; things that move are not in the way."""
        low, high = state.scene.walkable[:, :2].amin(0), state.scene.walkable[:, 2:].amax(0)
        corners = torch.stack([torch.stack([x, z]) for x in (low[0], high[0]) for z in (low[1], high[1])])
        rotation, shift = state.scene_from_world[[0, 2]][:, [0, 2]], state.scene_from_world[[0, 2], 3]
        in_world = (corners.double() - shift) @ rotation
        first = in_world.amin(0)
        across, along = ((in_world.amax(0) - first) / PLAN_CELL_M).ceil().int().tolist()
        centres = torch.cartesian_prod(torch.arange(across) + 0.5, torch.arange(along) + 0.5).double() * PLAN_CELL_M
        in_scene = ((centres + first) @ rotation.T + shift).float()
        fits = torch.cat([free(state.scene, some, BODY_RADIUS_M) for some in in_scene.split(2048)])
        x, z = first.tolist()
        return FloorPlan(fits.reshape(across, along).numpy(), (x, z), PLAN_CELL_M)

    def move(
        self, state: SimulatorState, start: tuple[float, float], target: tuple[float, float], mode: str
    ) -> tuple[float, float]:
        """How far a body gets from `start` to `target` (world x, z; metres): `target` itself if nothing hinders it."""
        level = torch.tensor([[start[0], 0.0, start[1]], [target[0], 0.0, target[1]]], dtype=torch.float64)
        rotation, shift = state.scene_from_world[:3, :3], state.scene_from_world[:3, 3]
        in_scene = (level @ rotation.T + shift)[:, [0, 2]]
        ends = in_scene.float()
        reached = move(state.scene, ends[:1], ends[1:], BODY_RADIUS_M, mode).double()
        if bool((reached - ends[1:]).norm() < ROUNDING_M):
            return target
        x, z = (reached[0] - shift[[0, 2]]).tolist()
        back = rotation.T @ torch.tensor([x, 0.0, z], dtype=torch.float64)
        return float(back[0]), float(back[2])
