"""Tasks: what an episode is for. Reward and termination, apart from the world.

A task of one's own is a class with two methods, passed as `task=MyTask()` or registered under the entry point group
`mirage_env.tasks` and named:

    class WalkAhead:
        def begin(self, moment, np_random):
            return None

        def judge(self, state, moment):
            ahead = moment.pose.z - moment.previous.z
            return Verdict(reward=ahead, terminated=moment.pose.z > 5.0, terms={"ahead_m": ahead})

Tasks add up: `task={"point_goal": 1.0, "explore": 0.1}` pays the weighted sum, and ends when one of them ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mirage_env.envs.actions import Pose
from mirage_env.envs.floor_plan import FloorPlan, Spot, length_m
from mirage_env.envs.occupancy import VOXEL_M, Occupancy
from mirage_env.errors import InvalidValueError, UnknownNameError, check_array, check_number
from mirage_env.types import Frames

ENTRY_POINT_GROUP = "mirage_env.tasks"


@dataclass(frozen=True)
class Moment:
    """What a task sees after each step."""

    step: int
    """Steps taken in this episode; 0 at reset."""
    action: Any
    """As the agent gave it; None at reset."""
    previous: Pose
    pose: Pose
    """The pose reached, after collisions."""
    collided: bool
    frames: Frames | None
    """What this step generated (every frame of the chunk); None while a chunk fills."""
    occupancy: Occupancy
    """The map from everything generated so far."""
    new_voxels: int
    """Voxels that `frames` made known: seen twice alike, free or solid."""
    stopped: bool
    """Whether the action asked for no motion at all (each number of a continuous one below a tenth)."""
    plan: Callable[[], FloorPlan]
    """Where a body can go: by the true geometry where the world knows it, else by the map, through what is unknown."""
    options: Mapping[str, Any]
    """What `reset` was given; empty after it."""


@dataclass(frozen=True)
class Verdict:
    """What a task says about a moment."""

    reward: float = 0.0
    terminated: bool = False
    state: Any = None
    """The task's own value, handed back at the next step."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Parts of the reward and other numbers for `info["reward_terms"]`; finite, and the same names at every step."""


@runtime_checkable
class Task(Protocol):
    """Stateless: what a task remembers within an episode is the value that it returns.

    A task may also have `goal(state, moment)`, an array of distance (m), cos and sin of the bearing to the right; then
    the observation `goal` exists; `place(state)`, the goal's (x, z) for the map; and `reset_options`, names that
    `reset(options=...)` then understands and `Moment.options` brings.
    """

    def begin(self, moment: Moment, np_random: np.random.Generator) -> Any:
        """The task's state for a new episode; draws only from `np_random`."""
        ...

    def judge(self, state: Any, moment: Moment) -> Verdict:
        """Called once a step, and without side effects: when it ends an episode while a chunk fills, the rest of the
        chunk is generated and it is asked again, and only the second verdict counts."""
        ...


class Free:
    """No goal and no reward: walk."""

    def begin(self, moment: Moment, np_random: np.random.Generator) -> None:
        return None

    def judge(self, state: None, moment: Moment) -> Verdict:
        return Verdict()


class Explore:
    """Reward 1 (times `scale`) for each cubic metre that becomes known: seen twice alike, carved free or found solid.

    The second sighting protects from rewarding noise. With `chunk=n` the reward comes when the chunk is generated.
    """

    def __init__(self, scale: Any = 1.0):
        self.scale = check_number("scale", scale, -1e6, 1e6)

    def begin(self, moment: Moment, np_random: np.random.Generator) -> None:
        return None

    def judge(self, state: None, moment: Moment) -> Verdict:
        new_m3 = moment.new_voxels * VOXEL_M**3
        return Verdict(reward=self.scale * new_m3, terms={"new_m3": new_m3})


class PointGoalState(NamedTuple):
    """A goal and how the walk to it goes, in metres."""

    x: float
    z: float
    shortest_m: float
    """From the start, by `Moment.plan` at that time."""
    walked_m: float
    distance_m: float
    """Straight, now."""


