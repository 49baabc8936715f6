"""Procedural textures: seamless 256 x 256 pictures of wood, brick, cloth, paintings ... in one mip-mapped bank.

A bank is drawn once per process and key, in a second or two, and shared by all its scenes; scenes tint, scale and
turn its textures, so that a hundred pictures make a great many surfaces.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

SIZE = 256
LEVELS = 9
TRAINING_BANKS = 64
"""Training seeds draw from this many banks (from `TEXTURES_SEED` on from ever new ones); evaluation seeds have one of
their own, the held-out family another."""

Array = np.ndarray
Rng = np.random.Generator
Generator = Callable[[Rng], Array]

_V, _U = np.meshgrid((np.arange(SIZE) + 0.5) / SIZE, (np.arange(SIZE) + 0.5) / SIZE, indexing="ij")


# ---------------------------------------------------------------- noise and colour


def _noise(rng: Rng, beta: float = 1.6, stretch: tuple[float, float] = (1.0, 1.0), low: float = 1.0) -> Array:
    """Periodic Gaussian noise with spectrum f^-beta and unit variance; `stretch` (u, v) lengthens its features."""
    fv = np.fft.fftfreq(SIZE)[:, None] * SIZE * stretch[1]
    fu = np.fft.rfftfreq(SIZE)[None] * SIZE * stretch[0]
    amplitude = (fu * fu + fv * fv + low * low) ** (-0.5 * beta)
    amplitude[0, 0] = 0.0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIZE, SIZE), dtype=np.float32)) * amplitude, (SIZE, SIZE))
    return field / (field.std() + 1e-9)


def _rgb(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, np.clip(saturation, 0, 1), np.clip(value, 0, 1)))


ANY = (0.0, 1.0)


def _hue(rng: Rng) -> float:
    """Hues as people paint rooms: mostly earth and warm, some greens and blues, seldom purple."""
    centre, spread = ((0.085, 0.035), (0.58, 0.04), (0.3, 0.07), (0.0, 0.03), (0.5, 0.3))[
        rng.choice(5, p=[0.48, 0.2, 0.13, 0.12, 0.07])
    ]
    return float(rng.normal(centre, spread)) % 1.0


def _colour(rng: Rng, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    if hue == ANY:
        return _rgb(_hue(rng), rng.uniform(*saturation), rng.uniform(*value))
    return _rgb(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))


def _mix(a: Array, b: Array, weight: Array) -> Array:
    return a + (b - a) * np.clip(weight, 0, 1)[..., None]


def _step(x: Array, edge: float, width: float) -> Array:
    t = np.clip((x - edge) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _shade(colour: Array, amount: Array) -> Array:
    return colour * (1 + amount[..., None])


def _cells(rng: Rng, count: int) -> tuple[Array, Array, Array]:
    """Periodic Voronoi diagram on a jittered grid: cell number, distance to the nearest and to the second site."""
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), -1).reshape(-1, 2)
    sites = (grid + rng.uniform(0.12, 0.88, grid.shape)) / count
    index_v, index_u = (np.floor(_V * count).astype(int), np.floor(_U * count).astype(int))
    best = np.full((SIZE, SIZE), 9.0)
    second, owner = best.copy(), np.zeros((SIZE, SIZE), int)
    for dv in (-1, 0, 1):
        for du in (-1, 0, 1):
            cell = ((index_v + dv) % count) * count + (index_u + du) % count
            site = sites[cell]
            gap_v = (site[..., 0] - _V + 0.5) % 1 - 0.5
            gap_u = (site[..., 1] - _U + 0.5) % 1 - 0.5
            distance = np.hypot(gap_v, gap_u) * count
            nearer = distance < best
            second = np.where(nearer, best, np.minimum(second, distance))
            owner = np.where(nearer, cell, owner)
            best = np.where(nearer, distance, best)
    return owner, best, second


def _rect(u0: float, v0: float, u1: float, v1: float, soft: float = 0.01) -> Array:
    return _step(_U, u0, soft) * (1 - _step(_U, u1, soft)) * _step(_V, v0, soft) * (1 - _step(_V, v1, soft))


# ---------------------------------------------------------------- the standard families' generators


def wood(rng: Rng) -> Array:
    """Planks that run along v."""
    planks = int(rng.integers(3, 8))
    plank = np.floor(_U * planks).astype(int)
    shift = rng.integers(0, SIZE, planks)[plank]
    rows = (np.arange(SIZE)[:, None] + shift) % SIZE
    columns = np.broadcast_to(np.arange(SIZE)[None], rows.shape)
    grain = _noise(rng, 1.2, (1.0, 14.0), 3)[rows, columns]
    warp = _noise(rng, 2.4, (1.0, 5.0), 2)[rows, columns]
    rings = np.sin(2 * np.pi * (_U * rng.uniform(8, 20) + 0.9 * warp))
    hue, value = rng.uniform(0.04, 0.11), rng.uniform(0.4, 0.85)
    dark, light = _rgb(hue, rng.uniform(0.4, 0.7), value * 0.62), _rgb(hue + 0.015, rng.uniform(0.3, 0.55), value)
    picture = _mix(dark, light, 0.6 + 0.17 * grain + 0.16 * rings)
    picture = _shade(picture, rng.uniform(-0.16, 0.16, planks)[plank])
    length = int(rng.integers(1, 3))
    joint = np.abs((_V * length + rng.uniform(0, 1, planks)[plank]) % 1 - 0.5) * SIZE / length
    seam = np.minimum(np.abs((_U * planks + 0.5) % 1 - 0.5) * SIZE / planks, joint)
    return _shade(picture, -0.5 * (1 - _step(seam, 1.2, 2.4)))


def veneer(rng: Rng) -> Array:
    """A single board with cathedral grain, for furniture."""
    warp = _noise(rng, 2.6, (1.0, 4.0), 1)
    rings = np.sin(2 * np.pi * (rng.uniform(2, 5) * warp + 4 * _U))
    fine = _noise(rng, 0.9, (1.0, 20.0), 4)
    hue, value = rng.uniform(0.03, 0.11), rng.uniform(0.35, 0.9)
    dark, light = _rgb(hue, rng.uniform(0.35, 0.7), value * 0.68), _rgb(hue + 0.012, rng.uniform(0.25, 0.55), value)
    return _mix(dark, light, 0.55 + 0.25 * rings + 0.14 * fine)


def brick(rng: Rng) -> Array:
    rows = 2 * int(rng.integers(3, 7))
    columns = rows // 2
    warp_u, warp_v = 0.004 * _noise(rng, 1.5, low=6), 0.004 * _noise(rng, 1.5, low=6)
    v = (_V + warp_v) % 1 * rows
    row = np.floor(v).astype(int) % rows
    u = (_U + warp_u + 0.5 * (row % 2) / columns) % 1 * columns
    column = np.floor(u).astype(int) % columns
    edge = np.minimum(np.abs((u + 0.5) % 1 - 0.5) * SIZE / columns, np.abs((v + 0.5) % 1 - 0.5) * SIZE / rows)
    hue = rng.choice([0.02, 0.04, 0.07, 0.1])
    base = _rgb(hue, rng.uniform(0.3, 0.62), rng.uniform(0.5, 0.8))
    tone = rng.uniform(-0.25, 0.2, (rows, columns))[row, column]
    red = rng.uniform(-0.08, 0.08, (rows, columns))[row, column]
    body = _shade(base, tone + 0.09 * _noise(rng, 1.0, low=4) + 0.06 * _noise(rng, 2.0))
    body[..., 0] *= 1 + red
    mortar = _shade(_rgb(0.1, 0.1, rng.uniform(0.6, 0.85)), 0.07 * _noise(rng, 0.8, low=8))
    return mortar + (body - mortar) * _step(edge, 2.6, 2.5)[..., None]


def tile(rng: Rng) -> Array:
    count = int(rng.integers(2, 7))
    u, v = _U * count, _V * count
    index = np.floor(v).astype(int) * count + np.floor(u).astype(int)
    edge = np.minimum(np.abs((u + 0.5) % 1 - 0.5), np.abs((v + 0.5) % 1 - 0.5)) * SIZE / count
    a = _colour(rng, ANY, (0.05, 0.35), (0.55, 0.95))
    b = a if rng.random() < 0.5 else _colour(rng, ANY, (0.05, 0.4), (0.35, 0.8))
    chess = ((np.floor(u) + np.floor(v)) % 2) if count % 2 == 0 else np.zeros_like(u)
    base = _mix(a, 0.6 * a + 0.4 * b, chess)
    marble = np.abs(_noise(rng, 1.9))
    body = _shade(
        base, rng.uniform(-0.09, 0.09, count * count)[index] - 0.16 * np.exp(-4 * marble) + 0.03 * _noise(rng, 1)
    )
    if rng.random() < 0.4:  # a printed ornament in every tile
        radius = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
        angle = np.arctan2(v % 1 - 0.5, u % 1 - 0.5)
        petals = radius - 0.22 - 0.1 * np.cos(int(rng.integers(2, 5)) * 2 * angle)
        body = _mix(body, _colour(rng, ANY, (0.2, 0.6), (0.3, 0.7)), 0.7 * _step(-np.abs(petals), -0.05, 0.03))
    grout = _shade(a * rng.choice([0.55, 1.1]), 0.05 * _noise(rng, 0.8, low=8))
    return grout + (body - grout) * _step(edge, 1.8, 2.0)[..., None]


def plaster(rng: Rng) -> Array:
    base = _colour(rng, ANY, (0.04, 0.3), (0.7, 0.95))
    picture = _shade(base, 0.045 * _noise(rng, 1.8) + 0.03 * _noise(rng, 0.8, low=10))
    stain = _step(_noise(rng, 2.2, (1, 0.6)), 1.1, 1.0)
    strokes = _noise(rng, 1.2, (5.0, 1.0), 5)
    picture = _mix(picture, base * 0.78, 0.5 * stain)
    return _shade(picture, 0.035 * strokes)


def wallpaper(rng: Rng) -> Array:
    hue = _hue(rng)
    ground = _rgb(hue, rng.uniform(0.08, 0.35), rng.uniform(0.65, 0.92))
    ink = _rgb(hue + rng.normal(0, 0.08), rng.uniform(0.15, 0.5), rng.uniform(0.4, 0.75))
    n = int(rng.integers(3, 7))
    u, v = 2 * np.pi * n * _U, 2 * np.pi * n * _V
    kind = int(rng.integers(4))
    if kind == 0:  # stripes of several widths
        field = np.cos(u) + 0.6 * np.cos(3 * u + rng.uniform(0, 6)) + 0.15 * np.cos(9 * u)
    elif kind == 1:  # damask
        field = (
            np.cos(u) * np.cos(v)
            + 0.6 * np.cos(2 * u + 1.2 * np.sin(v)) * np.cos(v)
            + 0.3 * np.cos(3 * v + np.cos(2 * u))
        )
    elif kind == 2:  # flowers on a half-drop grid
        row = np.floor(_V * n)
        x, y = (_U * n + 0.5 * (row % 2)) % 1 - 0.5, (_V * n) % 1 - 0.5
        field = 0.26 + 0.09 * np.cos(int(rng.integers(4, 7)) * np.arctan2(y, x) + row) - np.hypot(x, y)
        field = 8 * field if n % 2 == 0 else 6 * np.abs(field) - 0.5
    else:  # leaves between wavy stems
        stem = np.cos(u + 1.1 * np.sin(v))
        field = np.maximum(
            6 * (np.abs(stem) < 0.13) - 0.5, np.cos(2 * u + 2.2 * np.sin(v)) * np.cos(3 * v + u) * 2 - 0.9
        )
    picture = _mix(np.broadcast_to(ground, (SIZE, SIZE, 3)), ink, 0.75 * _step(field, 0.15, 0.5))
    return _shade(picture, 0.03 * _noise(rng, 0.9, low=6) + 0.03 * _noise(rng, 2.0))


def fabric(rng: Rng) -> Array:
    base = _colour(rng, ANY, (0.12, 0.5), (0.35, 0.85))
    picture = np.broadcast_to(base, (SIZE, SIZE, 3))
    if rng.random() < 0.6:  # plaid
        for axis in (_U, _V):
            for _ in range(3):
                n, width = int(rng.integers(2, 6)), rng.uniform(0.05, 0.3)
                band = _step(-np.abs((axis * n + rng.uniform()) % 1 - 0.5), -width, 0.03)
                picture = _mix(picture, _colour(rng, ANY, (0.1, 0.6), (0.3, 0.95)), 0.35 * band)
    weave = np.sin(2 * np.pi * 48 * _U) * np.sin(2 * np.pi * 48 * _V)
    folds = _noise(rng, 2.5, (1.0, 3.0))
    return _shade(picture, 0.06 * weave + 0.07 * folds + 0.05 * _noise(rng, 0.8, low=10))


def carpet(rng: Rng) -> Array:
    """A rug with a border, meant to fill a face once."""
    fold_u, fold_v = np.abs(_U - 0.5) * 2, np.abs(_V - 0.5) * 2
    edge = np.maximum(fold_u, fold_v)
    hue = _hue(rng)
    colours = [_rgb(hue + h, rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.85)) for h in (0, 0.06, 0.45, 0.1)]
    a, b = rng.integers(3, 9, 2)
    motif = np.cos(a * fold_u * 3.1 + 2 * np.cos(b * fold_v * 2.3)) + np.cos(
        b * fold_v * 3.1 - 1.5 * np.cos(a * fold_u * 1.7)
    )
    picture = _mix(np.broadcast_to(colours[0], (SIZE, SIZE, 3)), colours[1], _step(motif, 0.2, 0.4))
    picture = _mix(picture, colours[2], _step(motif, 1.2, 0.3))
    border = _mix(
        np.broadcast_to(colours[3], (SIZE, SIZE, 3)),
        colours[2],
        _step(np.cos(40 * fold_u) * np.cos(40 * fold_v), 0.2, 0.4),
    )
    picture = _mix(picture, border, _step(edge, rng.uniform(0.7, 0.85), 0.02))
    picture = _mix(picture, colours[2] * 0.7, _step(edge, 0.95, 0.02))
    return _shade(picture, 0.09 * _noise(rng, 0.5, low=10) + 0.05 * _noise(rng, 2.0))


def pile(rng: Rng) -> Array:
    """Fitted carpet: a soft speckle of two or three yarns."""
    hue = _hue(rng)
    a, b = (
        _rgb(hue, rng.uniform(0.1, 0.4), rng.uniform(0.4, 0.75)),
        _rgb(hue + rng.normal(0, 0.05), 0.3, rng.uniform(0.3, 0.6)),
    )
    speckle = _noise(rng, 0.7, low=12)
    cloud = _noise(rng, 2.0)
    return _shade(_mix(a, b, 0.4 + 0.35 * speckle + 0.15 * cloud), 0.06 * cloud)


def stone(rng: Rng) -> Array:
    """Irregular flagstones."""
    owner, first, second = _cells(rng, int(rng.integers(3, 7)))
    base = _colour(rng, (0.05, 0.15), (0.05, 0.25), (0.45, 0.8))
    tone = rng.uniform(-0.22, 0.18, owner.max() + 1)[owner]
    body = _shade(base, tone + 0.1 * _noise(rng, 1.4, low=2) + 0.05 * _noise(rng, 0.6, low=10))
    body[..., 2] *= 1 + rng.uniform(-0.1, 0.1, owner.max() + 1)[owner]
    joint = _shade(base * 0.5, 0.1 * _noise(rng, 0.8, low=8))
    return joint + (body - joint) * _step(second - first, 0.09, 0.09)[..., None]


def ashlar(rng: Rng) -> Array:
    """Cut blocks with soft chiselled edges."""
    rows = int(rng.integers(3, 6))
    row = np.floor(_V * rows).astype(int)
    columns = 2
    u = (_U * columns + rng.uniform(0, 1, rows)[row]) % columns
    index = row * columns + np.floor(u).astype(int)
    edge = np.minimum(np.abs((u + 0.5) % 1 - 0.5) / columns, np.abs((_V * rows + 0.5) % 1 - 0.5) / rows) * SIZE
    base = _colour(rng, (0.06, 0.14), (0.08, 0.3), (0.55, 0.85))
    tone = rng.uniform(-0.15, 0.12, rows * columns)[index]
    body = _shade(base, tone + 0.08 * _noise(rng, 1.5) + 0.06 * _noise(rng, 0.8, low=8))
    return _shade(body, -0.4 * (1 - _step(edge, 2.0, 4.0)))


def concrete(rng: Rng) -> Array:
    base = _colour(rng, (0.05, 0.6), (0.02, 0.1), (0.5, 0.78))
    pits = _step(_noise(rng, 0.9, low=14), 2.0, 0.5)
    picture = _shade(base, 0.09 * _noise(rng, 1.9) + 0.045 * _noise(rng, 0.8, low=8) - 0.25 * pits)
    seam = np.minimum(np.abs(_U - 0.5), np.abs(_V - 0.5)) * SIZE
    return _shade(picture, -0.25 * (1 - _step(seam, 1.5, 2)))


def grass(rng: Rng) -> Array:
    hue = rng.uniform(0.2, 0.32)
    dark, light = _rgb(hue + 0.03, 0.6, rng.uniform(0.25, 0.4)), _rgb(hue - 0.05, 0.55, rng.uniform(0.6, 0.8))
    blades = _noise(rng, 0.9, (1.0, 3.0), 10) + 0.6 * _noise(rng, 0.9, (2.5, 1.0), 10)
    picture = _mix(dark, light, 0.45 + 0.2 * blades + 0.18 * _noise(rng, 1.9))
    flowers = _step(_noise(rng, 0.5, low=20), rng.uniform(2.5, 3.4), 0.4)
    return _mix(picture, _colour(rng, ANY, (0.0, 0.6), (0.8, 1.0)), flowers)


def leaves(rng: Rng) -> Array:
    """Foliage: overlapping leaves, bright on top of dark gaps."""
    owner, first, second = _cells(rng, int(rng.integers(10, 18)))
    hue = rng.uniform(0.18, 0.36)
    tones = rng.uniform(-0.35, 0.3, owner.max() + 1)[owner]
    picture = _shade(_rgb(hue, rng.uniform(0.45, 0.7), rng.uniform(0.45, 0.65)), tones + 0.2 * _noise(rng, 1.8))
    return _shade(picture, -0.65 * _step(first, 0.62, 0.5) + 0.2 * _step(second - first, 0.5, 0.6))


def books(rng: Rng) -> Array:
    """A full shelf of books, meant to fill a face once."""
    picture = np.broadcast_to(_rgb(0.07, 0.5, 0.16), (SIZE, SIZE, 3)).copy()
    hues, x = rng.uniform(0, 1, 4), 0.01
    while x < 0.98:
        width, top = rng.uniform(0.025, 0.075), rng.uniform(0.04, 0.3)
        colour = _rgb(rng.choice(hues) + rng.normal(0, 0.03), rng.uniform(0.15, 0.75), rng.uniform(0.3, 0.9))
        body = _rect(x, top, min(x + width, 0.99), 1.1, 0.006)
        round_ = 0.25 * np.cos(np.clip((_U - x) / width - 0.4, -0.5, 0.6) * 3)
        picture = _mix(picture, _shade(np.broadcast_to(colour * 0.85, picture.shape), round_), body)
        label = _rgb(rng.uniform(0, 1), 0.25, rng.choice([0.2, 0.9]))
        low = rng.uniform(top + 0.08, 0.7)
        picture = _mix(
            picture, label, 0.8 * _rect(x + 0.2 * width, low, x + 0.8 * width, low + rng.uniform(0.03, 0.2), 0.006)
        )
        x += width + 0.004
    return _shade(picture, 0.05 * _noise(rng, 1.2, (1, 4), 3))


def door(rng: Rng) -> Array:
    """A panelled door with a handle, meant to fill a face once."""
    base = (
        veneer(rng)
        if rng.random() < 0.5
        else _shade(_colour(rng, ANY, (0.05, 0.5), (0.5, 0.95)), 0.03 * _noise(rng, 1.4))
    )
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    for i in range(rows):
        for j in range(columns):
            u0, v0 = 0.1 + 0.8 * j / columns + 0.04, 0.06 + 0.88 * i / rows + 0.03
            u1, v1 = 0.1 + 0.8 * (j + 1) / columns - 0.04, 0.06 + 0.88 * (i + 1) / rows - 0.03
            outer, inner = _rect(u0, v0, u1, v1), _rect(u0 + 0.03, v0 + 0.02, u1 - 0.03, v1 - 0.02)
            bevel = np.where(_V - v0 < u1 - _U, -0.28, 0.16)
            base = _shade(base, (outer - inner) * bevel - 0.06 * inner)
    frame = 1 - _rect(0.03, 0.015, 0.97, 1.1)
    base = _shade(base, -0.35 * frame)
    base = _mix(base, _rgb(0.11, 0.4, 0.25), _rect(0.87, 0.49, 0.935, 0.56))
    return _mix(base, _rgb(0.12, rng.uniform(0, 0.5), 0.9), _rect(0.82, 0.51, 0.925, 0.53))


def drawers(rng: Rng) -> Array:
    """A furniture front: drawers or two doors with knobs, meant to fill a face once."""
    base = (
        veneer(rng)
        if rng.random() < 0.6
        else _shade(_colour(rng, ANY, (0.05, 0.45), (0.5, 0.95)), 0.03 * _noise(rng, 1.4))
    )
    rows, columns = (int(rng.integers(2, 5)), int(rng.integers(1, 3))) if rng.random() < 0.6 else (1, 2)
    knob = _rgb(0.11, rng.uniform(0, 0.6), rng.choice([0.2, 0.9]))
    for i in range(rows):
        for j in range(columns):
            u0, v0, u1, v1 = j / columns, i / rows, (j + 1) / columns, (i + 1) / rows
            face = _rect(u0 + 0.025, v0 + 0.025, u1 - 0.025, v1 - 0.025)
            lip = face - _rect(u0 + 0.04, v0 + 0.045, u1 - 0.04, v1 - 0.045)
            base = _shade(base, -0.45 * (_rect(u0, v0, u1, v1) - face) + 0.14 * lip + rng.uniform(-0.05, 0.05) * face)
            ku = 0.5 * (u0 + u1) if columns == 1 or rows > 1 else (u1 - 0.07 if j == 0 else u0 + 0.07)
            kv = 0.5 * (v0 + v1)
            base = _mix(base, knob * 0.4, _rect(ku - 0.05, kv - 0.005, ku + 0.05, kv + 0.035))
            base = _mix(base, knob, _rect(ku - 0.05, kv - 0.015, ku + 0.05, kv + 0.015))
    return base


def _framed(rng: Rng, picture: Array) -> Array:
    rim = rng.uniform(0.05, 0.1)
    mat = rim + rng.choice([0.0, 0.05, 0.09])
    edge = np.minimum(np.minimum(_U, 1 - _U), np.minimum(_V, 1 - _V))
    wood_colour = _colour(rng, (0.05, 0.14), (0.2, 0.75), (0.2, 0.85))
    frame = _shade(wood_colour, 0.25 * np.sin(edge / rim * 5) + 0.06 * _noise(rng, 1.0, low=6))
    result = _mix(picture, _rgb(0.1, 0.06, 0.93), 1 - _step(edge, mat, 0.008))
    return _mix(result, frame, 1 - _step(edge, rim, 0.008))


def landscape(rng: Rng) -> Array:
    """A framed painting of hills under a sky."""
    hue = rng.uniform(0.5, 0.65) if rng.random() < 0.6 else rng.uniform(0.0, 0.14)
    picture = _mix(_rgb(hue, 0.55, 0.75), _rgb(hue - 0.45, 0.25, 0.98), _V * 1.6)
    picture = _mix(picture, np.ones(3) * 0.97, 0.6 * _step(_noise(rng, 1.9, (2.5, 1)), 0.6, 1.0) * (1 - _V))
    sun_u, sun_v = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.45)
    picture = _mix(picture, _rgb(0.13, 0.35, 1.0), 1 - _step(np.hypot(_U - sun_u, _V - sun_v), 0.07, 0.02))
    horizon = rng.uniform(0.4, 0.55)
    land_hue = rng.uniform(0.15, 0.45)
    for k in range(int(rng.integers(3, 6))):
        ridge = horizon + 0.1 * k + (0.07 + 0.01 * k) * _noise(rng, 2.2, low=1)[0][None, :]
        tone = _rgb(land_hue + 0.03 * k, 0.25 + 0.1 * k, 0.75 - 0.11 * k)
        body = _shade(np.broadcast_to(tone, picture.shape), 0.12 * _noise(rng, 1.2, (2, 1), 4))
        picture = picture + (body - picture) * _step(_V - ridge, 0, 0.012)[..., None]
    return _framed(rng, picture)


def abstract(rng: Rng) -> Array:
    """A framed abstract painting: overlapping shapes with brush marks."""
    hue = _hue(rng)
    picture = np.broadcast_to(_rgb(hue, rng.uniform(0.05, 0.4), rng.uniform(0.6, 0.95)), (SIZE, SIZE, 3))
    for _ in range(int(rng.integers(6, 14))):
        colour = _rgb(
            hue + rng.choice([0, 0.08, 0.4, 0.55]) + rng.normal(0, 0.02),
            rng.uniform(0.3, 0.85),
            rng.uniform(0.25, 0.95),
        )
        u, v, angle, width = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0, 3.14), rng.uniform(0.05, 0.3)
        x, y = (_U - u) * np.cos(angle) + (_V - v) * np.sin(angle), (_V - v) * np.cos(angle) - (_U - u) * np.sin(angle)
        shape = np.hypot(x, y) if rng.random() < 0.45 else np.maximum(np.abs(x) * rng.uniform(0.4, 2), np.abs(y))
        picture = _mix(picture, colour, rng.uniform(0.6, 1) * (1 - _step(shape, width, 0.01)))
    return _framed(rng, _shade(picture, 0.05 * _noise(rng, 1.0, (3, 1), 5)))


def portrait(rng: Rng) -> Array:
    """A framed portrait in simple shapes."""
    hue = _hue(rng)
    picture = _shade(_rgb(hue, 0.4, 0.45), 0.25 * _noise(rng, 2.2))
    skin = _rgb(rng.uniform(0.04, 0.09), rng.uniform(0.25, 0.55), rng.uniform(0.45, 0.95))
    hair = _rgb(rng.uniform(0.0, 0.12), rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.7))
    shirt = _colour(rng, ANY, (0.2, 0.7), (0.3, 0.9))

    def blob(u: float, v: float, ru: float, rv: float) -> Array:
        return 1 - _step(np.hypot((_U - u) / ru, (_V - v) / rv), 1.0, 0.08)

    picture = _mix(picture, shirt, blob(0.5, 1.0, 0.36, 0.32))
    picture = _mix(picture, hair, blob(0.5, 0.4, 0.2, 0.25))
    picture = _mix(picture, skin * 0.85, blob(0.5, 0.64, 0.08, 0.14))
    picture = _mix(picture, skin, blob(0.5, 0.45, 0.15, 0.2))
    for side in (-1, 1):
        picture = _mix(picture, np.array([0.1, 0.08, 0.08]), blob(0.5 + 0.06 * side, 0.43, 0.022, 0.014))
    picture = _mix(picture, _rgb(0.98, 0.6, 0.6), blob(0.5, 0.55, 0.05, 0.012))
    light = 0.25 * (0.5 - _U)
    return _framed(rng, _shade(picture, light + 0.04 * _noise(rng, 1.0, low=4)))


def facade(rng: Rng) -> Array:
    """Rows of windows, for buildings seen from afar and television or cabinet grids seen near."""
    n = int(rng.integers(2, 5))
    u, v = (_U * n) % 1, (_V * n) % 1
    wall = plaster(rng) * 0.9
    window = _step(u, 0.25, 0.02) * (1 - _step(u, 0.75, 0.02)) * _step(v, 0.2, 0.02) * (1 - _step(v, 0.8, 0.02))
    trim = _step(u, 0.19, 0.02) * (1 - _step(u, 0.81, 0.02)) * _step(v, 0.14, 0.02) * (1 - _step(v, 0.87, 0.02))
    index = np.floor(_V * n).astype(int) * n + np.floor(_U * n).astype(int)
    glass = _shade(_rgb(0.58, 0.35, 0.5), 0.5 * (0.5 - v) + rng.uniform(-0.3, 0.3, n * n)[index])
    bars = (np.abs(u - 0.5) < 0.015) | (np.abs(v - 0.45) < 0.012)
    wall = _mix(wall, np.ones(3) * 0.92, trim)
    return _mix(_mix(wall, glass, window), np.ones(3) * 0.9, window * bars)


def clouds(rng: Rng) -> Array:
    """Cloud density in all three channels; only the sky reads it."""
    density = _step(_noise(rng, 1.9, low=1) + 0.25 * _noise(rng, 1.3, low=5), rng.uniform(0.2, 0.7), 3.0)
    return np.repeat(density[..., None], 3, -1)


def costume(rng: Rng) -> Array:
    """What movers wear: saturated zigzag bands that no furniture has."""
    hue = _hue(rng)
    zigzag = _V * 6 + 0.35 * np.abs((_U * 8) % 1 - 0.5) * 2
    band = np.floor(zigzag % 3).astype(int)
    colours = np.stack([_rgb(hue, 0.85, 0.9), _rgb(hue + 0.5, 0.75, 0.85), np.array([0.97, 0.95, 0.9])])
    return _shade(colours[band], 0.05 * _noise(rng, 1.2, low=3))


STANDARD: dict[str, tuple[tuple[Generator, int], ...]] = {
    "wood": ((wood, 9),),
    "veneer": ((veneer, 8),),
    "brick": ((brick, 6),),
    "tile": ((tile, 8),),
    "plaster": ((plaster, 8),),
    "wallpaper": ((wallpaper, 10),),
    "fabric": ((fabric, 10),),
    "carpet": ((carpet, 6),),
    "pile": ((pile, 4),),
    "stone": ((stone, 5), (ashlar, 3)),
    "concrete": ((concrete, 3),),
    "grass": ((grass, 4),),
    "leaves": ((leaves, 4),),
    "books": ((books, 4),),
    "door": ((door, 5),),
    "drawers": ((drawers, 6),),
    "picture": ((landscape, 6), (abstract, 5), (portrait, 3)),
    "facade": ((facade, 3),),
    "clouds": ((clouds, 3),),
    "costume": ((costume, 4),),
}


# ---------------------------------------------------------------- the held-out family's own generators


def terrazzo(rng: Rng) -> Array:
    owner, first, _ = _cells(rng, 14)
    chips = np.stack([_colour(rng, ANY, (0.1, 0.5), (0.3, 0.9)) for _ in range(6)])[owner % 6]
    size = rng.uniform(0.2, 0.42, owner.max() + 1)[owner]
    base = _shade(_colour(rng, (0, 0.2), (0.03, 0.12), (0.7, 0.9)), 0.03 * _noise(rng, 1.0, low=6))
    return base + (chips - base) * (1 - _step(first + 0.06 * _noise(rng, 1.4, low=10), size[0, 0], 0.1))[..., None]


def herringbone(rng: Rng) -> Array:
    n = 8
    x, y = _U * n, _V * n
    cell_x, cell_y = np.floor(x).astype(int), np.floor(y).astype(int)
    phase = (cell_x + cell_y) % 4
    lying = phase < 2
    along = np.where(lying, x - cell_x + (phase % 2), y - cell_y + np.where(phase == 3, 0, 1))
    across = np.where(lying, y - cell_y, x - cell_x)
    anchor = np.where(lying, (cell_x - phase % 2) * 31 + cell_y * 17, cell_x * 13 + (cell_y - (phase == 2)) * 29) % 64
    tone = rng.uniform(-0.2, 0.15, 64)[anchor]
    grain = np.where(lying, _noise(rng, 1.1, (8, 1), 4), _noise(rng, 1.1, (1, 8), 4))
    base = _colour(rng, (0.05, 0.11), (0.35, 0.6), (0.5, 0.8))
    edge = np.minimum(np.minimum(across, 1 - across), np.minimum(along, 2 - along))
    return _shade(_shade(base, tone + 0.09 * grain), -0.45 * (1 - _step(edge, 0.05, 0.07)))


def veined_marble(rng: Rng) -> Array:
    base = _colour(rng, ANY, (0.02, 0.2), (0.75, 0.95))
    ink = _colour(rng, ANY, (0.1, 0.4), (0.25, 0.5))
    ridge = np.abs(_noise(rng, 2.1) + 0.35 * _noise(rng, 1.6, low=5))
    thin = np.abs(_noise(rng, 1.9, low=3))
    picture = _mix(np.broadcast_to(base, (SIZE, SIZE, 3)), ink, 0.65 * np.exp(-9 * ridge) + 0.3 * np.exp(-14 * thin))
    return _shade(picture, 0.05 * _noise(rng, 1.8))


def stucco_swirl(rng: Rng) -> Array:
    base = _colour(rng, ANY, (0.1, 0.45), (0.55, 0.9))
    swirl = np.sin(5 * _noise(rng, 2.3) + 2 * _noise(rng, 1.8, low=4))
    return _shade(base, 0.08 * swirl + 0.04 * _noise(rng, 0.9, low=8))


def mosaic(rng: Rng) -> Array:
    owner, first, second = _cells(rng, 18)
    field = _noise(rng, 2.2)
    sites = np.zeros(owner.max() + 1)
    np.maximum.at(sites, owner.ravel(), field.ravel())
    palette = np.stack([_colour(rng, ANY, (0.2, 0.7), (0.35, 0.95)) for _ in range(5)])
    body = palette[np.floor((sites[owner] + 4) * 1.2).astype(int) % 5]
    body = _shade(body, rng.uniform(-0.15, 0.15, owner.max() + 1)[owner])
    return _mix(np.ones(3) * 0.35, body, _step(second - first, 0.12, 0.1))


def hexagons(rng: Rng) -> Array:
    n = 6
    u, v = _U * n, _V * n
    best = np.full((SIZE, SIZE), 9.0)
    second, owner = best.copy(), np.zeros((SIZE, SIZE), int)
    for i in range(-1, n + 1):
        for j in range(-1, n + 1):
            distance = np.hypot(u - (j + 0.5 + 0.5 * (i % 2)), v - (i + 0.5))
            nearer = distance < best
            second = np.where(nearer, best, np.minimum(second, distance))
            owner = np.where(nearer, (i % n) * n + j % n, owner)
            best = np.where(nearer, distance, best)
    a, b = _colour(rng, ANY, (0.1, 0.5), (0.5, 0.9)), _colour(rng, ANY, (0.1, 0.5), (0.3, 0.8))
    body = _mix(a, b, rng.random(n * n)[owner])
    body = _shade(body, 0.05 * _noise(rng, 1.6) - 0.04 * best)
    return _mix(np.ones(3) * 0.82, body, _step(second - best, 0.1, 0.06))


def canvas_waves(rng: Rng) -> Array:
    """A gallery piece: flowing bands of colour, unframed."""
    field = (
        _V * rng.uniform(2, 5)
        + 0.5 * _noise(rng, 2.5)
        + rng.uniform(0.1, 0.4) * np.sin(2 * np.pi * _U * int(rng.integers(1, 4)))
    )
    palette = np.stack([_colour(rng, ANY, (0.3, 0.9), (0.25, 1.0)) for _ in range(7)])
    index = np.floor(field).astype(int) % 7
    blend = _step(field % 1, 0.9, 0.2)
    picture = _mix(palette[index], palette[(index + 1) % 7], blend)
    return _shade(picture, 0.06 * _noise(rng, 1.0, (4, 1), 5))


def canvas_rings(rng: Rng) -> Array:
    """A gallery piece: nested warped rings around two centres, unframed."""
    warp = 0.06 * _noise(rng, 2.4)
    field = sum(np.hypot(_U - rng.uniform(0.2, 0.8), _V - rng.uniform(0.2, 0.8)) for _ in range(2)) + warp
    a, b, c = (_colour(rng, ANY, (0.2, 0.8), (0.25, 0.95)) for _ in range(3))
    picture = _mix(_mix(a, b, field), c, _step(np.sin(field * rng.uniform(15, 35)), 0.2, 0.5))
    return _shade(picture, 0.05 * _noise(rng, 1.0, low=5))


def ribbed(rng: Rng) -> Array:
    """Fluted panels, for columns, plinths and benches."""
    n = int(rng.integers(8, 16))
    flute = np.cos(2 * np.pi * n * _U)
    base = _colour(rng, ANY, (0.05, 0.4), (0.45, 0.9))
    return _shade(base, 0.16 * flute + 0.06 * _noise(rng, 1.8) + 0.03 * _noise(rng, 0.8, low=8))


def overcast(rng: Rng) -> Array:
    """The held-out sky: long streaks."""
    density = _step(_noise(rng, 1.7, (4.0, 1.0), 1), rng.uniform(0.0, 0.5), 3.4)
    return np.repeat(density[..., None], 3, -1)


def harlequin(rng: Rng) -> Array:
    """What the held-out family's movers wear: lozenges."""
    lozenge = np.abs((_U * 6) % 1 - 0.5) + np.abs((_V * 4) % 1 - 0.5)
    hue = _hue(rng)
    picture = _mix(
        np.broadcast_to(_rgb(hue, 0.8, 0.85), (SIZE, SIZE, 3)), _rgb(hue + 0.4, 0.85, 0.35), _step(lozenge, 0.5, 0.06)
    )
    return _shade(picture, 0.05 * _noise(rng, 1.2, low=3))


