"""A world with a known answer: a painted box room that every ray hits where analysis says, and an environment in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from gymnasium.utils import EzPickle

from mirage_env.envs.env import WalkEnv
from mirage_env.envs.world import SceneSpec
from mirage_env.geometry.projection import camera_rays
from mirage_env.types import Cameras, Frames


class BoxRoomWorld:
    """A room of 6 x 2.4 x 6 m, 2 m ahead of its middle; the walls are painted by position, the ceiling is open sky.

    A draft is the frame in grey. The state is the number of frames generated, and the seed.
    """

    def __init__(self, size: tuple[int, int] = (32, 40), temporal_stride: int = 1):
        self.size, self.temporal_stride = size, temporal_stride
        self.latent_size = (size[0] // 8, size[1] // 8)
        self.advances: list[int] = []
        self.drafts = 0

    def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, Any]:
        state = {"seed": seed, "frames": 1, "floor": scene.camera_height_m}
        cameras = Cameras(scene.world_from_camera[None], scene.intrinsics_px[None], self.size)
        return self._draw(state, cameras), state

    def advance(self, state: Any, cameras: Cameras) -> tuple[Frames, Any]:
        self.advances.append(len(cameras))
        return self._draw(state, cameras), {**state, "frames": state["frames"] + len(cameras)}

    def draft(self, state: Any, cameras: Cameras) -> Frames:
        self.drafts += 1
        frames = self._draw(state, cameras)
        grey = frames.rgb.float().mean(-1, keepdim=True).expand(-1, -1, -1, 3).to(torch.uint8)
        return Frames(grey, frames.depth_m, frames.sky, frames.dynamic, ~frames.remembered, frames.cameras)

    def stats(self, state: Any) -> dict[str, Any]:
        return {"memory_points": state["frames"], "memory_bytes": 4 * state["frames"], "drift": float("nan")}

    def _draw(self, state: Any, cameras: Cameras) -> Frames:
        rays = torch.einsum("vij,vhwj->vhwi", cameras.world_from_camera[:, :3, :3], camera_rays(cameras))
        origin = cameras.world_from_camera[:, None, None, :3, 3]
        low = torch.tensor([-3.0, state["floor"] - 2.4, -1.0])
        high = torch.tensor([3.0, state["floor"], 5.0])
        toward = torch.where(rays > 0, high, low)
        distance = (toward - origin) / torch.where(rays.abs() < 1e-9, torch.full_like(rays, 1e-9), rays)
        depth, axis = distance.min(-1)
        point = origin + depth[..., None] * rays
        rgb = (127.5 + 80 * torch.sin(3 * point + state["seed"] % 7)).clamp(0, 255).to(torch.uint8)
        sky = (axis == 1) & (rays[..., 1] < 0)
        remembered = torch.ones(len(cameras), *self.latent_size, dtype=torch.bool)
        return Frames(rgb, depth, sky, torch.zeros_like(sky), remembered, cameras)


class BoxRoomEnv(WalkEnv):
    """An environment in the box room; K is that of the field of view asked for."""

    def __init__(self, size: tuple[int, int] = (32, 40), temporal_stride: int = 1, **walk: Any):
        EzPickle.__init__(self, size, temporal_stride, **walk)
        WalkEnv.__init__(self, BoxRoomWorld(size, temporal_stride), **walk)

    def scene(self, options: Mapping[str, Any]) -> tuple[SceneSpec, dict[str, Any]]:
        intrinsics_px, about = self.lens()
        return SceneSpec(self.first_camera(), intrinsics_px, self.camera_height_m), about


@pytest.fixture
def box_room() -> Callable[..., BoxRoomEnv]:
    """Makes environments in the box room."""
    return BoxRoomEnv


@pytest.fixture
def box_world() -> Callable[..., BoxRoomWorld]:
    """Makes box rooms."""
    return BoxRoomWorld
