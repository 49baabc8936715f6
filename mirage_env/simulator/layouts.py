"""The families of places: how rooms, corridors, apartments, courtyards and galleries are laid out.

Every layout draws around the origin with a `Builder` and returns its `Plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mirage_env.simulator import furniture
from mirage_env.simulator.builder import Builder, Paint, Place
from mirage_env.simulator.furniture import ORIGIN

DOOR_TOP = 2.06
Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class Plan:
    """What a layout tells besides its objects."""

    floors: tuple[Rect, ...]
    """Where a camera may be: the union of x0, z0, x1, z1."""
    height: float
    outdoors: bool
    """Whether the sun and the sky light the place directly."""


@dataclass(frozen=True)
class Opening:
    """A hole in a wall: centre along the wall and width, from `base` to `top` above the floor."""

    along: float
    width: float
    base: float = 0.0
    top: float = DOOR_TOP


@dataclass(frozen=True)
class Wall:
    """A drawn wall: `place` stands at its start, x runs along it, z points into the room."""

    place: Place
    length: float
    openings: tuple[Opening, ...]

    def spot(self, along: float, off: float = 0.0) -> Place:
        return Place(*self.place.at(along, off), self.place.yaw)

    def clear(self, along: float, width: float, base: float = 0.0, top: float = 3.0) -> bool:
        """Whether a stretch of wall has no opening."""
        inside = 0.5 * width - 0.01 <= along <= self.length - 0.5 * width + 0.01
        return inside and all(
            abs(o.along - along) > 0.5 * (o.width + width) + 0.12 or o.base > top or o.top < base for o in self.openings
        )


def wall(
    b: Builder, start: tuple[float, float], end: tuple[float, float], height: float, paint: Paint, trim: Paint,
    openings: tuple[Opening, ...] = (), thickness: float = 0.1, skirting: bool = True, glazing: bool = True,
) -> Wall:  # fmt: skip
    """A wall whose room side is on the left of start -> end (seen from above with z up), with its openings and trim."""
    dx, dz = end[0] - start[0], end[1] - start[1]
    length = float(np.hypot(dx, dz))
    place = Place(start[0], start[1], float(np.arctan2(-dz, dx)))

    def piece(left: float, right: float, base: float, top: float, skirt: bool) -> None:
        if right - left < 0.02 or top - base < 0.02:
            return
        middle = 0.5 * (left + right)
        b.solid(place, middle, -thickness / 2, base, (right - left, top - base, thickness), paint)
        if skirt:
            b.solid(place, middle, 0.006, 0, (right - left, 0.09, 0.012), trim)

    cursor = 0.0
    for o in sorted(openings, key=lambda o: o.along):
        left, right = o.along - o.width / 2, o.along + o.width / 2
        piece(cursor, left, 0, height, skirting)
        piece(left, right, 0, o.base, skirting)
        piece(left, right, o.top, height, False)
        cursor = right
        for side in (left - 0.035, right + 0.035):
            b.solid(
                place, side, 0.012, max(o.base - 0.07, 0), (0.07, o.top - max(o.base - 0.07, 0) + 0.07, 0.024), trim
            )
        b.solid(place, o.along, 0.012, o.top, (o.width, 0.07, 0.024), trim)
        if o.base > 0 and glazing:
            b.solid(place, o.along, 0.04, o.base - 0.05, (o.width + 0.1, 0.05, 0.12), trim)
            b.solid(place, o.along, -thickness / 2, o.base, (0.045, o.top - o.base, 0.04), trim)
            for base in (o.base, o.base + 0.62 * (o.top - o.base), o.top - 0.04):
                b.solid(place, o.along, -thickness / 2, base, (o.width, 0.04, 0.036), trim)
    piece(cursor, length, 0, height, skirting)
    return Wall(place, length, tuple(openings))


def shell(
    b: Builder, x0: float, z0: float, x1: float, z1: float, height: float,
    openings: tuple[tuple[Opening, ...], ...] = ((), (), (), ()), windows: tuple[int, ...] = (),
) -> list[Wall]:  # fmt: skip
    """Floor, ceiling, lamps and four walls (at z0, x1, z1, x0) of a room; the floor before doors is kept clear."""
    rng = b.rng
    side = b.paint(
        *rng.choice(["wallpaper", "plaster", "wallpaper", "brick", "tile"], 1), repeat_m=rng.uniform(0.9, 1.8)
    )
    accent = b.paint("wallpaper", "brick", "plaster", "stone", repeat_m=1.4) if rng.random() < 0.4 else side
    trim = b.paint("plaster", "veneer", repeat_m=0.9)
    floor = b.paint("wood", "wood", "tile", "pile", "stone", repeat_m=1.5, turned=None)
    ceiling = b.paint("plaster", "concrete", repeat_m=2.2, tint=0.05)
    margin = 0.08
    cx, cz, w, d = (x0 + x1) / 2, (z0 + z1) / 2, x1 - x0 + 2 * margin, z1 - z0 + 2 * margin
    b.solid(ORIGIN, cx, cz, -0.05, (w, 0.05, d), floor)
    b.solid(ORIGIN, cx, cz, height, (w, 0.12, d), ceiling)
    corners = [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]
    walls = []
    for i in range(4):
        start, end = corners[i], corners[(i + 1) % 4]
        holes = list(openings[i])
        length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
        if i in windows and not holes:
            count = max(1, int(length // 2.6))
            width = rng.uniform(0.9, 1.7)
            base, top = rng.uniform(0.55, 1.0), rng.uniform(1.95, min(2.3, height - 0.15))
            holes += [Opening((k + 0.5) * length / count, width, base, top) for k in range(count)]
        drawn = wall(b, start, end, height, accent if i == 0 else side, trim, tuple(holes), thickness=margin)
        walls.append(drawn)
        for o in holes:
            if o.base == 0:
                b.footprints.append((*drawn.place.at(o.along, 0.2), 0.75))
            else:
                x, z = drawn.place.at(o.along, 0.5)
                b.light(x, 0.5 * (o.base + o.top), z, (0.75, 0.8, 0.9), 1.1 * o.width)
                if rng.random() < 0.6:
                    curtain = b.paint("fabric", repeat_m=0.7)
                    for s in (-1, 1):
                        along = o.along + s * (o.width / 2 + 0.16)
                        if 0.1 < along < length - 0.1:
                            b.solid(drawn.place, along, 0.08, 0.12, (0.3, o.top + 0.05, 0.1), curtain)
    for k in range(max(1, round((x1 - x0) / 4)) * max(1, round((z1 - z0) / 4))):
        nx, nz = max(1, round((x1 - x0) / 4)), max(1, round((z1 - z0) / 4))
        x, z = x0 + (k % nx + 0.5) * (x1 - x0) / nx, z0 + (k // nx + 0.5) * (z1 - z0) / nz
        warm = rng.uniform(0.6, 1.0)
        if rng.random() < 0.5:
            b.solid(ORIGIN, x, z, height - 0.1, (0.5, 0.09, 0.5), b.paint("plaster", repeat_m=0.5), glow=1.0)
        else:
            b.solid(
                ORIGIN,
                x,
                z,
                height - 0.5,
                (0.4, 0.3, 0.4),
                b.paint("fabric", "plaster", repeat_m=0.5),
                round_=True,
                glow=0.8,
            )
            b.solid(ORIGIN, x, z, height - 0.25, (0.02, 0.25, 0.02), trim)
        b.light(x, height - 0.65, z, (1.0, 0.78 + 0.2 * warm, 0.55 + 0.4 * warm), 1.8)
    return walls


def furnish(b: Builder, walls: list[Wall], density: float = 0.8) -> None:
    """Lines the walls with furniture and hangs pictures where the wall is bare."""
    rng = b.rng
    for w in walls:
        along = rng.uniform(0.1, 0.5)
        while along < w.length - 0.4:
            kind = rng.choice(["cabinet", "tall", "bookcase", "sofa", "bed",
                               "table", "plant", "lamp", "crates", "none"],
                              p=[0.17, 0.1, 0.17, 0.12, 0.07, 0.12, 0.08, 0.05, 0.04, 0.08])  # fmt: skip
            width, depth, height = {
                "cabinet": (rng.uniform(0.7, 1.8), rng.uniform(0.38, 0.6), rng.uniform(0.7, 1.1)),
                "tall": (rng.uniform(0.8, 1.6), rng.uniform(0.45, 0.6), rng.uniform(1.7, 2.2)),
                "bookcase": (rng.uniform(0.7, 1.5), 0.36, rng.uniform(1.1, 2.1)),
                "sofa": (rng.uniform(1.5, 2.2), 0.9, 0.85),
                "bed": (rng.uniform(0.95, 1.7), 2.08, 1.1),
                "table": (rng.uniform(0.9, 1.5), rng.uniform(0.5, 0.7), 0.74),
                "plant": (0.5, 0.5, 1.2), "lamp": (0.4, 0.45, 1.7), "crates": (0.7, 0.7, 0.9), "none": (0.8, 0.3, 0.0),
            }[kind]  # fmt: skip
            middle = along + width / 2
            spot = w.spot(middle, 0.03)
            roomy = kind == "none" or (
                rng.random() < density and w.clear(middle, width, 0, height) and b.claim(spot, width, depth)
            )
            if roomy:
                if kind == "cabinet" or kind == "tall":
                    furniture.cabinet(b, spot, width, height, depth)
                elif kind == "bookcase":
                    furniture.bookcase(b, spot, width, height)
                elif kind == "sofa":
                    furniture.sofa(b, spot, width)
                elif kind == "bed":
                    furniture.bed(b, spot, width)
                elif kind == "table":
                    furniture.table(b, spot, width, depth)
                elif kind == "plant":
                    furniture.plant(b, spot, rng.uniform(0.8, 1.3))
                elif kind == "lamp":
                    furniture.floor_lamp(b, spot)
                elif kind == "crates":
                    furniture.crate_pile(b, spot)
            low = height if roomy else 0.0
            span = rng.uniform(0.45, 1.1)
            tall = span * rng.uniform(0.65, 1.2)
            if low < 1.2 and rng.random() < 0.75 and w.clear(middle, span, 1.2, 2.2):
                furniture.picture(b, w.spot(middle), span, tall, max(low + 0.15, 1.55 - tall / 2))
            along += max(width, span) + rng.uniform(0.1, 0.5)


def middle_piece(b: Builder, x0: float, z0: float, x1: float, z1: float) -> None:
    """A rug, and perhaps a table with chairs, in the middle of a room."""
    rng = b.rng
    x, z = (x0 + x1) / 2 + rng.uniform(-0.4, 0.4), (z0 + z1) / 2 + rng.uniform(-0.4, 0.4)
    yaw = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.06)
    width, depth = rng.uniform(1.6, 2.6), rng.uniform(1.2, 1.8)
    if rng.random() < 0.75:
        b.solid(Place(x, z, yaw), 0, 0, 0, (width, 0.012, depth), b.paint("carpet", repeat_m=None))
    if rng.random() < 0.6 and min(x1 - x0, z1 - z0) > 3.4:
        w, d = rng.uniform(0.9, 1.6), rng.uniform(0.7, 0.95)
        here = Place(x, z, yaw)
        spot = Place(*here.at(0, -d / 2), yaw)
        if b.claim(spot, w, d):
            furniture.table(b, spot, w, d)
            for side in (0, 1):
                for k in range(int(rng.integers(1, 3))):
                    sx = (k - 0.5) * 0.55 * w + rng.normal(0, 0.04)
                    offset = (d / 2 + 0.12) * (1 if side else -1)
                    turn = yaw + (0 if side == 0 else np.pi) + np.pi + rng.normal(0, 0.15)
                    at = here.at(sx, offset + (0.25 if side else -0.25))
                    seat = Place(*at, turn)
                    furniture.chair(b, Place(*seat.at(0, -0.25), turn))


def outside(b: Builder, radius: float, wild: bool = True) -> None:
    """Ground around the building, and something to see through the windows."""
    rng = b.rng
    b.solid(ORIGIN, 0, 0, -0.12, (90, 0.05, 90), b.paint("grass", "grass", "stone", repeat_m=2.5))
    if not wild:
        return
    for _ in range(int(rng.integers(7, 12))):
        angle, far = rng.uniform(0, 2 * np.pi), radius + rng.uniform(4, 14)
        spot = Place(far * np.cos(angle), far * np.sin(angle), rng.uniform(0, 3))
        kind = rng.random()
        if kind < 0.45:
            furniture.tree(b, spot, rng.uniform(3, 6))
        elif kind < 0.75:
            furniture.bush(b, spot, rng.uniform(1, 2.5))
        else:
            size = (rng.uniform(5, 9), rng.uniform(4, 9), rng.uniform(4, 7))
            b.solid(
                Place(spot.x * 1.5, spot.z * 1.5, spot.yaw), 0, 0, -0.1, size, b.paint("facade", "brick", repeat_m=3.5)
            )


def walkers(b: Builder, x0: float, z0: float, x1: float, z1: float, share: float = 0.36) -> None:
    """In about a third of the scenes one or two movers cross the place."""
    rng = b.rng
    if rng.random() > share:
        return
    for _ in range(int(rng.integers(1, 3))):
        ends = [(rng.uniform(x0 + 0.5, x1 - 0.5), rng.uniform(z0 + 0.5, z1 - 0.5)) for _ in range(8)]
        start = ends[0]
        end = max(ends[1:], key=lambda e: np.hypot(e[0] - start[0], e[1] - start[1]))
        furniture.walker(b, start, end)


def room(b: Builder) -> Plan:
    rng = b.rng
    w, d, height = rng.uniform(3.2, 7.5), rng.uniform(3.2, 7.5), rng.uniform(2.4, 3.3)
    x0, z0, x1, z1 = -w / 2, -d / 2, w / 2, d / 2
    sides = rng.permutation(4)
    windows = tuple(int(s) for s in sides[: int(rng.integers(1, 3))])
    walls = shell(b, x0, z0, x1, z1, height, windows=windows)
    if rng.random() < 0.9:
        w_door = walls[int(sides[3])]
        along = rng.uniform(0.7, w_door.length - 0.7)
        furniture.closed_door(b, w_door.spot(along))
        b.footprints.append((*w_door.place.at(along, 0.2), 0.7))
        walls[int(sides[3])] = Wall(w_door.place, w_door.length, (*w_door.openings, Opening(along, 1.0)))
    middle_piece(b, x0, z0, x1, z1)
    furnish(b, walls, 0.85)
    outside(b, 5)
    walkers(b, x0, z0, x1, z1)
    return Plan(((x0, z0, x1, z1),), height, False)


def corridor(b: Builder) -> Plan:
    rng = b.rng
    half, length, height = rng.uniform(0.8, 1.3), rng.uniform(8, 14), rng.uniform(2.4, 3.0)
    z0, z1 = -length / 2, length / 2
    gap = 0.16
    holes: tuple[list[Opening], ...] = ([], [], [], [])
    niches = []
    for side in (1, 3):
        for _ in range(int(rng.integers(1, 3))):
            along, width = rng.uniform(1.2, length - 1.2), rng.uniform(0.95, 1.5)
            if all(abs(o.along - along) > 3.6 for o in holes[side]):
                holes[side].append(Opening(along, width))
                niches.append((side, along, width))
    walls = shell(b, -half, z0, half, z1, height, tuple(tuple(h) for h in holes), windows=(0, 2))
    floors: list[Rect] = [(-half, z0, half, z1)]
    for side, along, width in niches:
        deep, wide = rng.uniform(2.2, 3.4), rng.uniform(2.2, 3.3)
        z = z0 + along if side == 1 else z1 - along
        lo, hi = max(z - wide / 2, z0), min(z + wide / 2, z1)
        x0, x1 = (half + gap, half + gap + deep) if side == 1 else (-half - gap - deep, -half - gap)
        back = 3 if side == 1 else 1
        inner = Opening(hi - z if back == 3 else z - lo, width)
        sides = tuple((inner,) if i == back else () for i in range(4))
        side_walls = shell(b, x0, lo, x1, hi, height, sides, windows=(4 - back,))
        sill = b.paint("wood", "stone", repeat_m=0.8)
        b.solid(ORIGIN, np.sign(x0 + x1) * (half + gap / 2), z, -0.05, (gap, 0.051, width), sill)
        furnish(b, side_walls, 0.7)
        floors.append((x0, lo, x1, hi))
        floors.append((min(x1, half), z - width / 2, max(x0, -half), z + width / 2))
    for w in (walls[1], walls[3]):
        along = 0.8
        while along < w.length - 0.7:
            if rng.random() < 0.5 and w.clear(along, 1.1):
                furniture.closed_door(b, w.spot(along))
            elif w.clear(along, 0.9):
                kind = rng.random()
                if kind < 0.5:
                    span = rng.uniform(0.4, 0.8)
                    furniture.picture(b, w.spot(along), span, span * rng.uniform(0.8, 1.3), 1.1)
                if 0.35 < kind < 0.6 and half > 1.0:
                    furniture.cabinet(b, w.spot(along), 0.8, 0.8, 0.3)
                elif kind > 0.8:
                    furniture.plant(b, w.spot(along, -0.05), 0.8)
            along += rng.uniform(1.2, 1.7)
    if rng.random() < 0.5:
        b.solid(ORIGIN, 0, 0, 0, (1.1 * half, 0.012, 0.8 * length), b.paint("carpet", "pile", repeat_m=1.0))
    outside(b, 9)
    walkers(b, -half, z0, half, z1)
    return Plan(tuple(floors), height, False)


def apartment(b: Builder) -> Plan:
    rng = b.rng
    nx, nz = (2, 2) if rng.random() < 0.6 else (3, 1)
    gap, height = 0.16, rng.uniform(2.4, 3.0)
    xs, zs = ([0.0], [0.0])
    for edges, n in ((xs, nx), (zs, nz)):
        for _ in range(n):
            edges.append(edges[-1] + rng.uniform(3.0, 4.4))
    shift_x, shift_z = xs[-1] / 2, zs[-1] / 2
    rooms = {(i, j): (xs[i] - shift_x, zs[j] - shift_z, xs[i + 1] - gap - shift_x, zs[j + 1] - gap - shift_z)
             for i in range(nx) for j in range(nz)}  # fmt: skip
    holes: dict[tuple[int, int], list[list[Opening]]] = {key: [[], [], [], []] for key in rooms}
    joints = [((i, j), (i + 1, j)) for i in range(nx - 1) for j in range(nz)]
    joints += [((i, j), (i, j + 1)) for i in range(nx) for j in range(nz - 1)]
    if nx == nz == 2:
        joints.pop(int(rng.integers(4)))  # a chain of rooms, not a ring, half of the time
    sill = b.paint("wood", "stone", repeat_m=0.8)
    for one, two in joints:
        x0, z0, x1, z1 = rooms[one]
        width, top = rng.uniform(0.95, 1.7), rng.uniform(2.05, height - 0.1)
        if two[0] > one[0]:
            along = rng.uniform(0.5 + width / 2, z1 - z0 - 0.5 - width / 2)
            holes[one][1].append(Opening(along, width, 0.0, top))
            holes[two][3].append(Opening(z1 - z0 - along, width, 0.0, top))
            b.solid(ORIGIN, x1 + gap / 2, z0 + along, -0.05, (gap, 0.051, width), sill)
        else:
            along = rng.uniform(0.5 + width / 2, x1 - x0 - 0.5 - width / 2)
            holes[one][2].append(Opening(x1 - x0 - along, width, 0.0, top))
            holes[two][0].append(Opening(along, width, 0.0, top))
            b.solid(ORIGIN, x0 + along, z1 + gap / 2, -0.05, (width, 0.051, gap), sill)
    for (i, j), (x0, z0, x1, z1) in rooms.items():
        outer = [s for s, edge in enumerate((j == 0, i == nx - 1, j == nz - 1, i == 0)) if edge]
        windows = tuple(s for s in outer if rng.random() < 0.6)
        walls = shell(b, x0, z0, x1, z1, height, tuple(tuple(h) for h in holes[i, j]), windows)
        if rng.random() < 0.4:
            middle_piece(b, x0, z0, x1, z1)
        furnish(b, walls, 0.6)
    outside(b, 7)
    bounds = (-shift_x, -shift_z, xs[-1] - gap - shift_x, zs[-1] - gap - shift_z)
    walkers(b, *bounds)
    return Plan((bounds,), height, False)


def courtyard(b: Builder) -> Plan:
    rng = b.rng
    w, d, height = rng.uniform(7, 13), rng.uniform(7, 13), rng.uniform(2.2, 5.0)
    x0, z0, x1, z1 = -w / 2, -d / 2, w / 2, d / 2
    b.solid(
        ORIGIN,
        0,
        0,
        -0.05,
        (w + 0.6, 0.05, d + 0.6),
        b.paint("stone", "brick", "concrete", "grass", "tile", repeat_m=2.0),
    )
    corners = [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]
    trim = b.paint("stone", "plaster", repeat_m=0.9)
    walls = []
    for i in range(4):
        start, end = corners[i], corners[(i + 1) % 4]
        length = w if i % 2 == 0 else d
        paint = b.paint("brick", "stone", "plaster", "concrete", repeat_m=1.8)
        tall = height * rng.uniform(0.55, 1.0)
        holes = []
        if rng.random() < 0.45:
            holes.append(
                Opening(
                    rng.uniform(1.2, length - 1.2), rng.uniform(1.1, 2.2), 0.0, min(rng.uniform(2.0, 2.6), tall - 0.12)
                )
            )
        walls.append(wall(b, start, end, tall, paint, trim, tuple(holes), thickness=0.3, skirting=False))
        b.solid(walls[-1].place, length / 2, -0.15, tall, (length + 0.3, 0.08, 0.4), trim)
        for o in holes:
            b.footprints.append((*walls[-1].place.at(o.along, 0.3), 1.0))
        along = rng.uniform(0.6, 1.4)
        while along < length - 0.8:
            kind, spot = rng.random(), walls[-1].spot(along, 0.05)
            if walls[-1].clear(along, 1.5):
                if kind < 0.2 and b.claim(spot, 1.0, 0.6):
                    furniture.closed_door(b, walls[-1].spot(along))
                elif kind < 0.45:
                    width, base = rng.uniform(0.8, 1.3), rng.uniform(0.8, 1.0)
                    b.solid(walls[-1].place, along, 0.01, base, (width, 1.2, 0.02), b.paint("facade", repeat_m=None))
                    b.solid(walls[-1].place, along, 0.06, base - 0.06, (width + 0.2, 0.06, 0.12), trim)
                elif kind < 0.65 and b.claim(spot, 1.4, 0.6):
                    furniture.bench(b, spot)
                elif kind < 0.85 and b.claim(spot, 1.0, 1.0):
                    furniture.bush(b, Place(*spot.at(0, 0.5), spot.yaw), rng.uniform(0.7, 1.3))
                elif b.claim(spot, 0.7, 0.7):
                    furniture.crate_pile(b, spot) if rng.random() < 0.4 else furniture.plant(
                        b, spot, rng.uniform(1.0, 1.7)
                    )
            along += rng.uniform(1.0, 2.0)
    for _ in range(int(rng.integers(2, 6))):
        spot = Place(rng.uniform(x0 + 1, x1 - 1), rng.uniform(z0 + 1, z1 - 1), rng.uniform(0, 3))
        kind = rng.random()
        if not b.claim(spot, 1.2, 1.2):
            continue
        centre = Place(*spot.at(0, 0.6), spot.yaw)
        if kind < 0.4:
            furniture.tree(b, centre, rng.uniform(2.6, 4.5))
        elif kind < 0.65:
            b.solid(centre, 0, 0, 0, (1.1, 0.45, 1.1), b.paint("brick", "stone", "wood", repeat_m=0.9))
            furniture.bush(b, Place(centre.x, centre.z, 0.0), 0.9)
        elif kind < 0.8:
            furniture.bench(b, spot)
        else:
            b.solid(centre, 0, 0, 0, (0.4, rng.uniform(1.2, 3.0), 0.4), b.paint("stone", "brick", repeat_m=0.9))
    if rng.random() < 0.5:
        b.solid(Place(rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0, 3)), 0, 0, 0, (w / 2.2, 0.012, d / 2.2),
                b.paint("grass", "tile", "stone", repeat_m=1.5))  # fmt: skip
    outside(b, 9)
    walkers(b, x0, z0, x1, z1, 0.4)
    return Plan(((x0, z0, x1, z1),), height, True)


def gallery(b: Builder) -> Plan:
    """Held out: a polygonal hall with columns, slanted partitions and exhibits on plinths."""
    rng = b.rng
    sides, radius, height = int(rng.integers(5, 9)), rng.uniform(4.0, 6.0), rng.uniform(2.9, 3.6)
    turn = rng.uniform(0, 2 * np.pi)
    angles = turn + 2 * np.pi * np.arange(sides) / sides
    corners = [(radius * np.cos(a), radius * np.sin(a)) for a in angles]
    trim = b.paint("column", repeat_m=0.8)
    b.solid(ORIGIN, 0, 0, -0.05, (2 * radius + 1, 0.05, 2 * radius + 1), b.paint("floor", repeat_m=1.5))
    b.solid(ORIGIN, 0, 0, height, (2 * radius + 1, 0.15, 2 * radius + 1), b.paint("wall", repeat_m=2.5))
    face = b.paint("wall", repeat_m=1.6)
    for i in range(sides):
        start, end = corners[i], corners[(i + 1) % sides]
        length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
        holes = (Opening(length / 2, rng.uniform(1.0, 2.0), 0.9, height - 0.5),) if rng.random() < 0.35 else ()
        drawn = wall(b, start, end, height, face, trim, holes, thickness=0.15)
        for o in holes:
            x, z = drawn.place.at(o.along, 0.5)
            b.light(x, 1.7, z, (0.75, 0.8, 0.9), 1.5)
        for along in np.arange(0.9, length - 0.5, 1.35):
            span = rng.uniform(0.6, 1.1)
            if drawn.clear(along, span, 0.8, 2.4) and rng.random() < 0.85:
                tall = span * rng.uniform(0.8, 1.4)
                furniture.picture(b, drawn.spot(along), span, tall, max(0.5, 1.5 - tall / 2))
    for k in range(int(rng.integers(3, 7))):
        angle, far = turn + 2 * np.pi * k / 6 + 0.3, radius * rng.uniform(0.45, 0.62)
        spot = Place(far * np.cos(angle), far * np.sin(angle), rng.uniform(0, 3))
        if b.claim(spot, 0.8, 0.8):
            column = b.paint("column", repeat_m=0.8)
            b.solid(spot, 0, 0.4, 0, (0.4, height, 0.4), column)
            b.solid(spot, 0, 0.4, 0, (0.56, 0.15, 0.56), column)
            b.solid(spot, 0, 0.4, height - 0.15, (0.56, 0.15, 0.56), column)
    for _ in range(int(rng.integers(2, 5))):
        spot = Place(
            rng.uniform(-0.5 * radius, 0.5 * radius), rng.uniform(-0.5 * radius, 0.5 * radius), rng.uniform(0, np.pi)
        )
        width, tall = rng.uniform(1.2, 2.4), rng.uniform(1.9, 2.5)
        if b.claim(spot, width, 0.6):
            b.solid(spot, 0, 0.3, 0, (width, tall, 0.14), b.paint("wall", repeat_m=1.2))
            for side in (0, np.pi):
                back = Place(*spot.at(0, 0.3), spot.yaw + side)
                furniture.picture(b, Place(*back.at(0, 0.07), back.yaw), 0.55 * width, 0.55 * tall, 0.75)
    for _ in range(int(rng.integers(3, 7))):
        spot = Place(
            rng.uniform(-0.65 * radius, 0.65 * radius), rng.uniform(-0.65 * radius, 0.65 * radius), rng.uniform(0, 3)
        )
        if b.claim(spot, 0.6, 0.6):
            tall = rng.uniform(0.5, 1.1)
            b.solid(spot, 0, 0.3, 0, (0.45, tall, 0.45), b.paint("column", repeat_m=0.6))
            size = rng.uniform(0.25, 0.5, 3)
            b.solid(
                spot,
                0,
                0.3,
                tall,
                tuple(size),
                b.paint("object", repeat_m=0.4),
                rng.uniform(0, 1),
                round_=rng.random() < 0.6,
            )
    for k in range(5):
        angle, far = turn + 2 * np.pi * k / 4, 0.0 if k == 4 else 0.55 * radius
        x, z = far * np.cos(angle), far * np.sin(angle)
        b.solid(ORIGIN, x, z, height - 0.12, (0.7, 0.11, 0.7), b.paint("wall", repeat_m=0.6), glow=1.0)
        b.light(x, height - 0.6, z, (1.0, 0.95, 0.85), 1.9)
    b.solid(ORIGIN, 0, 0, -0.12, (90, 0.05, 90), b.paint("floor", repeat_m=2.5))
    reach = 0.6 * radius
    walkers(b, -reach, -reach, reach, reach)
    # The disc within the polygon, as a few boxes.
    disc = radius * np.cos(np.pi / sides) - 0.05
    turns = [np.deg2rad(a) for a in (15, 30, 45, 60, 75)]
    halves = [(float(disc * np.cos(a)), float(disc * np.sin(a))) for a in turns]
    return Plan(tuple((-x, -z, x, z) for x, z in halves), height, False)


LAYOUTS: dict[str, Callable[[Builder], Plan]] = {
    "room": room,
    "corridor": corridor,
    "apartment": apartment,
    "courtyard": courtyard,
    "gallery": gallery,
}
