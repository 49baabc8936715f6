"""Tasks: what an episode is for. Reward and termination, apart from the world.

A task of one's own is a class with two methods, passed as `task=MyTask()` or registered under the entry point group
`mirage_env.tasks` and named:

    class WalkAhead:
        def begin(self, moment, np_random):
            return None

        def judge(self, state, moment):
            ahead = moment.pose.z - moment.previous.z
            return Verdict(reward=ahead, terminated=moment.pose.z > 5.0, terms={"ahead_m": ahead})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mirage_env.envs.actions import Pose
from mirage_env.envs.occupancy import VOXEL_M, Occupancy
from mirage_env.errors import InvalidValueError, UnknownNameError
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
    the observation `goal` exists.
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

    def __init__(self, scale: float = 1.0):
        self.scale = float(scale)

    def begin(self, moment: Moment, np_random: np.random.Generator) -> None:
        return None

    def judge(self, state: None, moment: Moment) -> Verdict:
        new_m3 = moment.new_voxels * VOXEL_M**3
        return Verdict(reward=self.scale * new_m3, terms={"new_m3": new_m3})


TASKS = {"free": Free, "explore": Explore}


def make_task(task: Any, **task_kwargs: Any) -> Task:
    """The task of that name, built with `task_kwargs`, or the given instance itself.

    Raises UnknownNameError for a name that neither this package nor an entry point has, InvalidValueError for
    `task_kwargs` that the task does not take or an object that is no task.
    """
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