class PointGoal:
    """Walk to a point on the floor and stop there.

    reward = progress_m - time_cost + success_reward * success, each step, where progress_m is how much nearer the goal
    came in a straight line (metres), and success is 1 in the step that stops within `radius_m` of it, which ends the
    episode; a stop elsewhere costs a step. Without `must_stop` to be within the radius is enough.

    The goal is drawn from the floor that the map shows to be free at the start (by the first frame, or by a look
    around), where a body can go, `least_m` to `most_m` of walking away; where there is no such floor, as far as there
    is; where there is none at all, at the start itself.
    `reset(options={"goal": (x, z)})` sets it, in metres of the world whose origin is the first camera.

    `info["reward_terms"]`: progress_m, distance_m (straight, to go), success, and spl = success * l / max(l, walked)
    with l the shortest way from the start: true in the simulator, by the first map in a generated world.

    Raises InvalidValueError for a goal that cannot be reached.
    """

    reset_options = ("goal",)
    state_class = PointGoalState

    def __init__(
        self,
        radius_m: float = 0.5,
        least_m: float = 1.0,
        most_m: float = 5.0,
        success_reward: float = 2.5,
        time_cost: float = 0.01,
        must_stop: bool = True,
    ):
        self.radius_m = check_number("radius_m", radius_m, 0.0, 10.0)
        self.most_m = check_number("most_m", most_m, 0.0, 100.0)
        self.least_m = check_number("least_m", least_m, 0.0, self.most_m)
        self.success_reward = check_number("success_reward", success_reward, -1e6, 1e6)
        self.time_cost = check_number("time_cost", time_cost, -1e6, 1e6)
        self.must_stop = bool(must_stop)

    def begin(self, moment: Moment, np_random: np.random.Generator) -> PointGoalState:
        here, plan = (moment.pose.x, moment.pose.z), moment.plan()
        distances = plan.distances(here)
        given = moment.options.get("goal")
        goal = self._draw(plan, distances, moment.occupancy, here, np_random) if given is None else _check_goal(given)
        shortest = length_m(plan.descend(distances, goal, here, within_m=plan.cell_m))
        if not math.isfinite(shortest):
            raise InvalidValueError(
                f"the goal ({goal[0]:g}, {goal[1]:g}) cannot be reached from ({here[0]:g}, {here[1]:g}); "
                "give a free place (x, z) in metres"
            )
        return PointGoalState(*goal, shortest, 0.0, math.dist(here, goal))

    def judge(self, state: PointGoalState, moment: Moment) -> Verdict:
        here, before = (moment.pose.x, moment.pose.z), (moment.previous.x, moment.previous.z)
        distance = math.dist(here, (state.x, state.z))
        walked, progress = state.walked_m + math.dist(here, before), state.distance_m - distance
        success = float(distance <= self.radius_m and (moment.stopped or not self.must_stop))
        longest = max(state.shortest_m, walked)
        terms = {
            "progress_m": progress,
            "distance_m": distance,
            "success": success,
            "spl": success * (state.shortest_m / longest if longest > 0 else 1.0),
        }
        reward = progress - self.time_cost + self.success_reward * success
        return Verdict(reward, success > 0, state._replace(walked_m=walked, distance_m=distance), terms)

    def goal(self, state: PointGoalState, moment: Moment) -> Float[np.ndarray, "3"]:
        """Distance (m), cos and sin of the bearing: straight ahead is (1, 0), to the right (0, 1)."""
        dx, dz, yaw = state.x - moment.pose.x, state.z - moment.pose.z, moment.pose.yaw
        bearing = math.atan2(dx, dz) - yaw if math.hypot(dx, dz) > 1e-6 else 0.0
        return np.array([math.hypot(dx, dz), math.cos(bearing), math.sin(bearing)])

    def place(self, state: PointGoalState) -> Spot:
        """World (x, z)."""
        return state.x, state.z

    def _draw(
        self,
        plan: FloorPlan,
        distances: Float[np.ndarray, "X Z"],
        seen: Occupancy,
        here: Spot,
        np_random: np.random.Generator,
    ) -> Spot:
        known = seen.plan(through_unknown=False)
        cells = np.argwhere(np.isfinite(known.distances(here)))
        spots = known.centres(cells)
        inside = np.floor((spots - plan.corner_m) / plan.cell_m).astype(int)
        fits = (inside >= 0).all(1) & (inside < plan.fits.shape).all(1)
        spots, inside = spots[fits], inside[fits]
        walk_m = distances[inside[:, 0], inside[:, 1]]
        chosen = (walk_m >= self.least_m) & (walk_m <= self.most_m)
        if not chosen.any():
            chosen = np.isfinite(walk_m) & (walk_m >= np.max(walk_m, where=np.isfinite(walk_m), initial=0.0))
        spots = spots[chosen]
        x, z = spots[np_random.integers(len(spots))].tolist() if len(spots) else here
        return x, z


