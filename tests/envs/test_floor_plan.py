"""Shortest walks, beside a slow Dijkstra and rooms whose answer is known."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise

import numpy as np
import pytest

from mirage_env.envs.floor_plan import FloorPlan


def slow_distances(fits: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """Dijkstra over the 8 neighbours and the knight's moves, cell by cell."""

    def ok(i: int, j: int) -> bool:
        return 0 <= i < fits.shape[0] and 0 <= j < fits.shape[1] and bool(fits[i, j])

    distance = np.full(fits.shape, np.inf)
    distance[start] = 0.0
    queue = [(0.0, start)]
    while queue:
        so_far, (i, j) = heapq.heappop(queue)
        if so_far > distance[i, j]:
            continue
        for di in range(-2, 3):
            for dj in range(-2, 3):
                if math.gcd(di, dj) != 1 or not ok(i + di, j + dj):
                    continue
                si, sj = int(np.sign(di)), int(np.sign(dj))
                passed = [(si, sj)]
                if abs(di) == 1 and abs(dj) == 1:
                    passed = [(si, 0), (0, sj)]
                elif abs(di) == 2:
                    passed.append((si, 0))
                elif abs(dj) == 2:
                    passed.append((0, sj))
                if all(ok(i + a, j + b) for a, b in passed) and so_far + math.hypot(di, dj) < distance[i + di, j + dj]:
                    distance[i + di, j + dj] = so_far + math.hypot(di, dj)
                    heapq.heappush(queue, (distance[i + di, j + dj], (i + di, j + dj)))
    return distance


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_dijkstra(seed: int) -> None:
    fits = np.random.default_rng(seed).random((23, 31)) > 0.3
    fits[4, 5] = True
    plan = FloorPlan(fits, (-2.0, 1.0), 0.1)
    spot = plan.centres(np.array([4, 5]))
    ours = plan.distances((spot[0], spot[1]))
    np.testing.assert_allclose(ours, 0.1 * slow_distances(fits, (4, 5)), rtol=1e-9)


def test_in_an_empty_room_the_walk_is_straight() -> None:
    plan = FloorPlan(np.ones((60, 60), bool), (-3.0, -3.0), 0.1)
    for goal in [(2.3, 0.1), (-1.0, 2.5), (0.4, -2.9), (0.01, 0.01)]:
        assert plan.walk_m((0.0, 0.0), goal) == pytest.approx(math.hypot(*goal), abs=1e-9)
    assert plan.walk_m((1.0, 1.0), (1.0, 1.0)) == 0.0


def test_around_a_wall() -> None:
    fits = np.ones((80, 80), bool)
    fits[39:41, :60] = False  # x in [-0.1, 0.1), up to z = 2
    plan = FloorPlan(fits, (-4.0, -4.0), 0.1)
    shortest = 2 * math.hypot(0.9, 2.0) + 0.2  # past both corners of the wall's end
    assert plan.walk_m((-1.0, 0.0), (1.0, 0.0)) == pytest.approx(shortest, rel=0.03)
    assert plan.walk_m((-1.0, 0.0), (1.0, 0.0)) >= shortest
    way = plan.descend(plan.distances((1.0, 0.0)), (-1.0, 0.0), (1.0, 0.0))
    assert way is not None and way[0].tolist() == [-1.0, 0.0] and way[-1].tolist() == [1.0, 0.0]
    assert all(plan.clear(a, b) for a, b in pairwise(way))


def test_no_corner_is_cut_and_no_way_is_infinite() -> None:
    fits = np.array([[True, False], [False, True]])
    plan = FloorPlan(fits, (0.0, 0.0), 1.0)
    assert plan.walk_m((0.5, 0.5), (1.5, 1.5)) == math.inf
    assert plan.descend(plan.distances((1.5, 1.5)), (0.5, 0.5), (1.5, 1.5)) is None
    assert plan.walk_m((0.5, 0.5), (9.0, 9.0)) == math.inf
    assert np.isinf(FloorPlan(~np.ones((3, 3), bool), (0.0, 0.0), 1.0).distances((1.5, 1.5))).all()


def test_ends_snap_to_where_a_body_fits() -> None:
    fits = np.zeros((10, 10), bool)
    fits[5] = True
    plan = FloorPlan(fits, (0.0, 0.0), 0.1)
    assert plan.cell((0.55, 0.55)) == (5, 5)
    assert plan.cell((0.35, 0.55)) is None
    assert plan.cell((0.35, 0.55), within_m=0.3) == (5, 5)
    assert plan.cell((0.35, 0.55), within_m=0.1) is None
