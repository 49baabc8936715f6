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
    volume = volume[None]
    for size in ((width, 1, 1), (1, 3, 1), (1, 1, width)):
        volume = avg_pool3d(volume, size, 1, tuple(n // 2 for n in size), count_include_pad=False)
    return volume[0]


def _occupancy(
    axes: list[Tensor], cell: Tensor, centre: Tensor, half: Tensor, yaw: Tensor, ellipsoid: Tensor
) -> Tensor:
    """How full every cell is of things that stand still, 0 to 1; `axes` are the cells' centres along x, y and z."""
    full = torch.zeros(GRID)
    low = torch.stack([a[0] for a in axes])
    cos, sin = yaw.cos(), yaw.sin()
    across, along = cos.abs() * half[:, 0] + sin.abs() * half[:, 2], sin.abs() * half[:, 0] + cos.abs() * half[:, 2]
    reach = torch.stack([across, half[:, 1], along], 1)
    first = ((centre - reach - low) / cell - 0.5).ceil().long().clamp(min=0).tolist()
    last = ((centre + reach - low) / cell + 1.5).floor().long().clamp(min=0).tolist()
    for i in range(len(centre)):
        window = tuple(slice(a, max(b, a)) for a, b in zip(first[i], last[i], strict=True))
        at_x, at_y, at_z = (axis[part] - c for axis, part, c in zip(axes, window, centre[i], strict=True))
        if not at_x.numel() * at_y.numel() * at_z.numel():
            continue
        # A box only turns about y, so its plan and its profile are two small problems.
        x = cos[i] * at_x[:, None] - sin[i] * at_z
        z = sin[i] * at_x[:, None] + cos[i] * at_z
        plan = _share(x, half[i, 0], cell[0]) * _share(z, half[i, 2], cell[2])
        cover = plan[:, None] * _share(at_y, half[i, 1], cell[1])[:, None]
        if bool(ellipsoid[i]):
            ring = (x / half[i, 0]).square() + (z / half[i, 2]).square()
            cover = cover * (ring[:, None] + (at_y / half[i, 1]).square()[:, None] < 1.3)
        full[window] = torch.maximum(full[window], cover)
    return full


def _share(offset: Tensor, half: Tensor, cell: Tensor) -> Tensor:
    """The share of a cell's extent along one axis that a span of +-`half` covers."""
    return torch.minimum(((half - offset.abs()) / cell + 0.5).clamp(min=0), (2 * half / cell).clamp(max=1))


def _transmittance(full: Tensor, gap: tuple[Tensor, ...], cell: Tensor) -> Tensor:
    """What share of the light crosses the half-empty cells along `gap`: metres (x, y, z) from cells to the light."""
    shape = full.shape
    grid = torch.meshgrid(*(torch.arange(n) + 0.5 for n in shape), indexing="ij")
    gap = tuple(g / c for g, c in zip(gap, cell.tolist(), strict=True))
    stretch = (gap[0] * gap[0] + gap[1] * gap[1] + gap[2] * gap[2]).sqrt().div_(MARCH_STEPS).clamp_(0.5, 2.0)
    # A rim of empty cells, so that rays that leave the grid stay in the open.
    flat = torch.nn.functional.pad(full, (1, 1, 1, 1, 1, 1)).flatten()
    clear = torch.ones(shape)
    for k in range(MARCH_STEPS):
        share = (k + 0.7) / MARCH_STEPS
        x, y, z = (
            torch.add(o, g, alpha=share).add_(1.0).clamp_(0.5, n + 1.5).to(torch.int32)
            for o, g, n in zip(grid, gap, shape, strict=True)
        )
        number = x.mul_(shape[1] + 2).add_(y).mul_(shape[2] + 2).add_(z)
        density = flat.index_select(0, number.flatten()).view(shape)
        clear *= density.mul_(stretch).mul_(-1.2).add_(1.0).clamp_(min=0.0)
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

    `lamps` are (position, colour, metres at which the light has halved). The grid is exposed so that the places
    where a camera may be are neither dark nor blown out.
    """
    corners = torch.tensor(floors)
    x0, z0, x1, z1 = *corners[:, :2].amin(0).tolist(), *corners[:, 2:].amax(0).tolist()
    box = torch.tensor([[x0 - 0.5, -height - 0.5, z0 - 0.5], [x1 + 0.5, 0.0, z1 + 0.5]])
    cell = (box[1] - box[0]) / torch.tensor(GRID)
    axes = [box[0, i] + (torch.arange(GRID[i]) + 0.5) * cell[i] for i in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    full = _occupancy(axes, cell, centre, half, yaw, ellipsoid)
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

    far = tuple(torch.full(GRID, 4.0 * float(v)) for v in to_sun)
    shine(torch.tensor(SUN), to_sun.expand_as(points), _transmittance(full, far, cell))
    for position, colour, reach in lamps:
        gap = torch.tensor(position, dtype=torch.float32) - points
        square = gap.square().sum(-1, keepdim=True)
        falloff = 1.0 / (1.0 + square / (reach * reach))
        clear = _transmittance(full, gap.unbind(-1), cell)
        shine(2.0 * torch.tensor(colour) * falloff, gap / (square + 0.05).sqrt(), clear)

    light = torch.cat([mean, direction / mean.mean(-1, keepdim=True)], -1).permute(3, 0, 1, 2)
    # Cells inside solids take the light of their empty neighbours, or walls would bleed darkness into the room.
    light = _blur(light * empty, 3) / _blur(empty[None], 3)
    indoors = empty[3:-3, 4:-1, 3:-3] > 0.9
    exposure = 1.0 / light[:3, 3:-3, 4:-1, 3:-3].mean(0)[indoors].mean()
    light[:3] *= exposure * (1.0 if outdoors else 0.9)
    light[:3] = light[:3].clamp(max=3.5)
    return light.contiguous(), box
