"""Things that stand in scenes, composed of boxes and ellipsoids in the frame of a `Place` (its back at z = 0)."""

from __future__ import annotations

import numpy as np

from mirage_env.simulator.builder import Builder, Paint, Place

ORIGIN = Place(0.0, 0.0)


def table(b: Builder, p: Place, width: float, depth: float, height: float = 0.74) -> None:
    top, leg = b.paint("wood", "veneer", repeat_m=0.8, turned=None), b.paint("veneer", repeat_m=0.4)
    b.solid(p, 0, depth / 2, height - 0.05, (width, 0.05, depth), top)
    for sx in (-1, 1):
        for sz in (-1, 1):
            b.solid(
                p, sx * (width / 2 - 0.06), depth / 2 + sz * (depth / 2 - 0.06), 0, (0.07, height - 0.05, 0.07), leg
            )
    for _ in range(int(b.rng.integers(1, 4))):
        trinket(b, Place(*p.at(b.rng.uniform(-0.4, 0.4) * width, depth * b.rng.uniform(0.25, 0.75)), p.yaw), height)


def trinket(b: Builder, p: Place, height: float) -> None:
    """A vase, a bowl, a pile of books or a small plant on a surface `height` above the floor."""
    kind = int(b.rng.integers(4))
    if kind == 0:
        b.solid(p, 0, 0, height, (0.14, 0.24, 0.14), b.paint("tile", "stone", repeat_m=0.3, tint=0.3), round_=True)
        b.solid(p, 0, 0, height + 0.2, (0.22, 0.22, 0.22), b.paint("leaves", repeat_m=0.4), round_=True)
    elif kind == 1:
        b.solid(
            p, 0, 0, height - 0.02, (0.26, 0.14, 0.26), b.paint("tile", "fabric", repeat_m=0.3, tint=0.3), round_=True
        )
    elif kind == 2:
        for i in range(int(b.rng.integers(1, 4))):
            size = (b.rng.uniform(0.2, 0.28), 0.04, b.rng.uniform(0.16, 0.22))
            b.solid(
                p,
                0,
                0,
                height + 0.04 * i,
                size,
                b.paint("fabric", "drawers", repeat_m=0.6, tint=0.3),
                b.rng.uniform(-0.4, 0.4),
            )
    else:
        b.solid(p, 0, 0, height, (0.16, 0.12, 0.16), b.paint("brick", "stone", repeat_m=0.5))
        b.solid(p, 0, 0, height + 0.1, (0.26, 0.3, 0.26), b.paint("leaves", repeat_m=0.5), round_=True)


def chair(b: Builder, p: Place) -> None:
    frame, seat = b.paint("veneer", repeat_m=0.4), b.paint("fabric", "veneer", repeat_m=0.5)
    b.solid(p, 0, 0.23, 0.42, (0.44, 0.05, 0.44), seat)
    b.solid(p, 0, 0.03, 0.55, (0.42, 0.42, 0.04), seat)
    for sx in (-1, 1):
        b.solid(p, sx * 0.19, 0.03, 0, (0.05, 0.9, 0.05), frame)
        b.solid(p, sx * 0.19, 0.42, 0, (0.05, 0.42, 0.05), frame)


def sofa(b: Builder, p: Place, width: float) -> None:
    cover, cushion = b.paint("fabric", repeat_m=0.8), b.paint("fabric", repeat_m=0.5)
    b.solid(p, 0, 0.45, 0.08, (width, 0.34, 0.86), cover)
    b.solid(p, 0, 0.12, 0.42, (width, 0.42, 0.22), cover)
    for sx in (-1, 1):
        b.solid(p, sx * (width / 2 - 0.1), 0.455, 0.08, (0.2, 0.52, 0.84), cover)
        b.solid(p, sx * (width / 2 - 0.42), 0.34, 0.42, (0.42, 0.38, 0.2), cushion, 0.2 * sx, round_=True)


