"""The values that travel between the parts, and the one legend of shapes and units.

Axes        OpenCV: x right, y down, z forward. The world is gravity-aligned: +y points down, and its origin is the
            first camera, so that the floor is the plane y = camera height.
Units       metres, radians, z-depth (not ray length). Pixel and cell centres lie at +0.5.
Letters     T frames, V views, N points, C latent channels; H, W pixels; h, w latent cells (H / spatial stride).
Pictures    uint8 (..., H, W, 3) outside, float [-1, 1] (..., 3, H, W) inside.
Transforms  `world_from_camera` maps camera coordinates to world coordinates: x_world = T @ x_camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras that share one image size."""

    world_from_camera: Float[Tensor, "V 4 4"]
    intrinsics_px: Float[Tensor, "V 3 3"]
    """K in pixels of `size`, with pixel centres at +0.5."""
    size: tuple[int, int]
    """(H, W)"""

    def __len__(self) -> int:
        return self.world_from_camera.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        return replace(self, world_from_camera=self.world_from_camera[index], intrinsics_px=self.intrinsics_px[index])

    @property
    def camera_from_world(self) -> Float[Tensor, "V 4 4"]:
        """The extrinsics E: the exact inverse of a rigid transform."""
        rotation = self.world_from_camera[:, :3, :3].transpose(1, 2)
        inverse = torch.zeros_like(self.world_from_camera)
        inverse[:, :3, :3] = rotation
        inverse[:, :3, 3:] = -rotation @ self.world_from_camera[:, :3, 3:]
        inverse[:, 3, 3] = 1.0
        return inverse

    def resized(self, size: tuple[int, int]) -> Cameras:
        """The same cameras over another grid: K^l = diag(w / W, h / H, 1) K (Eq. 7)."""
        (height, width), (new_height, new_width) = self.size, size
        scale = self.intrinsics_px.new_tensor([[new_width / width], [new_height / height], [1.0]])
        return replace(self, intrinsics_px=self.intrinsics_px * scale, size=size)

    def to(self, device: torch.device | str) -> Cameras:
        return replace(
            self, world_from_camera=self.world_from_camera.to(device), intrinsics_px=self.intrinsics_px.to(device)
        )

    @staticmethod
    def cat(cameras: Sequence[Cameras]) -> Cameras:
        """One camera list after another; all must share an image size."""
        return replace(
            cameras[0],
            world_from_camera=torch.cat([c.world_from_camera for c in cameras]),
            intrinsics_px=torch.cat([c.intrinsics_px for c in cameras]),
        )


SKY_M = 1e3
"""Depth at which a memory shows the sky: no step of a walk shifts it."""


@dataclass(frozen=True)
class Readout:
    """What the memory shows to V target views, at latent resolution (Eq. 5)."""

    tokens: Float[Tensor, "V C h w"]
    """The winner's latent token; zero where no point fell."""
    visible: Bool[Tensor, "V h w"]
    """Which cells were hit: the visibility mask m."""
    depth_m: Float[Tensor, "V h w"]
    """z-depth of the winner; zero where no point fell."""
    offset: Float[Tensor, "V 2 h w"]
    """(x, y) in [-0.5, 0.5] cells: where inside its cell the winner fell; zero where no point fell."""
    index: Int[Tensor, "V h w"]
    """Row of the winner in the memory; -1 where no point fell."""

    def __getitem__(self, views: slice | Tensor) -> Readout:
        return Readout(**{f.name: getattr(self, f.name)[views] for f in fields(self)})

    @staticmethod
    def blank(cameras: Cameras, channels: int) -> Readout:
        """What views show when nothing is remembered; the cameras come at latent resolution."""
        size, zeros = cameras.size, cameras.intrinsics_px.new_zeros
        index = torch.full((len(cameras), *size), -1, device=cameras.intrinsics_px.device)
        return Readout(
            zeros(len(cameras), channels, *size),
            index >= 0,
            zeros(len(cameras), *size),
            zeros(len(cameras), 2, *size),
            index,
        )


@dataclass(frozen=True)
class Frames:
    """T frames of a world, as an observer gets them."""

    rgb: UInt8[Tensor, "T H W 3"]
    depth_m: Float[Tensor, "T H W"]
    """z-depth in metres; only meaningful where `sky` is False."""
    sky: Bool[Tensor, "T H W"]
    dynamic: Bool[Tensor, "T H W"]
    """Pixels of things that move by themselves; never written to the memory."""
    remembered: Bool[Tensor, "T h w"]
    """Latent cells that the memory showed (True) or the model invented (False) as the frame was made: what
    keyframes of its chunk invented may be shown, see `Preset.keyframes_first`. All True for ground truth."""
    cameras: Cameras

    def __len__(self) -> int:
        return self.rgb.shape[0]

    def __getitem__(self, index: slice) -> Frames:
        return Frames(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def nbytes(self) -> int:
        """Bytes of the pictures and maps."""
        return sum(getattr(self, f.name).nbytes for f in fields(self) if f.name != "cameras")

    @staticmethod
    def cat(frames: Sequence[Frames]) -> Frames:
        """One run of frames after another."""
        tensors = {
            f.name: torch.cat([getattr(x, f.name) for x in frames]) for f in fields(Frames) if f.name != "cameras"
        }
        return Frames(**tensors, cameras=Cameras.cat([x.cameras for x in frames]))


@dataclass(frozen=True)
class SceneSpec:
    """Where a world begins: a picture to continue, or the seed of a scene to build."""

    world_from_camera: Float[Tensor, "4 4"]
    """First camera: no translation and no yaw, its pitch and roll say how it is tilted against gravity."""
    intrinsics_px: Float[Tensor, "3 3"]
    """K in pixels of the world's `size`; every later camera shares it."""
    camera_height_m: float
    """The floor is the plane y = camera_height_m."""
    image: UInt8[np.ndarray, "H W 3"] | None = None
    """The first frame, at the world's `size`; None where the world draws its own."""
    scene_seed: int | None = None
    """Which scene a simulated world builds; None where an image is given."""
    prompt: str | None = None
    """Words that accompany the image, for worlds that read them."""
    depth_m: Float[np.ndarray, "H W"] | None = None
    """z-depth of the image in metres, where it is known; not positive or not finite where it is not."""
