from dataclasses import replace

import pytest
import torch

from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.simulator import Scene, make_scene
from mirage_env.types import Cameras


@pytest.fixture(scope="session")
def box_room() -> Scene:
    """An empty room inside which every depth is known: six thick slabs, 4 m wide, 2.5 m high and 6 m deep inside."""
    width, height, depth = 4.0, 2.5, 6.0
    centre = torch.tensor([
        [0.0, 0.5, 0.0], [0.0, -height - 0.5, 0.0],
        [-width / 2 - 0.5, -1.0, 0.0], [width / 2 + 0.5, -1.0, 0.0],
        [0.0, -1.0, -depth / 2 - 0.5], [0.0, -1.0, depth / 2 + 0.5],
    ])  # fmt: skip
    half = torch.tensor([[9.0, 0.5, 9.0]] * 2 + [[0.5, 5.0, 9.0]] * 2 + [[9.0, 5.0, 0.5]] * 2)
    return _only(make_scene(1, "room"), centre, half, walkable=[[-2.0, -3.0, 2.0, 3.0]])


def _only(
    scene: Scene, centre: torch.Tensor, half: torch.Tensor, walkable: list[list[float]],
    yaw: float = 0.0, ellipsoid: bool = False, mover: int = -1,
) -> Scene:  # fmt: skip
    """The scene with just the given objects; looks are borrowed from its first ones."""
    n = len(centre)
    return replace(
        scene, centre=centre, half=half, yaw=torch.full((n,), yaw), ellipsoid=torch.full((n,), ellipsoid),
        mover=torch.full((n,), mover), texture=scene.texture[:n], tint=scene.tint[:n], uv_scale=scene.uv_scale[:n],
        uv_offset=scene.uv_offset[:n], uv_turned=scene.uv_turned[:n], glow=scene.glow[:n],
        walkable=torch.tensor(walkable),
    )  # fmt: skip


def _cameras_at(positions, yaws, size=(64, 64), fov=1.2, pitch=0.0) -> Cameras:
    """Level cameras at (x, y, z) looking along their yaw."""
    yaw = torch.tensor(yaws, dtype=torch.float32)
    rotation = rotation_from_yaw_pitch_roll(yaw, torch.full_like(yaw, pitch), torch.zeros_like(yaw))
    lens = intrinsics_from_fov(fov, size).expand(len(yaw), 3, 3).contiguous()
    return Cameras(rigid(rotation, torch.tensor(positions, dtype=torch.float32)), lens, size)


@pytest.fixture(scope="session")
def only():
    """A scene stripped to given boxes or ellipsoids."""
    return _only


@pytest.fixture(scope="session")
def cameras_at():
    """Level cameras at positions, looking along yaws."""
    return _cameras_at
