"""Depth of what nobody has seen: drawn, not averaged.

Where a picture was made up the most likely depth is that of a wall at a middling distance, in every direction: a cave.
True places are nearer here and go on there. So a world draws: eyes tell how far off their depth may be, and a smooth
field, fixed in the world by its seed, says which way. The memory keeps what was drawn, as it keeps all else.

Draws lean farther: a wall once drawn stays, while an opening is drawn again with every step toward it, and may close.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mirage_env.geometry.projection import backproject
from mirage_env.perception.tiny import Perceived
from mirage_env.types import Cameras

WAVES = 8
LENGTHS_M = (2.0, 8.0)
"""Wavelengths: from a doorway and its wall to a room and the next."""


def drawn(
    seen: Perceived,
    unseen: Bool[Tensor, "T h w"],
    cameras: Cameras,
    seed: int,
    max_depth_m: float,
    lean: float = 0.0,
) -> Perceived:
    """What was seen, with its depth d as d exp(s (u + lean)) in cells that the memory does not show, but for holes of
    one or two cells between those that it does: they belong to the surface around them.

    u is a field of mean 0 and variance 1 over the floor, taken where the most likely depth lies, so that frames agree;
    s makes the mean absolute error of ln d the eyes' doubt where nothing leans. `cameras` are at pixel resolution.
    """
    if seen.doubt is None:
        return seen
    around = F.max_pool2d((~unseen).float()[:, None], 3, 1, 1)
    unseen = F.max_pool2d(-around, 3, 1, 1)[:, 0] == 0
    if not bool(unseen.any()):
        return seen
    size = unseen.shape[1], unseen.shape[2]
    coarse = F.interpolate(seen.depth_m[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    places = backproject(coarse, cameras.resized(size))[..., ::2]
    waves, phases = (x.to(places.device) for x in _field(seed))
    field = math.sqrt(2 / WAVES) * torch.cos(places @ waves + phases).sum(-1).nan_to_num(0.0)
    # One value a cell: a surface stays one, where a slope inside a cell would be an edge that the memory leaves out.
    field = F.interpolate(((field + lean) * unseen)[:, None], size=seen.depth_m.shape[1:], mode="nearest")[:, 0]
    spread = math.sqrt(math.pi / 2) * seen.doubt  # of a normal distribution, from its mean absolute deviation
    return replace(seen, depth_m=(seen.depth_m * (spread * field).exp()).clamp(max=max_depth_m))


@lru_cache(maxsize=1024)
def _field(seed: int) -> tuple[Float[Tensor, "2 k"], Float[Tensor, " k"]]:
    """Waves over the floor (radians a metre, along x and z), and where each begins."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    heading, phase = rng.uniform(0, 2 * math.pi, (2, WAVES))
    number = 2 * math.pi / np.exp(rng.uniform(math.log(LENGTHS_M[0]), math.log(LENGTHS_M[1]), WAVES))
    waves = np.stack([number * np.cos(heading), number * np.sin(heading)])
    return torch.from_numpy(waves.astype(np.float32)), torch.from_numpy(phase.astype(np.float32))
