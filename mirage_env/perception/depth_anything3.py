"""Depth Anything 3: metric depth of single views, and of posed views of one scene.

The network alone is used. The package's own interface aligns predicted to known poses by a method that fails for one
view, two views, straight lines and turning on the spot, which is how environments move. So:

  - where the cameras travel, the any-view network sees all of them with their poses, and the scale is the one that fits
    its camera centres to the true ones (`pose_scale`), which a straight line determines as well;
  - else (one view, a pure rotation) the metric network sees each alone: depth = focal length in pixels / 300 x output.

    name               licence          role
    da3metric-large    Apache-2.0       metric (required)
    da3-small, -base   Apache-2.0       multi_view
    da3-large, -giant  CC BY-NC 4.0     multi_view, not for commercial use
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.config import build
from mirage_env.errors import InvalidValueError, MirageError, WeightsError
from mirage_env.types import Cameras
from mirage_env.weights.checkpoint import find, part_bytes, part_config

INSTALL = 'pip install "mirage-env[da3]" && pip install --no-deps depth-anything-3==0.1.1'
"""Its metadata asks for numpy < 2 and torchvision, which the network does not need; hence `--no-deps`."""
PATCH = 14
METRIC_FOCAL_PX = 300.0
"""The focal length at which the metric network's output is metres."""
SKY = 0.3
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DepthAnything3Config:
    multi_view: str | None = None
    """Weights of an any-view network, for cameras that travel; None: every view alone."""
    longer_side_px: int = 504
    """Pictures are seen at this size, rounded to whole patches."""
    travel_m: float = 0.1
    """Cameras travel where the farthest is this far from the first; below, poses do not fix a scale."""

    def __post_init__(self) -> None:
        if self.longer_side_px < PATCH or self.travel_m <= 0:
            raise InvalidValueError(f"need longer_side_px >= {PATCH} and travel_m > 0, got {self}")


def load(weights: str, options: dict[str, Any], device: torch.device, dtype: torch.dtype) -> DepthAnything3:
    """A `DepthModel`. The networks keep float32: their heads are not made for less."""
    config = build(DepthAnything3Config, options, "perception.depth.options")
    metric = load_network(find(weights))
    multi_view = None if config.multi_view is None else load_network(find(config.multi_view))
    return DepthAnything3(metric, multi_view, config).to(device).eval().requires_grad_(False)


