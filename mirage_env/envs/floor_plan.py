"""Where a body can stand, and how far it is to walk: shortest ways over a grid of floor cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

Spot = tuple[float, float]
"""World (x, z) in metres."""

_STEPS = tuple(
    (dx, dz) for dx in range(-2, 3) for dz in range(-2, 3) if math.gcd(dx, dz) == 1
)  # to the 8 neighbours and by the 8 knight's moves: directions 27 degrees apart at most
_PAD = 2


@dataclass(frozen=True)
class FloorPlan:
    """A level grid of square cells with the places where the centre of a body may be."""

    fits: Bool[np.ndarray, "X Z"]
    corner_m: Spot
    """Corner of cell (0, 0)."""
    cell_m: float

    def cell(self, spot: Spot, within_m: float = 0.0) -> tuple[int, int] | None:
        """The cell of a spot, or the nearest one that fits if it is at most `within_m` away; None where none fits."""
        i, j = (math.floor((at - low) / self.cell_m) for at, low in zip(spot, self.corner_m, strict=True))
        inside = 0 <= i < self.fits.shape[0] and 0 <= j < self.fits.shape[1]
        if inside and self.fits[i, j]:
            return i, j
        if within_m <= 0:
            return None
        reach = math.ceil(within_m / self.cell_m)
        low_i, low_j = max(0, i - reach), max(0, j - reach)
        around = self.fits[low_i : max(0, i + reach + 1), low_j : max(0, j + reach + 1)]
        near = np.argwhere(around) + np.array([low_i, low_j])
        away = np.hypot(*(self.centres(near) - spot).T)
        if not len(near) or away.min() > within_m:
            return None
        first, second = near[away.argmin()]
        return int(first), int(second)

    def centres(self, cells: Int[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n 2"]:
        """World (x, z) of the centres of cells."""
        return (np.asarray(cells) + 0.5) * self.cell_m + self.corner_m

    def distances(self, spot: Spot, within_m: float = 0.5) -> Float64[np.ndarray, "X Z"]:
        """Metres to walk from every cell to `spot` along 16 directions; infinite where there is no way.

        At most 2.7% longer than a straight line; `walk_m` is exact there. `within_m`: as in `cell`, for the spot.
        """
        distance = np.full(self._open.shape, np.inf)
        start = self.cell(spot, within_m)
        if start is not None:
            front = np.array([(start[0] + _PAD) * self._open.shape[1] + start[1] + _PAD])
            flat = distance.reshape(-1)
            flat[front] = 0.0
            while front.size:  # every cell that became nearer tells its neighbours, until none does
                reached = []
                for offset, length, passable in self._moves:
                    source = front[passable[front]]
                    target, way = source + offset, flat[source] + length
                    nearer = way < flat[target] - 1e-9
                    flat[target[nearer]] = way[nearer]
                    reached.append(target[nearer])
                front = np.unique(np.concatenate(reached))
        return distance[_PAD:-_PAD, _PAD:-_PAD]

    def descend(
        self, distances: Float[np.ndarray, "X Z"], start: Spot, goal: Spot, within_m: float = 0.5
    ) -> Float64[np.ndarray, "n 2"] | None:
        """The shortest walk as the corners of a way from `start` to `goal`, both included; None without one.

        `distances` are those to the goal; both ends may lie `within_m` from where a body fits.
        """
        at = self.cell(start, within_m)
        if at is None or not np.isfinite(distances[at]):
            return None
        padded = np.pad(distances, _PAD, constant_values=np.inf).reshape(-1)
        width = self._open.shape[1]
        here = (at[0] + _PAD) * width + at[1] + _PAD
        cells = [at]
        while padded[here] > 0:
            rest = [padded[here + o] + length if passable[here] else np.inf for o, length, passable in self._moves]
            here += self._moves[int(np.argmin(rest))][0]
            cells.append((here // width - _PAD, here % width - _PAD))
        points = self.centres(np.array(cells))
        points[0] = start
        points = np.concatenate([points, [goal]]) if len(points) == 1 else np.concatenate([points[:-1], [goal]])
        corners = [points[0]]
        for before, point in pairwise(points[1:]):  # pull the string taut
            if not self.clear(corners[-1], point):
                corners.append(before)
        return np.array([*corners, points[-1]])

    def walk_m(self, start: Spot, goal: Spot, within_m: float = 0.5) -> float:
        """Length in metres of the shortest walk; infinite where there is none. Ends: as in `descend`."""
        return length_m(self.descend(self.distances(goal, within_m), start, goal, within_m))

    def clear(self, start: np.ndarray, end: np.ndarray) -> bool:
        """Whether the body fits everywhere on the straight line, looked at twice a cell; its first half metre may lie
        where it does not, as a body beside a wall does."""
        count = max(2, math.ceil(2 * math.dist(start, end) / self.cell_m))
        line = np.linspace(start, end, count + 1)
        cells = np.floor((line - self.corner_m) / self.cell_m).astype(int)
        inside = (cells >= 0).all(1) & (cells < self.fits.shape).all(1)
        fits = np.zeros(len(cells), bool)
        fits[inside] = self.fits[tuple(cells[inside].T)]
        return bool(fits[np.argmax(fits) :].all() and fits.any())

    @cached_property
    def _open(self) -> np.ndarray:
        return np.pad(self.fits, _PAD)

    @cached_property
    def _moves(self) -> tuple[tuple[int, float, np.ndarray], ...]:
        """Offset in the padded flat grid, metres, and from which cells the move is possible: no corner is cut."""
        width = self._open.shape[1]

        def ahead(dx: int, dz: int) -> np.ndarray:
            return np.roll(self._open, (-dx, -dz), (0, 1))  # the padding is what rolls around

        moves = []
        for dx, dz in _STEPS:
            sx, sz = int(np.sign(dx)), int(np.sign(dz))
            if abs(dx) + abs(dz) == 3:
                between = [(sx, sz), (sx, 0) if abs(dx) == 2 else (0, sz)]
            else:
                between = [(sx, 0), (0, sz)] if dx and dz else []
            passable = self._open & ahead(dx, dz)
            for step in between:
                passable = passable & ahead(*step)
            moves.append((dx * width + dz, math.hypot(dx, dz) * self.cell_m, passable.reshape(-1)))
        return tuple(moves)


def length_m(way: Float[np.ndarray, "n 2"] | None) -> float:
    """Length of a way in metres; infinite where there is none."""
    return math.inf if way is None else float(np.hypot(*np.diff(way, axis=0).T).sum())