def bed(b: Builder, p: Place, width: float) -> None:
    wood, quilt, sheet = (
        b.paint("veneer", repeat_m=0.8),
        b.paint("fabric", repeat_m=0.9),
        b.paint("plaster", repeat_m=0.7),
    )
    b.solid(p, 0, 0.04, 0, (width + 0.1, 1.05, 0.07), wood)
    b.solid(p, 0, 1.06, 0.05, (width, 0.25, 1.97), wood)
    b.solid(p, 0, 1.06, 0.3, (width - 0.04, 0.18, 1.92), sheet)
    b.solid(p, 0, 1.35, 0.33, (width + 0.04, 0.19, 1.38), quilt)
    for x in (-0.25, 0.25) if width > 1.2 else (0.0,):
        b.solid(p, x * width, 0.36, 0.44, (0.6, 0.18, 0.4), sheet, round_=True)


def cabinet(b: Builder, p: Place, width: float, height: float, depth: float) -> None:
    body = b.paint("veneer", repeat_m=0.8)
    b.solid(p, 0, depth / 2, 0, (width, height, depth), body)
    count = max(1, round(width / 0.8))
    front = b.paint("drawers", repeat_m=None)
    for i in range(count):
        w = width / count
        b.solid(p, (i + 0.5) * w - width / 2, depth + 0.008, 0.06, (w - 0.02, height - 0.1, 0.016), front)
    if height < 1.3:
        trinket(b, Place(*p.at(b.rng.uniform(-0.3, 0.3) * width, depth / 2), p.yaw), height)


def bookcase(b: Builder, p: Place, width: float, height: float) -> None:
    wood, depth = b.paint("veneer", repeat_m=0.8), 0.32
    b.solid(p, 0, 0.02, 0, (width, height, 0.03), wood)
    for sx in (-1, 1):
        b.solid(p, sx * (width / 2 - 0.015), depth / 2 + 0.03, 0, (0.03, height, depth), wood)
    rows = max(2, round(height / 0.38))
    for i in range(rows + 1):
        b.solid(p, 0, depth / 2 + 0.03, i * (height - 0.03) / rows, (width - 0.07, 0.03, depth - 0.01), wood)
    for i in range(rows):
        gap = height / rows
        filled = b.rng.uniform(0.55, 1.0) * (width - 0.07)
        size = (filled, gap * b.rng.uniform(0.75, 0.9), 0.2)
        b.solid(
            p,
            (filled - width + 0.07) / 2,
            0.15,
            i * (height - 0.03) / rows + 0.028,
            size,
            b.paint("books", repeat_m=None, tint=0.25),
        )


def plant(b: Builder, p: Place, size: float = 1.0) -> None:
    b.solid(p, 0, 0.22, 0, (0.34 * size, 0.34 * size, 0.34 * size), b.paint("brick", "stone", "tile", repeat_m=0.8))
    leaf = b.paint("leaves", repeat_m=0.6)
    b.solid(p, 0, 0.22, 0.3 * size, (0.05, 0.5 * size, 0.05), b.paint("veneer", repeat_m=0.4))
    for _ in range(3):
        x, z = b.rng.uniform(-0.12, 0.12, 2) * size
        extent = size * b.rng.uniform(0.32, 0.5, 3)
        b.solid(p, x, 0.22 + z, size * b.rng.uniform(0.4, 0.8), tuple(extent), leaf, round_=True)


def floor_lamp(b: Builder, p: Place) -> None:
    b.solid(p, 0, 0.2, 0, (0.26, 0.03, 0.26), b.paint("concrete", repeat_m=0.5))
    b.solid(p, 0, 0.2, 0.03, (0.03, 1.4, 0.03), b.paint("concrete", repeat_m=0.5))
    b.solid(p, 0, 0.2, 1.35, (0.38, 0.32, 0.38), b.paint("fabric", "plaster", repeat_m=0.5), round_=True, glow=0.7)
    x, z = p.at(0, 0.45)
    b.light(x, 1.5, z, (0.5, 0.4, 0.26), 1.0)


def picture(b: Builder, p: Place, width: float, height: float, base: float) -> None:
    b.solid(p, 0, 0.015, base, (width, height, 0.03), b.paint("picture", repeat_m=None, tint=0.08))