HELD_OUT: dict[str, tuple[tuple[Generator, int], ...]] = {
    "floor": ((terrazzo, 4), (herringbone, 4), (hexagons, 3)),
    "wall": ((stucco_swirl, 6), (veined_marble, 4)),
    "column": ((ribbed, 4), (veined_marble, 3)),
    "picture": ((canvas_waves, 8), (canvas_rings, 8), (mosaic, 4)),
    "object": ((mosaic, 3), (ribbed, 4), (herringbone, 2)),
    "clouds": ((overcast, 2),),
    "costume": ((harlequin, 3),),
}


# ---------------------------------------------------------------- the bank


@dataclass(frozen=True)
class Bank:
    """Textures of one size with all their mip levels, packed for one gather per sample."""

    texels: Int32[Tensor, "N"]
    """RGBX bytes (square-root-of-linear values) of every level, level by level, texture by texture, row by row."""
    level_offset: Int32[Tensor, "L"]
    groups: dict[str, tuple[int, ...]]
    """Which textures each category has."""


def _draw(generators: dict[str, tuple[tuple[Generator, int], ...]], seed: int) -> Bank:
    pictures: list[Array] = []
    groups: dict[str, tuple[int, ...]] = {}
    for number, (category, entries) in enumerate(generators.items()):
        first = len(pictures)
        for variant, (generator, count) in enumerate(entries):
            for i in range(count):
                pictures.append(generator(np.random.default_rng([seed, number, variant, i])))
        groups[category] = tuple(range(first, len(pictures)))
    level = torch.from_numpy(np.stack(pictures).astype(np.float32)).clamp(0, 1).permute(0, 3, 1, 2)
    packed, offsets, total = [], [], 0
    for _ in range(LEVELS):
        rgbx = torch.zeros(len(pictures), *level.shape[2:], 4, dtype=torch.uint8)
        rgbx[..., :3] = (level.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        packed.append(rgbx.view(torch.int32).reshape(-1))
        offsets.append(total)
        total += packed[-1].numel()
        level = torch.nn.functional.avg_pool2d(level, 2) if level.shape[-1] > 1 else level
    return Bank(torch.cat(packed), torch.tensor(offsets, dtype=torch.int32), groups)


def bank(key: str, device: str = "cpu") -> Bank:
    """The textures of a bank: "evaluation", "training-0", "training-1" ... or "held-out"."""
    return _bank(key, device)


@lru_cache(maxsize=8)
def _bank(key: str, device: str) -> Bank:
    if device != "cpu":
        cpu = _bank(key, "cpu")
        return Bank(cpu.texels.to(device), cpu.level_offset.to(device), cpu.groups)
    if key == "held-out":
        return _draw(HELD_OUT, 77)
    return _draw(STANDARD, 11 if key == "evaluation" else 1000 + int(key.removeprefix("training-")))
