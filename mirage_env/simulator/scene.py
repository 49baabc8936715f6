"""A scene as a value: tensors of boxes, ellipsoids and walkers, their looks, and the light that fills the place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.simulator.builder import Builder
from mirage_env.simulator.layouts import LAYOUTS
from mirage_env.simulator.lighting import bake
from mirage_env.simulator.materials import TRAINING_BANKS, bank

FAMILIES = ("room", "corridor", "apartment", "courtyard")
"""Families that training draws from."""
HELD_OUT_FAMILY = "gallery"
"""A family with layouts and texture generators of its own, that training never draws from."""
TRAINING_SEED = 1_000_000
"""Training draws seeds from here upwards; evaluation keeps below."""
TEXTURES_SEED = 3_000_000
"""From here on every 16 seeds have a texture bank of their own, so that nobody learns textures by heart."""


@dataclass(frozen=True)
class Scene:
    """N objects in a gravity-aligned world: +y down, the floor at y = 0."""

    family: str
    seed: int
    bank: str
    """Key of the texture bank."""
    centre: Float[Tensor, "N 3"]
    """Metres; for walkers' parts relative to the walker."""
    half: Float[Tensor, "N 3"]
    """Half extents of a box, half axes of an ellipsoid, in its own axes."""
    yaw: Float[Tensor, "N"]
    ellipsoid: Bool[Tensor, "N"]
    mover: Int[Tensor, "N"]
    """Which walker carries the object; -1 for what stands still."""
    texture: Int[Tensor, "N"]
    tint: Float[Tensor, "N 3"]
    uv_scale: Float[Tensor, "N 3"]
    """Texture repetitions per metre along the object's axes."""
    uv_offset: Float[Tensor, "N 3"]
    uv_turned: Bool[Tensor, "N"]
    glow: Float[Tensor, "N"]
    """Light given off, as a share of white."""
    path_from: Float[Tensor, "M 3"]
    path_to: Float[Tensor, "M 3"]
    period_s: Float[Tensor, "M"]
    phase: Float[Tensor, "M"]
    zenith: Float[Tensor, "3"]
    horizon: Float[Tensor, "3"]
    cloud_texture: int
    walkable: Float[Tensor, "R 4"]
    """x0, z0, x1, z1 of boxes of floor, in whose union a camera may be."""
    light: Float[Tensor, "6 x y z"]
    """Irradiance on a grid over `light_box`: mean (RGB), and a direction vector that says how it differs by normal."""
    light_box: Float[Tensor, "2 3"]

    def to(self, device: torch.device | str) -> Scene:
        """The same scene on another device."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return Scene(**values)

    def mover_offset(self, time_s: Float[Tensor, "V"]) -> Float[Tensor, "V M 3"]:
        """Where every walker is: to and fro along its path, a pure function of time."""
        cycle = time_s[:, None] / self.period_s + self.phase
        share = 1.0 - (2.0 * (cycle - cycle.floor()) - 1.0).abs()
        share = share * share * (3.0 - 2.0 * share)
        return self.path_from + (self.path_to - self.path_from) * share[..., None]


def bank_of(seed: int, family: str) -> str:
    """Key of the texture bank. Neighbours share one, since clips are rendered seed by seed."""
    if family == HELD_OUT_FAMILY:
        return "held-out"
    if seed < TRAINING_SEED:
        return "evaluation"
    return f"training-{seed // 64 % TRAINING_BANKS if seed < TEXTURES_SEED else seed // 16}"


def make_scene(seed: int, family: str) -> Scene:
    """The scene of a family that a seed stands for; the same seed gives the same scene, bit for bit.

    Seeds of `TRAINING_SEED` and above are for training and draw other textures than the evaluation's seeds below;
    from `TEXTURES_SEED` on there is no end of them.
    """
    if family not in LAYOUTS:
        raise UnknownNameError("scene family", family, LAYOUTS)
    if seed < 0:
        raise InvalidValueError(f"a scene's seed must be 0 or more, got {seed}")
    rng = np.random.default_rng([seed, list(LAYOUTS).index(family)])
    key = bank_of(seed, family)
    builder = Builder(rng, bank(key))
    plan = LAYOUTS[family](builder)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.1)
    to_sun = np.array([np.cos(azimuth) * np.cos(elevation), -np.sin(elevation), np.sin(azimuth) * np.cos(elevation)])
    haze = rng.uniform(0, 1)

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.stack([o[name] for o in builder.objects]), dtype=dtype)

    def paths(index: int, width: int) -> Tensor:
        values = np.array([m[index] for m in builder.movers], dtype=np.float32)
        return torch.from_numpy(values.reshape(-1, width) if width > 1 else values)

    centre, half, yaw = (column(n, torch.float32) for n in ("centre", "half", "yaw"))
    ellipsoid, mover = column("ellipsoid", torch.bool), column("mover", torch.int64)
    still = mover < 0
    light, light_box = bake(
        centre[still], half[still], yaw[still], ellipsoid[still], builder.lights,
        torch.from_numpy(to_sun).float(), plan.floors, plan.height, plan.outdoors,
    )  # fmt: skip
    return Scene(
        family=family, seed=seed, bank=key, centre=centre, half=half, yaw=yaw, ellipsoid=ellipsoid, mover=mover,
        texture=column("texture", torch.int64), tint=column("tint", torch.float32),
        uv_scale=column("uv_scale", torch.float32), uv_offset=column("uv_offset", torch.float32),
        uv_turned=column("uv_turned", torch.bool), glow=column("glow", torch.float32),
        path_from=paths(0, 3), path_to=paths(1, 3), period_s=paths(2, 1), phase=paths(3, 1),
        zenith=torch.tensor([0.10 + 0.18 * haze, 0.24 + 0.14 * haze, 0.55]),
        horizon=torch.tensor([0.62 + 0.2 * haze, 0.72 + 0.08 * haze, 0.85]),
        cloud_texture=builder.pick("clouds"), walkable=torch.tensor(plan.floors, dtype=torch.float32),
        light=light, light_box=light_box,
    )  # fmt: skip