def closed_door(b: Builder, p: Place, width: float = 0.9, height: float = 2.03) -> None:
    trim = b.paint("plaster", "veneer", repeat_m=0.8)
    b.solid(p, 0, 0.012, 0, (width, height, 0.024), b.paint("door", repeat_m=None, tint=0.15))
    for sx in (-1, 1):
        b.solid(p, sx * (width / 2 + 0.04), 0.025, 0, (0.08, height + 0.08, 0.05), trim)
    b.solid(p, 0, 0.025, height, (width, 0.08, 0.048), trim)


def tree(b: Builder, p: Place, height: float) -> None:
    b.solid(p, 0, 0, 0, (0.22, 0.6 * height, 0.22), b.paint("wood", "veneer", repeat_m=0.6))
    leaf = b.paint("leaves", repeat_m=1.0)
    for _ in range(4):
        x, z = b.rng.uniform(-0.22, 0.22, 2) * height
        extent = height * b.rng.uniform(0.35, 0.6, 3)
        b.solid(p, x, z, height * b.rng.uniform(0.42, 0.65), tuple(extent), leaf, round_=True)


def bush(b: Builder, p: Place, size: float) -> None:
    leaf = b.paint("leaves", repeat_m=0.8)
    for _ in range(3):
        x, z = b.rng.uniform(-0.3, 0.3, 2) * size
        extent = size * b.rng.uniform(0.6, 1.0, 3)
        b.solid(p, x, z, -0.1 * size, tuple(extent), leaf, round_=True)


def bench(b: Builder, p: Place, width: float = 1.5, category: str = "wood") -> None:
    paint = b.paint(category, repeat_m=0.6, turned=True)
    b.solid(p, 0, 0.3, 0.4, (width, 0.06, 0.45), paint)
    for sx in (-1, 1):
        b.solid(p, sx * (width / 2 - 0.15), 0.3, 0, (0.1, 0.4, 0.38), paint)


def crate_pile(b: Builder, p: Place) -> None:
    side = b.rng.uniform(0.4, 0.65)
    b.solid(p, 0, side / 2, 0, (side,) * 3, b.paint("wood", "drawers", repeat_m=None), b.rng.uniform(-0.3, 0.3))
    if b.rng.random() < 0.6:
        b.solid(
            p,
            0.04,
            side / 2,
            side,
            (0.7 * side,) * 3,
            b.paint("wood", "drawers", repeat_m=None),
            b.rng.uniform(-0.6, 0.6),
        )


def walker(b: Builder, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A person, a ball or a small robot that walks to and fro; `start` and `end` are floor points."""
    distance = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    number = b.mover(start, end, 2 * max(distance, 0.3) / b.rng.uniform(0.5, 1.1), b.rng.uniform(0, 1))
    wear, legs = b.paint("costume", repeat_m=0.5, tint=0.25), b.paint("costume", repeat_m=0.35, tint=0.4)
    skin = Paint(b.pick("costume"), (0.95, 0.72, 0.58), 9.0, (0.1, 0.05, 0.05))
    yaw = float(np.arctan2(end[0] - start[0], end[1] - start[1]))
    p = Place(0.0, 0.0, yaw)

    def part(x: float, z: float, base: float, size: tuple[float, float, float], paint: Paint) -> None:
        b.solid(p, x, z, base, size, paint, round_=True, mover=number)

    kind = b.rng.random()
    if kind < 0.6:
        tall = b.rng.uniform(0.85, 1.08)
        for sx in (-1, 1):
            part(sx * 0.1, 0.07 * sx, 0, (0.17, 0.9 * tall, 0.2), legs)
            part(sx * 0.26, -0.07 * sx, 0.78 * tall, (0.12, 0.62 * tall, 0.14), wear)
        part(0, 0, 0.75 * tall, (0.46, 0.72 * tall, 0.28), wear)
        part(0, 0, 1.42 * tall, (0.21, 0.27 * tall, 0.23), skin)
    elif kind < 0.8:
        radius = b.rng.uniform(0.3, 0.7)
        part(0, 0, 0, (radius, radius, radius), wear)
    else:
        part(0, 0, 0.05, (0.5, 0.6, 0.5), wear)
        part(0, 0, 0.55, (0.36, 0.4, 0.36), legs)
        part(0, 0.15, 0.7, (0.2, 0.1, 0.12), skin)
