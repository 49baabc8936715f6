"""The scripted agent: walks to the goal where there is one, else to the nearest place where the map is unfinished.

It sees only what the environment's own map shows, so that it lives in generated and in true worlds alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from mirage_env.envs.actions import CHOICES
from mirage_env.envs.env import WalkEnv
from mirage_env.envs.floor_plan import FloorPlan, Spot

REPLAN_STEPS = 4
NEAR_M = 0.45
"""A frontier this near is looked at, not walked to."""
WINDOW = 5
"""A frontier counts what is unknown up to so many cells to each side ..."""
WORTH = 12
"""... and needs at least this much of it: single unknown cells are noise."""
TIRED = 3
"""After so many visits in vain a place is left alone."""


class ExplorerAgent:
    """Turns once around, then goes for the frontier that shows most a step; where none is left it crosses the room to
    where it has not been, and so sees behind things."""

    def begin(self, env: WalkEnv, seed: int) -> None:
        self.env = env
        self._turned, self._age = 0.0, 0
        self._way: list[Spot] = []
        self._look: Spot | None = None
        self._visits: dict[tuple[int, int], int] = {}
        self._been: list[Spot] = []

    def act(self, observation: Any) -> Any:
        pose, goal = self.env.pose, self.env.goal
        here = (pose.x, pose.z)
        if goal is not None:
            if math.dist(here, goal) <= 0.8 * self._radius_m():
                return self._action(0.0, 0.0)
            self._aim_at_goal(here, goal)
        elif self._turned < 2 * math.pi:
            self._turned += self.env.turn_rad
            return self._action(0.0, self.env.turn_rad)
        else:
            self._aim_at_frontier(here)
        while self._way and math.dist(here, self._way[0]) < 0.15:
            self._way.pop(0)
        target = self._way[0] if self._way else self._look
        if target is None:
            return self._action(0.0, self.env.turn_rad)
        bearing = math.remainder(math.atan2(target[0] - pose.x, target[1] - pose.z) - pose.yaw, 2 * math.pi)
        if abs(bearing) > 0.55 * self.env.turn_rad:
            return self._action(0.0, bearing)
        if self._way:
            return self._action(math.dist(here, target), bearing)
        self._look = None  # looked at
        return self._action(0.0, self.env.turn_rad)

    def _aim_at_goal(self, here: Spot, goal: Spot) -> None:
        """Around everything that the map shows, through what it does not."""
        if self._age % REPLAN_STEPS == 0:
            plan = self.env.occupancy.plan(through_unknown=True)
            way = plan.descend(plan.distances(goal), here, goal)
            self._way = [goal] if way is None else [(float(x), float(z)) for x, z in way[1:]]
        self._age += 1

    def _aim_at_frontier(self, here: Spot) -> None:
        self._age += 1
        if (self._way and self._age % REPLAN_STEPS) or (not self._way and self._look is not None):
            return
        seen = self.env.occupancy
        known, passable = seen.plan(through_unknown=False), seen.plan(through_unknown=True)
        unknown = passable.fits & ~known.fits
        distances = known.distances(here)
        gain = _around(unknown, WINDOW)
        cells = np.argwhere(np.isfinite(distances) & (_around(unknown, 1) > 0) & (gain >= WORTH))
        cells = cells[[self._visits.get(self._place(known, cell), 0) < TIRED for cell in cells]]
        if not len(cells):
            self._cross(here, known, distances)
            return
        spots = known.centres(cells)
        bearing = np.arctan2(spots[:, 0] - here[0], spots[:, 1] - here[1]) - self.env.pose.yaw
        turn = np.abs((bearing + np.pi) % (2 * np.pi) - np.pi)
        cost = distances[tuple(cells.T)] / self.env.step_m + turn / self.env.turn_rad
        best = int(np.argmax(gain[tuple(cells.T)] / (cost + 8.0)))
        goal = (float(spots[best, 0]), float(spots[best, 1]))
        way = known.descend(distances, goal, here)
        self._look = self._toward_unknown(known, unknown, cells[best])
        if way is None or distances[tuple(cells[best])] < NEAR_M:
            place = self._place(known, cells[best])
            self._visits[place] = self._visits.get(place, 0) + 1
            self._way = []
        else:
            self._way = [(float(x), float(z)) for x, z in way[::-1][1:]]

    def _cross(self, here: Spot, known: FloorPlan, distances: np.ndarray) -> None:
        """To the place that is farthest from everywhere it has been."""
        self._been.append(here)
        cells = np.argwhere(np.isfinite(distances))
        if not len(cells):
            return
        spots = known.centres(cells)
        away = np.hypot(*(spots[:, None] - np.array(self._been)).transpose(2, 0, 1)).min(1)
        x, z = spots[int(away.argmax())].tolist()
        way = known.descend(distances, (x, z), here)
        self._way, self._look = [] if way is None else [(float(a), float(b)) for a, b in way[::-1][1:]], None

    def _toward_unknown(self, known: FloorPlan, unknown: np.ndarray, cell: np.ndarray) -> Spot:
        """The middle of what is unknown around a cell."""
        low = np.maximum(cell - WINDOW, 0)
        around = np.argwhere(unknown[low[0] : cell[0] + WINDOW + 1, low[1] : cell[1] + WINDOW + 1]) + low
        x, z = known.centres(around).mean(0)
        return float(x), float(z)

    def _place(self, plan: FloorPlan, cell: np.ndarray) -> tuple[int, int]:
        """Half-metre squares: what has been visited."""
        side = round(0.5 / plan.cell_m)
        return int(cell[0]) // side, int(cell[1]) // side

    def _radius_m(self) -> float:
        return float(getattr(self.env.task, "radius_m", 0.5))

    def _action(self, forward_m: float, turn_rad: float) -> Any:
        """The action that comes nearest to a motion."""
        if isinstance(self.env.action_space, spaces.Discrete):
            name = "forward" if forward_m > 0 else "stop"
            if abs(turn_rad) > 0.55 * self.env.turn_rad:
                name = "turn_right" if turn_rad > 0 else "turn_left"
            return CHOICES[self.env.action_mode].index(name)
        forward = min(1.0, forward_m / self.env.step_m)
        turn = max(-1.0, min(1.0, turn_rad / self.env.turn_rad))
        if self.env.action_mode == "planar":
            return np.array([forward, 0.0, turn], np.float32)
        return np.array([0.0, 0.0, forward, turn, 0.0, 0.0], np.float32)


def _around(mask: np.ndarray, reach: int) -> np.ndarray:
    """How many cells of the mask lie up to `reach` cells away, along both axes."""
    total = np.pad(mask.astype(np.int32), ((reach + 1, reach), (reach + 1, reach))).cumsum(0).cumsum(1)
    side = 2 * reach + 1
    return total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