def load_network(folder: Path) -> nn.Module:
    """The network of a released checkpoint: its config names one of the package's architectures.

    Raises `MirageError` where the package is missing, `WeightsError` for weights that do not fit.
    """
    holder = nn.Module()  # the released names begin with "model."
    os.environ.setdefault("DA3_LOG_LEVEL", "WARN")  # else it prints a line a call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and omegaconf about how the package uses them
        try:
            from depth_anything_3.cfg import create_object, load_config
            from depth_anything_3.registry import MODEL_REGISTRY
        except ImportError as error:
            raise MirageError(f"Depth Anything 3 is not installed ({error}); run: {INSTALL}") from None
        name = part_config(folder).get("model_name")
        if name not in MODEL_REGISTRY:
            raise WeightsError(f"{folder} holds {name!r}, expected one of {', '.join(sorted(MODEL_REGISTRY))}")
        part_bytes(folder, "model")
        network: nn.Module = create_object(load_config(str(MODEL_REGISTRY[name])))
    holder.model = network
    try:
        load_model(holder, folder / "model.safetensors")  # knows that some LayerNorms are one
    except (SafetensorError, RuntimeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{folder} does not fit {name} ({str(error).splitlines()[0]}); fetch it again") from None
    return network


class DepthAnything3(nn.Module):
    """Implements `DepthModel`."""

    def __init__(self, metric: nn.Module, multi_view: nn.Module | None, config: DepthAnything3Config):
        super().__init__()
        if getattr(metric, "cam_enc", None) is not None:
            raise InvalidValueError(
                "the depth weights must be a metric network (DA3METRIC-LARGE); name an any-view one under multi_view"
            )
        if multi_view is not None and getattr(multi_view, "cam_enc", None) is None:
            raise InvalidValueError("multi_view must be an any-view network (DA3-SMALL, DA3-BASE), which reads poses")
        self.metric, self.multi_view, self.config = metric, multi_view, config

    def forward(
        self, images: Float[Tensor, "T 3 H W"], cameras: Cameras
    ) -> tuple[Float[Tensor, "T H W"], Bool[Tensor, "T H W"] | None]:
        """Depth in metres, and the sky where the metric network saw the pictures."""
        size = (images.shape[2], images.shape[3])
        seen = cameras.resized(self._seen_size(size))
        inputs = F.interpolate(images.float(), size=seen.size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (images.new_tensor(x)[:, None, None] for x in (_MEAN, _STD))
        inputs = ((inputs + 1.0) / 2.0 - mean) / std

        depth = self._together(inputs, seen) if self.multi_view is not None and self._travel(cameras) else None
        if depth is not None:
            return _resized(depth, size), None
        depth, sky = self._alone(inputs, seen)
        return _resized(depth, size), None if sky is None else _resized(sky.float(), size) > 0.5

    def _travel(self, cameras: Cameras) -> bool:
        centres = cameras.world_from_camera[:, :3, 3]
        return bool((centres - centres[:1]).norm(dim=1).max() > self.config.travel_m)

    def _together(self, inputs: Float[Tensor, "T 3 h w"], cameras: Cameras) -> Float[Tensor, "T h w"] | None:
        """Depth of all views in one pass, scaled to metres; None where the predicted cameras do not travel."""
        assert self.multi_view is not None
        known = cameras.camera_from_world @ cameras.world_from_camera[:1]  # the first camera is the origin
        distances = known[:, :3, 3].norm(dim=1)
        told = known.clone()
        told[:, :3, 3] /= distances.median().clamp_min(0.1)
        with torch.random.fork_rng(devices=[]):  # it samples pixels
            output = self.multi_view(inputs[None], told[None], cameras.intrinsics_px[None])
        scale = pose_scale(output["extrinsics"][0].float(), known)
        return None if scale is None else scale * output["depth"][0].float()

    def _alone(
        self, inputs: Float[Tensor, "T 3 h w"], cameras: Cameras
    ) -> tuple[Float[Tensor, "T h w"], Bool[Tensor, "T h w"] | None]:
        """Depth of every view by itself: views ride in the batch dimension."""
        with torch.random.fork_rng(devices=[]):
            output = self.metric(inputs[:, None])
        focal = (cameras.intrinsics_px[:, 0, 0] + cameras.intrinsics_px[:, 1, 1]) / 2.0
        depth = output["depth"][:, 0].float() * (focal / METRIC_FOCAL_PX)[:, None, None]
        sky = output["sky"][:, 0] >= SKY if "sky" in output else None
        return depth, sky

    def _seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = self.config.longer_side_px / max(size)
        height, width = (max(PATCH, round(side * scale / PATCH) * PATCH) for side in size)
        return height, width


def pose_scale(predicted: Float[Tensor, "T _ 4"], known: Float[Tensor, "T 4 4"], least_m: float = 1e-3) -> float | None:
    """The scale that takes predicted camera centres to the known ones (Umeyama); both map world to camera.

    Only centres count, after the best rotation: two of them are enough, and so is a straight line. None where either
    set of cameras stays within `least_m`.
    """
    predicted_centres, known_centres = _centres(predicted), _centres(known)
    spread = predicted_centres.square().sum()
    if min(float(spread), float(known_centres.square().sum())) < least_m**2:
        return None
    left, values, right = torch.linalg.svd(known_centres.T @ predicted_centres)
    mirrored = torch.linalg.det(left) * torch.linalg.det(right) < 0
    return float((values[0] + values[1] + (-values[2] if mirrored else values[2])) / spread)


def _centres(camera_from_world: Float[Tensor, "T _ 4"]) -> Float[Tensor, "T 3"]:
    """Camera centres about their mean."""
    rotation, translation = camera_from_world[:, :3, :3].double(), camera_from_world[:, :3, 3].double()
    centres = -torch.einsum("tji,tj->ti", rotation, translation)
    return centres - centres.mean(0)


def _resized(maps: Float[Tensor, "T h w"], size: tuple[int, int]) -> Float[Tensor, "T H W"]:
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
