"""A true walk to be continued, what is known of it, and what a candidate says that it looks like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mirage_env.geometry.projection import backproject, project
from mirage_env.types import Cameras, Frames, SceneSpec

SKY_M = 1e4
"""A depth at which no walk has parallax."""


@dataclass(frozen=True)
class Walk:
    """A walk in the frame of an environment: the first camera is at the world's origin."""

    name: str
    truth: Frames
    """The given picture, then the frames to generate."""
    camera_height_m: float
    """The floor is the plane y = camera_height_m."""
    seed: int = 0
    """Of the noise that a model draws."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Frames of `truth` that are seen from one pose, the earlier first."""
    pictures: bool = True
    """Whether the pictures after the first are known; else `truth.rgb` holds zeros there."""
    geometry: bool = True
    """Whether depth, sky and moving things are known; else everything counts as static."""

    @property
    def scene(self) -> SceneSpec:
        """What a model is given."""
        first = self.truth.cameras[:1]
        return SceneSpec(
            first.world_from_camera[0], first.intrinsics_px[0], self.camera_height_m, self.truth.rgb[0].numpy()
        )

    @property
    def goal(self) -> Frames:
        """What it has to generate."""
        return self.truth[1:]


@dataclass(frozen=True)
class Guess:
    """What a candidate says that the frames of `Walk.goal` look like."""

    rgb: UInt8[Tensor, "T H W 3"] | None = None
    """None where the candidate is asked for geometry alone."""
    depth_m: Float[Tensor, "T H W"] | None = None
    """Metres; None where the candidate knows none."""
    sky: Bool[Tensor, "T H W"] | None = None
    dynamic: Bool[Tensor, "T H W"] | None = None


def pictures_alone(rgb: UInt8[Tensor, "T H W 3"], cameras: Cameras, stride: int = 8) -> Frames:
    """Frames of which nothing but the pictures is known: no depth, no sky, nothing that moves."""
    nothing = torch.zeros(rgb.shape[:3], dtype=torch.bool)
    cells = torch.ones(len(rgb), rgb.shape[1] // stride, rgb.shape[2] // stride, dtype=torch.bool)
    return Frames(rgb, torch.full(rgb.shape[:3], torch.nan), nothing, nothing, cells, cameras)


def seen_in_first_frame(truth: Frames, tolerance: float = 0.05) -> Bool[Tensor, "T H W"]:
    """Which pixels of the later frames show a surface (or sky) that the first one shows, by true depth."""
    depth = torch.where(truth.sky, SKY_M, truth.depth_m)
    return seen_from(depth[:1], truth.cameras[:1], depth[1:], truth.cameras[1:], tolerance)


def seen_from(
    depth_m: Float[Tensor, "1 H W"],
    camera: Cameras,
    other_depth_m: Float[Tensor, "T H W"],
    others: Cameras,
    tolerance: float = 0.05,
) -> Bool[Tensor, "T H W"]:
    """Which pixels of other views show what the one camera sees.

    A point was seen if it falls into that view and is at most `tolerance` farther than what is shown there, which is
    taken at the farthest of nine pixels: in doubt it was seen.
    """
    height, width = camera.size
    points = backproject(other_depth_m, others)
    position, distance = project(points.reshape(-1, 3), camera)
    x, y = position[0].unbind(-1)
    inside = (distance[0] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    farthest = F.max_pool2d(depth_m, 3, 1, 1)[0]
    surface = farthest[torch.where(inside, y, 0.0).long(), torch.where(inside, x, 0.0).long()]
    return (inside & (distance[0] <= surface * (1.0 + tolerance))).view(points.shape[:3])
