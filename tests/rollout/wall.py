"""A world with a known answer in place of the model: a painted wall three metres ahead, and sky behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mirage_env import world_model
from mirage_env.geometry.projection import camera_rays
from mirage_env.rollout.config import Run
from mirage_env.rollout.run import run_shard
from mirage_env.types import Cameras, Frames, SceneSpec

WALL_M = 3.0
SIZE = (32, 48)


class WallWorld:
    """The picture is shown once; from then on the wall, painted by position and by the seed."""

    temporal_stride = 1
    latent_size = (4, 6)
    weights = {"all": "0" * 64}  # noqa: RUF012 (as the model has it)

    def __init__(self, size: tuple[int, int]):
        assert size == SIZE
        self.size = size

    def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, Any]:
        frames = self._draw(Cameras(scene.world_from_camera[None], scene.intrinsics_px[None], self.size), seed)
        shown = {**vars(frames), "rgb": torch.from_numpy(np.array(scene.image))[None]}
        return Frames(**shown), seed

    def advance(self, state: int, cameras: Cameras) -> tuple[Frames, int]:
        return self._draw(cameras, state), state

    def draft(self, state: int, cameras: Cameras) -> Frames:
        raise AssertionError("a rollout needs no draft")

    def stats(self, state: int) -> dict[str, Any]:
        return {"memory_points": 1, "memory_bytes": 1, "drift": 0.0}

    def _draw(self, cameras: Cameras, seed: int) -> Frames:
        rays = torch.einsum("vij,vhwj->vhwi", cameras.world_from_camera[:, :3, :3], camera_rays(cameras))
        origin = cameras.world_from_camera[:, None, None, :3, 3]
        depth = (WALL_M - origin[..., 2]) / rays[..., 2]
        sky = (rays[..., 2] <= 1e-3) | (depth <= 0) | (depth > 60)
        point = origin + depth[..., None] * rays
        rgb = (127.5 + 100 * torch.sin(2 * point + seed % 7)).clamp(0, 255).to(torch.uint8)
        remembered = torch.zeros(len(cameras), *self.latent_size, dtype=torch.bool)
        remembered[:, :, :3] = True
        return Frames(rgb, depth, sky, torch.zeros_like(sky), remembered, cameras)


def load_wall(preset: str, size: tuple[int, int], device: str, weights: str | None = None) -> WallWorld:
    """In place of `load_world`."""
    return WallWorld(size)


def run_before_the_wall(run: Run, out: str) -> None:
    """`run_shard` in a process of its own."""
    world_model.load_world = load_wall
    run_shard(run, out)
