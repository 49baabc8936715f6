"""A flat painted wall, whose pictures from anywhere in front of it are known, and a small random model."""

from __future__ import annotations

import pytest
import torch

from mirage_env.codec.wan import CodecConfig, WanCodec
from mirage_env.denoise.denoiser import Denoiser, DenoiserConfig
from mirage_env.denoise.sampler import SamplerConfig
from mirage_env.evaluation.walk import Walk
from mirage_env.geometry.poses import intrinsics_from_fov
from mirage_env.geometry.projection import backproject
from mirage_env.memory.latent import MemoryConfig
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception
from mirage_env.types import Cameras, Frames
from mirage_env.world_model import Preset, WorldModel

SIZE = (32, 48)
WALL_M = 3.0


def wall_walk(right_m: list[float]) -> Walk:
    """Cameras at the given places along a wall `WALL_M` away, looking straight at it; the first must be 0."""
    count = len(right_m)
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 0, 3] = torch.tensor(right_m)
    cameras = Cameras(poses, intrinsics_from_fov(1.2, SIZE).repeat(count, 1, 1), SIZE)
    depth = torch.full((count, *SIZE), WALL_M)
    points = backproject(depth, cameras)
    waves = torch.stack([(2 * points[..., 0]).sin(), (3 * points[..., 1]).cos(), (points[..., 0] + 1).cos()], -1)
    nothing = torch.zeros(count, *SIZE, dtype=torch.bool)
    remembered = torch.ones(count, SIZE[0] // 8, SIZE[1] // 8, dtype=torch.bool)
    frames = Frames((127.5 + 100 * waves).to(torch.uint8), depth, nothing, nothing, remembered, cameras)
    return Walk("wall", frames, 1.2, seed=5)


@pytest.fixture
def make_walk():
    return wall_walk


@pytest.fixture(scope="session")
def model() -> WorldModel:
    """Untrained: by construction its prediction is the warp itself."""
    torch.manual_seed(1)
    codec = CodecConfig(
        channels=6, base_dim=8, decoder_base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, is_residual=True
    )
    shape = DenoiserConfig(channels=6, heads=2, head_dim=24, ffn_dim=48, layers=2, memory_layers=(0,), text_dim=8)
    perception = PerceptionConfig(widths=(8, 16), blocks=1)
    preset = Preset(codec, perception, MemoryConfig(), shape, SamplerConfig(steps=1))
    return WorldModel(preset, WanCodec(codec), TinyPerception(perception), Denoiser(shape), SIZE)
