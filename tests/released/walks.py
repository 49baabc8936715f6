"""A walk through a world made of tiny random checkpoints."""

from __future__ import annotations

import numpy as np
import torch

from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.perception import ComposedPerception
from mirage_env.types import Cameras, SceneSpec
from mirage_env.world_model import WorldModel

SIZE = (64, 96)


def flat_wall(images, cameras):
    """A depth model of one's own: everything is two metres away."""
    return torch.full((len(images), *SIZE), 2.0), None


def scene(prompt: str | None = None) -> SceneSpec:
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    return SceneSpec(torch.eye(4), intrinsics_from_fov(1.2, SIZE), 1.2, image, prompt=prompt)


def path(count: int, start: int = 1) -> Cameras:
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 0, 3] = 0.05 * torch.arange(start, start + count)
    return Cameras(poses, intrinsics_from_fov(1.2, SIZE).expand(count, 3, 3), SIZE)


def walk(model: WorldModel, prompt: str | None = None):
    """Two chunks of two latent frames, with eyes that see a wall."""
    model = model.with_perception(ComposedPerception(flat_wall))
    _, state = model.begin(scene(prompt), seed=3)
    first, state = model.advance(state, path(8))
    second, state = model.advance(state, path(8, 9))
    return torch.cat([first.rgb, second.rgb]), state
