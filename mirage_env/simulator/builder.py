"""The pen that layouts draw with: textured boxes and ellipsoids, standing still or walking."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mirage_env.simulator.materials import Bank


@dataclass(frozen=True)
class Paint:
    """One surface look: which texture, in what colour, how large."""

    texture: int
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    repeat_m: float | None = 1.0
    """Metres that one repetition of the texture covers; None stretches it once over each face."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turned: bool = False
    """Swap the texture's axes."""


@dataclass(frozen=True)
class Place:
    """A spot on the floor and a heading: furniture is drawn in its frame (x right, z away from the wall behind)."""

    x: float
    z: float
    yaw: float = 0.0

    def at(self, x: float, z: float) -> tuple[float, float]:
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return self.x + cos * x + sin * z, self.z - sin * x + cos * z


@dataclass
class Builder:
    """Collects the objects of one scene; heights are metres above the floor, turned into y (down) here."""

    rng: np.random.Generator
    bank: Bank
    objects: list[dict] = field(default_factory=list)
    movers: list[tuple] = field(default_factory=list)
    lights: list[tuple] = field(default_factory=list)
    footprints: list[tuple[float, float, float]] = field(default_factory=list)

    def pick(self, *categories: str) -> int:
        options = [t for c in categories for t in self.bank.groups[c]]
        return int(self.rng.choice(options))

    def paint(
        self, *categories: str, repeat_m: float | None = 1.0, tint: float = 0.12, turned: bool | None = False
    ) -> Paint:
        """A random texture of the categories; `tint` is how far colour and brightness may stray."""
        rng = self.rng
        colour = (1 + rng.uniform(-tint, 0.4 * tint)) * (1 + rng.uniform(-0.6 * tint, 0.6 * tint, 3))
        if repeat_m is not None:
            repeat_m *= float(rng.uniform(0.8, 1.3))
        offset = tuple(rng.uniform(0, 1, 3)) if repeat_m is not None else (0.0, 0.0, 0.0)
        turned = bool(rng.random() < 0.5) if turned is None else turned
        return Paint(self.pick(*categories), tuple(colour), repeat_m, offset, turned)

    def solid(
        self,
        place: Place,
        x: float,
        z: float,
        base: float,
        size: tuple[float, float, float],
        paint: Paint,
        yaw: float = 0.0,
        round_: bool = False,
        mover: int = -1,
        glow: float = 0.0,
    ) -> None:
        """A box or ellipsoid of `size` (width, height, depth): foot `base` above the floor, at (x, z) of `place`."""
        half = np.maximum(0.5 * np.asarray(size, dtype=float), 1e-3)
        at_x, at_z = place.at(x, z)
        centre = np.array([at_x, -(base + half[1]), at_z])
        yaw = place.yaw + yaw
        if paint.repeat_m is None:
            scale, offset = 0.5 / half, np.full(3, 0.5)
        else:  # anchored to the world, so that walls made of several boxes continue one pattern
            scale = np.full(3, 1.0 / paint.repeat_m)
            cos, sin = np.cos(yaw), np.sin(yaw)
            anchor = np.array([cos * centre[0] - sin * centre[2], centre[1], sin * centre[0] + cos * centre[2]])
            offset = (anchor * scale if mover < 0 and not round_ else 0.0) + np.asarray(paint.offset)
        self.objects.append(
            dict(centre=centre, half=half, yaw=yaw, ellipsoid=round_, mover=mover, texture=paint.texture,
                 tint=paint.tint, uv_scale=scale, uv_offset=offset, uv_turned=paint.turned, glow=glow)
        )  # fmt: skip

    def light(self, x: float, height: float, z: float, colour: tuple[float, float, float], reach_m: float) -> None:
        """A lamp whose light has halved `reach_m` away."""
        self.lights.append(((x, -height, z), colour, reach_m))

    def mover(self, start: tuple[float, float], end: tuple[float, float], period_s: float, phase: float) -> int:
        """A walker that goes from start to end and back in `period_s`; returns its number for `solid`.

        Its solids are drawn around the origin and carried along the path.
        """
        self.movers.append(((start[0], 0.0, start[1]), (end[0], 0.0, end[1]), period_s, phase))
        return len(self.movers) - 1

    def claim(self, place: Place, width: float, depth: float) -> bool:
        """Whether a strip of floor before `place` (width x depth metres) was still free; if so it is taken."""
        radius = 0.5 * min(width, depth) + 0.04
        count = max(1, int(np.ceil(max(width, depth) / (2 * radius))))
        reach = 0.5 * max(width, depth) - radius
        along = np.linspace(-reach, reach, count) if count > 1 else np.zeros(1)
        discs = [
            (*(place.at(a, 0.5 * depth) if width >= depth else place.at(0, 0.5 * depth + a)), radius) for a in along
        ]
        if any(np.hypot(x - a, z - c) < radius + r for x, z, radius in discs for a, c, r in self.footprints):
            return False
        self.footprints += discs
        return True
