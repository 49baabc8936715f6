"""Light baked once per scene on a coarse grid: lamps, sun and sky with soft shadows and corners that darken.

Surfaces then need one trilinear look-up: E(n) = mean * (1 + direction . n), instead of a loop over lamps.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool3d

GRID = (56, 14, 56)
"""Cells along x, y, z."""
MARCH_STEPS = 14
AMBIENT = 0.38
SUN = (1.5, 1.4, 1.2)


def _blur(volume: Tensor, width: int) -> Tensor:
    """Box mean over `width` cells in x and z and 3 in y; at the border over what lies inside."""
    shape, pad = (width, 3, width), (width // 2, 1, width // 2)
    return avg_pool3d(volume[None], shape, 1, pad, count_include_pad=False)[0]


def _occupancy(points: Tensor, cell: Tensor, centre: Tensor, half: Tensor, yaw: Tensor, ellipsoid: Tensor) -> Tensor:
    """How full every cell is of things that stand still, 0 to 1, softened by one cell."""
    full = torch.zeros(points.shape[:3])
    low = points[0, 0, 0]
    for i in range(len(centre)):
        cos, sin = torch.cos(yaw[i]), torch.sin(yaw[i])
        reach = torch.stack([
            half[i, 0] * cos.abs() + half[i, 2] * sin.abs(), half[i, 1], half[i, 0] * sin.abs() + half[i, 2] * cos.abs()
        ])  # fmt: skip
        first = ((centre[i] - reach - low) / cell - 1).floor().long().clamp(min=0).tolist()
        last = ((centre[i] + reach - low) / cell + 2).ceil().long().tolist()
        window = tuple(slice(a, max(b, a)) for a, b in zip(first, last, strict=True))
        at = points[window] - centre[i]
        if at.numel() == 0:
            continue
        x, z = cos * at[..., 0] - sin * at[..., 2], sin * at[..., 0] + cos * at[..., 2]
        local = torch.stack([x, at[..., 1], z], -1)
        # the share of each axis of the cell that the box covers; their product is the share of the volume
        cover = ((half[i] + 0.5 * cell - local.abs()) / cell).clamp(min=0)
        cover = torch.minimum(cover, (2 * half[i] / cell).clamp(max=1)).prod(-1)
        if bool(ellipsoid[i]):
            cover = cover * ((local / half[i]).square().sum(-1) < 1.3)
        full[window] = torch.maximum(full[window], cover)
    return full


def _transmittance(full: Tensor, start: Tensor, end: Tensor, low: Tensor, cell: Tensor) -> Tensor:
    """What share of the light gets from `end` to `start` (X, Y, Z, 3) through the half-empty cells between them."""
    clear = torch.ones(start.shape[:3])
    size = torch.tensor(full.shape)
    strides = torch.tensor([full.shape[1] * full.shape[2], full.shape[2], 1])
    flat = full.flatten()
    gap = (end - start) / cell
    steps = gap.norm(dim=-1, keepdim=True)
    origin = (start - low) / cell + 0.5
    for k in range(MARCH_STEPS):
        at = origin + gap * ((k + 0.7) / MARCH_STEPS)
        index = at.floor().long()
        inside = ((index >= 0) & (index < size)).all(-1)
        cell_number = (index.clamp(min=0).minimum(size - 1) * strides).sum(-1)
        density = flat[cell_number] * inside * (steps[..., 0] / MARCH_STEPS).clamp(0.5, 2.0)
        clear *= (1 - 1.2 * density).clamp(min=0)
    return clear


def bake(
    centre: Float[Tensor, "N 3"],
    half: Float[Tensor, "N 3"],
    yaw: Float[Tensor, "N"],
    ellipsoid: Bool[Tensor, "N"],
    lamps: list[tuple],
    to_sun: Float[Tensor, "3"],
    floors: tuple[tuple[float, float, float, float], ...],
    height: float,
    outdoors: bool,
) -> tuple[Float[Tensor, "6 x y z"], Float[Tensor, "2 3"]]:
    """The irradiance grid of a scene and its (low, high) corners in metres.

    `lamps` are (position, colour, metres at which the light has halved). The grid is exposed so that the places where a camera
    may be are neither dark nor blown out.
    """
    corners = torch.tensor(floors)
    x0, z0, x1, z1 = *corners[:, :2].amin(0).tolist(), *corners[:, 2:].amax(0).tolist()
    box = torch.tensor([[x0 - 0.5, -height - 0.5, z0 - 0.5], [x1 + 0.5, 0.0, z1 + 0.5]])
    cell = (box[1] - box[0]) / torch.tensor(GRID)
    axes = [box[0, i] + (torch.arange(GRID[i]) + 0.5) * cell[i] for i in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    full = _occupancy(points, cell, centre, half, yaw, ellipsoid)
    empty = (1 - full).clamp(min=0.02)

    crowd = 0.6 * _blur(full[None], 5)[0] + 0.4 * _blur(full[None], 9)[0]
    openness = (1 - 1.25 * crowd).clamp(0.15, 1.0)
    sky = torch.tensor([0.75, 0.9, 1.15]) if outdoors else torch.tensor([1.0, 0.98, 0.95])
    ambient = AMBIENT * (1.6 if outdoors else 1.0) * openness[..., None] * sky
    mean = ambient
    direction = torch.zeros_like(points)
    direction[..., 1] = -0.28 * ambient.mean(-1)

    def shine(colour: Tensor, toward: Tensor, clear: Tensor) -> None:
        nonlocal mean, direction
        mean = mean + 0.42 * colour * clear[..., None]
        direction = direction + 0.5 * colour.mean(-1, keepdim=True) * clear[..., None] * toward

    sun_end = points + to_sun * 4.0
    shine(torch.tensor(SUN), to_sun.expand_as(points), _transmittance(full, points, sun_end, box[0], cell))
    for position, colour, reach in lamps:
        gap = torch.tensor(position, dtype=torch.float32) - points
        square = gap.square().sum(-1, keepdim=True)
        falloff = 1.0 / (1.0 + square / (reach * reach))
        clear = _transmittance(full, points, points + gap, box[0], cell)
        shine(2.0 * torch.tensor(colour) * falloff, gap / (square + 0.05).sqrt(), clear)

    light = torch.cat([mean, direction / mean.mean(-1, keepdim=True)], -1).permute(3, 0, 1, 2)
    # Cells inside solids take the light of their empty neighbours, or walls would bleed darkness into the room.
    light = _blur(light * empty, 3) / _blur(empty[None], 3)
    indoors = empty[3:-3, 4:-1, 3:-3] > 0.9
    exposure = 1.0 / light[:3, 3:-3, 4:-1, 3:-3].mean(0)[indoors].mean()
    light[:3] *= exposure * (1.0 if outdoors else 0.9)
    light[:3] = light[:3].clamp(max=3.5)
    return light.contiguous(), box
