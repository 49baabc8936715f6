"""Which past keyframes to show the denoiser: those that saw most of what the target views see."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.poses import check_cameras
from mirage_env.geometry.projection import backproject
from mirage_env.memory.splat import landed
from mirage_env.types import Cameras


def recall(
    keyframe_depth_m: Float[Tensor, "K h w"], keyframe_cameras: Cameras, target_cameras: Cameras, count: int
) -> Int64[Tensor, " R"]:
    """At most `count` keyframes, best first, by reprojection coverage of the target views.

    Each next one is that whose cells land in the most target cells not yet covered, the earliest among equals (it has
    drifted least); the list ends when none adds a cell. Both camera lists are at latent resolution; a depth that is not
    finite and positive marks a cell without a point.
    """
    if len(keyframe_depth_m) != len(keyframe_cameras) or tuple(keyframe_depth_m.shape[1:]) != keyframe_cameras.size:
        raise InvalidValueError(
            f"keyframe depth {tuple(keyframe_depth_m.shape)} does not fit {len(keyframe_cameras)} cameras of "
            f"{keyframe_cameras.size}; pass depth and cameras at latent resolution"
        )
    adds = _landed(keyframe_depth_m, check_cameras(keyframe_cameras), check_cameras(target_cameras))
    chosen: list[int] = []
    while len(chosen) < count and len(adds):
        gain = adds.sum(1)
        best = int((gain == gain.amax()).nonzero()[0])
        if int(gain[best]) == 0:
            break
        chosen.append(best)
        adds = adds & ~adds[best]
    return torch.tensor(chosen, dtype=torch.int64, device=keyframe_depth_m.device)


def _landed(keyframe_depth_m: Tensor, keyframe_cameras: Cameras, target_cameras: Cameras) -> Tensor:
    """(K, V * h * w): does any point of keyframe k fall into this target cell?"""
    known = torch.isfinite(keyframe_depth_m) & (keyframe_depth_m > 0)
    points = backproject(torch.where(known, keyframe_depth_m, 1.0), keyframe_cameras)[known]
    return landed(points, known.nonzero()[:, 0], len(keyframe_cameras), target_cameras).flatten(1)
