from __future__ import annotations

import pytest
import torch

from mirage_env.denoise.denoiser import ChunkCondition, DenoiserConfig, make_condition
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.types import Cameras, Readout


def cameras(count: int, start: float = 0.0) -> Cameras:
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 2, 3] = start + 0.1 * torch.arange(count)
    return Cameras(poses, intrinsics_from_fov(1.2, (4, 6)).repeat(count, 1, 1), (4, 6))


def chunk_of(targets: int = 2, preceding: int = 2, references: int = 1, channels: int = 4) -> ChunkCondition:
    views = 1 + targets + preceding
    visible = torch.rand(views, 4, 6) > 0.3
    readout = Readout(
        tokens=torch.randn(views, channels, 4, 6) * visible[:, None],
        visible=visible,
        depth_m=(1.0 + torch.rand(views, 4, 6)) * visible,
        offset=(torch.rand(views, 2, 4, 6) - 0.5) * visible[:, None],
        index=torch.where(visible, 0, -1),
    )
    return make_condition(
        readout,
        cameras(targets, 0.3),
        torch.randn(preceding + 1, channels, 4, 6),
        cameras(preceding + 1),
        torch.randn(references, channels, 4, 6),
        cameras(references, -1.0),
    )


@pytest.fixture
def config() -> DenoiserConfig:
    return DenoiserConfig(channels=4, heads=2, head_dim=24, ffn_dim=64, layers=3, memory_layers=(0, 2), text_dim=8)


@pytest.fixture
def make_chunk():
    return chunk_of


@pytest.fixture
def some_cameras():
    return cameras