class Sum:
    """Several tasks at once: rewards times their weights add up, and whichever ends first ends the episode.

    Terms are named `task/term`; the goal is that of the first task that has one.
    """

    def __init__(self, parts: Mapping[str, tuple[Task, float]]):
        self.parts = dict(parts)
        self.reset_options = tuple(
            name for task, _ in self.parts.values() for name in getattr(task, "reset_options", ())
        )
        self.state_class: Any = tuple[tuple(getattr(task, "state_class", Any) for task, _ in self.parts.values())]  # type: ignore[misc]
        self._aims = [index for index, (task, _) in enumerate(self.parts.values()) if hasattr(task, "goal")]
        if self._aims:  # only then, because who asks for the observation `goal` looks for it
            self.goal, self.place = self._goal, self._place

    def begin(self, moment: Moment, np_random: np.random.Generator) -> tuple[Any, ...]:
        return tuple(task.begin(moment, np_random) for task, _ in self.parts.values())

    def judge(self, state: tuple[Any, ...], moment: Moment) -> Verdict:
        said = [task.judge(own, moment) for own, (task, _) in zip(state, self.parts.values(), strict=True)]
        return Verdict(
            reward=sum(weight * one.reward for one, (_, weight) in zip(said, self.parts.values(), strict=True)),
            terminated=any(one.terminated for one in said),
            state=tuple(one.state for one in said),
            terms={
                f"{name}/{term}": value
                for name, one in zip(self.parts, said, strict=True)
                for term, value in one.terms.items()
            },
        )

    def _goal(self, state: tuple[Any, ...], moment: Moment) -> Float[np.ndarray, "3"]:
        task: Any = list(self.parts.values())[self._aims[0]][0]
        return task.goal(state[self._aims[0]], moment)

    def _place(self, state: tuple[Any, ...]) -> Spot | None:
        place = getattr(list(self.parts.values())[self._aims[0]][0], "place", None)
        return place(state[self._aims[0]]) if place else None


TASKS: dict[str, Callable[..., Task]] = {"free": Free, "explore": Explore, "point_goal": PointGoal}


def make_task(task: Any, **task_kwargs: Any) -> Task:
    """The task of that name, built with `task_kwargs`; the given instance itself; or the `Sum` of a mapping.

    A mapping has names, or instances under names of one's own, with their weights: `{"point_goal": 1.0, "mine":
    (MyTask(), 0.5)}`; its `task_kwargs` have one mapping a name. Raises UnknownNameError for a name that neither this
    package nor an entry point has, InvalidValueError for `task_kwargs` that the task does not take or an object that is
    no task.
    """
    if isinstance(task, Mapping):
        for name in task_kwargs:
            if name not in task:
                raise UnknownNameError("task in task_kwargs", name, task)
        if not task:
            raise InvalidValueError("a sum of tasks needs at least one")
        parts = {}
        for name, value in task.items():
            one, weight = value if isinstance(value, (tuple, list)) and len(value) == 2 else (name, value)
            made = make_task(one, **task_kwargs.get(name, {}))
            parts[name] = made, check_number(f'the weight of task "{name}"', weight, -math.inf, 1e6)
        return Sum(parts)
    if not isinstance(task, str):
        if not isinstance(task, Task):
            raise InvalidValueError(f"task must be a name or have the methods begin and judge, got {task!r}")
        if task_kwargs:
            raise InvalidValueError(
                f"task_kwargs {task_kwargs} need a task by name; give them to {type(task).__name__} itself"
            )
        return task
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if task in TASKS:
        maker: Any = TASKS[task]
    elif task in plugins:
        maker = plugins[task].load()
    else:
        raise UnknownNameError("task", task, {*TASKS, *plugins})
    try:
        return maker(**task_kwargs)
    except TypeError as error:
        raise InvalidValueError(f'task "{task}" does not take task_kwargs {task_kwargs}: {error}') from None


def _check_goal(goal: Any) -> Spot:
    x, z = check_array("goal", goal, (2,)).tolist()
    return x, z
