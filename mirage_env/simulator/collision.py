"""Where a body fits: a disc on the floor against everything solid between knee and head."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mirage_env.errors import UnknownNameError
from mirage_env.simulator.scene import Scene

BODY_M = (0.2, 1.8)
"""Heights above the floor between which things are in the way."""
MANY = 1000
SUB_STEP_M = 0.05
"""A move is checked this often, so that it cannot jump through a wall."""
MODES = ("slide", "stop", "none")


def free(scene: Scene, position_xz: Float[Tensor, "N 2"], radius: float) -> Bool[Tensor, "N"]:
    """Whether a disc of `radius` metres at each floor position touches nothing that stands still and lies in bounds.

    Movers are not in the way. Ellipsoids count with the ellipse that they fill on the floor plan.
    """
    base, top = -scene.centre[:, 1] - scene.half[:, 1], -scene.centre[:, 1] + scene.half[:, 1]
    solid = (scene.mover < 0) & (base < BODY_M[1]) & (top > BODY_M[0])
    if len(position_xz) > MANY:  # most things are far from places that lie together
        reach = scene.half[:, [0, 2]].norm(dim=1, keepdim=True) + radius
        away = scene.centre[:, [0, 2]] - scene.centre[:, [0, 2]].clamp(position_xz.amin(0), position_xz.amax(0))
        solid &= (away.abs() <= reach).all(1)
    centre, half, yaw = scene.centre[solid], scene.half[solid], scene.yaw[solid]
    gap = position_xz[:, None] - centre[:, [0, 2]]
    cos, sin = yaw.cos(), yaw.sin()
    x = (cos * gap[..., 0] - sin * gap[..., 1]).abs()
    z = (sin * gap[..., 0] + cos * gap[..., 1]).abs()
    outside = torch.hypot((x - half[:, 0]).clamp(min=0), (z - half[:, 2]).clamp(min=0))
    # Scaling the disc into the ellipse's unit circle is not its exact distance, but never lets it in.
    rounded = torch.hypot(x / (half[:, 0] + radius), z / (half[:, 2] + radius))
    touches = torch.where(scene.ellipsoid[solid], rounded < 1, outside < radius)
    low, high = scene.walkable[:, :2], scene.walkable[:, 2:]
    inside = ((position_xz[:, None] >= low) & (position_xz[:, None] <= high)).all(-1).any(1)
    return inside & ~touches.any(1)


def move(
    scene: Scene,
    start_xz: Float[Tensor, "N 2"],
    end_xz: Float[Tensor, "N 2"],
    radius: float,
    mode: Literal["slide", "stop", "none"] | str = "slide",
) -> Float[Tensor, "N 2"]:
    """The floor position that a disc reaches on its way from `start_xz` to `end_xz`.

    "stop" halts before the first obstacle, "slide" keeps the part of the motion along x or z that stays free, "none"
    ignores obstacles. A disc that starts inside something may leave it.
    """
    if mode not in MODES:
        raise UnknownNameError("collision mode", mode, MODES)
    if mode == "none":
        return end_xz.clone()
    # As many steps as each disc needs by itself, so that its way does not depend on its company.
    steps = ((end_xz - start_xz).norm(dim=1) / SUB_STEP_M).ceil().clamp(min=1)
    delta = (end_xz - start_xz) / steps[:, None]
    # Most ways are free: all their places are looked at together.
    places = [start_xz]
    for k in range(int(steps.max()) if len(steps) else 0):
        places.append(torch.where((steps > k)[:, None], places[-1] + delta, places[-1]))
    if bool(free(scene, torch.cat(places), radius).all()):
        return places[-1].clone()
    ways = [delta] if mode == "stop" else [delta, delta * delta.new_tensor([1, 0]), delta * delta.new_tensor([0, 1])]
    if mode == "slide" and bool((delta[:, 0].abs() < delta[:, 1].abs()).any()):
        swap = (delta[:, 0].abs() < delta[:, 1].abs())[:, None]
        ways[1], ways[2] = torch.where(swap, ways[2], ways[1]), torch.where(swap, ways[1], ways[2])
    at = start_xz.clone()
    stuck = ~free(scene, at, radius)
    halted = torch.zeros_like(stuck)
    for k in range(int(steps.max()) if len(steps) else 0):
        moved = halted | (steps <= k)
        for way in ways:
            goal = at + way
            fits = (free(scene, goal, radius) | stuck) & ~moved
            at = torch.where(fits[:, None], goal, at)
            moved |= fits
        if mode == "stop":
            halted = ~moved | halted
        stuck &= ~free(scene, at, radius)
    return at
