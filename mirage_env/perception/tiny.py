"""The embedded preset's eyes: one small network for depth, sky and moving things.

Next to the picture it sees, in every pixel, the viewing ray, how near the floor plane would be (a known camera height
is what makes depth metric), and what the memory already knows of the depth there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.errors import InvalidValueError
from mirage_env.geometry.projection import camera_rays
from mirage_env.layers import ResidualBlock
from mirage_env.types import Cameras

INPUT_CHANNELS = 8
"""RGB, ray x and y, nearness of the floor plane, nearness and mask of the memory."""
LOWEST_M = 0.1
"""A camera lower than this sees the floor as if it were so high."""
RAY_X, FLOOR, FAR_M = 3, 5, 6.0


@dataclass(frozen=True)
class Perceived:
    """What was seen in T pictures."""

    depth_m: Float[Tensor, "T H W"]
    sky: Bool[Tensor, "T H W"]
    dynamic: Bool[Tensor, "T H W"]
    doubt: Float[Tensor, "T H W"] | None = None
    """Expected absolute error of ln(depth), from eyes that know; see `mirage_env.perception.drawn`."""

    def __getitem__(self, pictures: slice | Tensor) -> Perceived:
        doubt = None if self.doubt is None else self.doubt[pictures]
        return Perceived(self.depth_m[pictures], self.sky[pictures], self.dynamic[pictures], doubt)


@runtime_checkable
class Perception(Protocol):
    """Anything that sees depth, sky and moving things in pictures."""

    frames_alone: bool
    """Whether every picture is seen by itself, so that pictures of several worlds can be seen at once."""
    max_depth_m: float
    """How far it sees."""

    def __call__(
        self,
        images: Float[Tensor, "T 3 H W"],
        cameras: Cameras,
        memory_depth_m: Float[Tensor, "T h w"],
        floor_y: float | Float[Tensor, " worlds"],
    ) -> Perceived:
        """`images` in [-1, 1]; `memory_depth_m` is the memory's readout, 0 for nothing; the floor is y = `floor_y`.

        With several floors, each is that of T / worlds frames in turn; only asked of eyes that see `frames_alone`.
        """


@dataclass(frozen=True)
class PerceptionConfig:
    """A U-Net over 2 x 2 pixel blocks."""

    widths: tuple[int, ...] = (32, 64, 96, 128)
    blocks: int = 2
    """Residual blocks a level."""
    max_depth_m: float = 50.0
    mirrored: bool = False
    """Also look at every picture mirrored, and answer the mean: more exact, at twice the price."""
    doubt: bool = False
    """Also tell how far off depth may be."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 8 or any(w % 8 for w in self.widths):
            raise InvalidValueError(f"widths must be multiples of 8, got {self.widths}")


class TinyPerception(nn.Module):
    """Implements `Perception`; sides must be multiples of `2 ** len(widths)`."""

    frames_alone = True

    def __init__(self, config: PerceptionConfig):
        super().__init__()
        self.config, self.max_depth_m = config, config.max_depth_m
        widths = config.widths
        self.stem = nn.Conv2d(4 * INPUT_CHANNELS, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.encoder = nn.ModuleList(nn.Sequential(*(ResidualBlock(w) for _ in range(config.blocks))) for w in widths)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(w) for _ in range(config.blocks))) for w in widths[:-1]
        )
        self.head = nn.Conv2d(widths[0], 4 * (3 + config.doubt), 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def logits(self, inputs: Float[Tensor, "T 8 H W"]) -> Float[Tensor, "T k H W"]:
        """Log depth (ln metres), the logits of sky and of moving things, and, if told, ln of the doubt.

        Depth is told relative to the floor plane, above the horizon to `FAR_M`: where floor is seen the answer is
        near 0.
        """
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        x = self.stem(F.pixel_unshuffle(inputs, 2))
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.down))):
            x = F.interpolate(self.up[level](x), scale_factor=2.0, mode="nearest") + skips[level]
            x = self.decoder[level](x)
        log_depth, *others = F.pixel_shuffle(self.head(x), 2).float().unbind(1)
        floor = -inputs[:, FLOOR].float().clamp_min(1.0 / FAR_M).log()
        return torch.stack([log_depth + floor, *others], 1)

    def forward(
        self,
        images: Float[Tensor, "T 3 H W"],
        cameras: Cameras,
        memory_depth_m: Float[Tensor, "T h w"],
        floor_y: float | Float[Tensor, " worlds"],
        *,
        look_again: bool = True,
    ) -> Perceived:
        """See `Perception`; without `look_again` there is no second, mirrored look, whatever the config says."""
        if isinstance(floor_y, Tensor):
            floor_y = floor_y.repeat_interleave(len(images) // len(floor_y)).to(images.device)
        with torch.autocast(images.device.type, enabled=False):  # geometry needs full precision
            inputs = perception_inputs(images, cameras, memory_depth_m, floor_y)
        logits = self.logits(inputs)
        if self.config.mirrored and look_again:
            logits = (logits + self.logits(mirror(inputs)).flip(-1)) / 2
        log_depth, sky, dynamic, *log_doubt = logits.unbind(1)
        depth = log_depth.exp().clamp(0.05, self.config.max_depth_m)
        return Perceived(depth, sky > 0.0, dynamic > 0.0, log_doubt[0].exp() if log_doubt else None)

    def glance(self, *inputs: Any) -> Perceived:
        """The same of one look, for pictures that nothing remembers."""
        return self.forward(*inputs, look_again=False)


def perception_inputs(
    images: Float[Tensor, "T 3 H W"], cameras: Cameras, memory_depth_m: Float[Tensor, "T h w"], floor_y: float | Tensor
) -> Float[Tensor, "T 8 H W"]:
    """The network's channels. Nearness is 1 / metres, 0 for nothing; `floor_y` is one height, or one a frame (T,)."""
    rays = camera_rays(cameras)
    floor = floor_nearness(cameras, rays, floor_y)
    seen = (memory_depth_m > 0).float()
    memory = torch.stack([seen / memory_depth_m.clamp_min(0.25), seen], 1)
    memory = F.interpolate(memory, size=images.shape[-2:], mode="nearest")
    return torch.cat([images, rays[..., :2].permute(0, 3, 1, 2), floor[:, None], memory], 1).to(images.dtype)


def floor_nearness(cameras: Cameras, rays: Float[Tensor, "T H W 3"], floor_y: float | Tensor) -> Float[Tensor, "T H W"]:
    """1 / z-depth of the floor plane along every ray, in 1 / metres; 0 above the horizon."""
    height = torch.as_tensor(floor_y, dtype=rays.dtype, device=rays.device) - cameras.world_from_camera[:, 1, 3]
    down = torch.einsum("tj,thwj->thw", cameras.world_from_camera[:, 1, :3], rays)
    return (down / height.clamp_min(LOWEST_M)[:, None, None]).clamp(0.0, 4.0)


def mirror(inputs: Float[Tensor, "T 8 H W"]) -> Float[Tensor, "T 8 H W"]:
    """The network's channels of the mirrored scene."""
    inputs = inputs.flip(-1)
    inputs[:, RAY_X] *= -1
    return inputs
