"""A moment of a walk as a value: it can be kept, gone back to, continued many times over, and written to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mirage_env.envs.tasks import Sum
from mirage_env.envs.world import World
from mirage_env.errors import SavedWorldError
from mirage_env.values import StoredValues, classes_in, write_values

if TYPE_CHECKING:
    from mirage_env.envs.env import Episode


class Snapshot(NamedTuple):
    """Everything that decides what follows, given the same actions. What snapshots have in common is held once."""

    episode: Episode
    np_random: Mapping[str, Any]
    """State of the environment's random numbers."""
    world: Mapping[str, str]
    """What a world must have in common with the one that this was taken in, see `identity`."""
    task: str
    """The task that was being done, see `task_name`."""
    task_parameters: Mapping[str, str]
    """How it was made, see `task_parameters`; empty in a file from before this was noted."""

    def check_world(self, world: World) -> None:
        """Raises SavedWorldError for a world that cannot go on from here."""
        here = identity(world)
        for name, value in self.world.items():
            if here.get(name) != value:
                raise SavedWorldError(
                    f"this snapshot was taken in a world with {name} {value}, but here {name} is {here.get(name)}; "
                    "make the environment as it was made then"
                )

    def check_task(self, task: Any) -> None:
        """Raises SavedWorldError for another task than the one that was being done, or one with other parameters."""
        anew = 'begin a new episode in its world with reset(options={"world": ...})'
        if self.task != task_name(task):
            raise SavedWorldError(
                f"this snapshot was taken in the task {self.task}, and this one is {task_name(task)}; {anew}"
            )
        here = task_parameters(task)
        for name, value in self.task_parameters.items():
            if here.get(name) != value:
                raise SavedWorldError(
                    f"this snapshot was taken in the task {self.task} with {name} {value}, but here {name} is "
                    f"{here.get(name)}; make the environment as it was made then, or {anew}"
                )


def save(path: str | Path, snapshot: Snapshot, world: World, task: Any) -> Path:
    """Writes the snapshot as one file, whole or not at all."""
    classes = classes_in(type(snapshot.episode), *_state_classes(world), getattr(task, "state_class", None))
    values = {
        "episode": replace(snapshot.episode, task=None),
        "task": snapshot.episode.task,
        "np_random": snapshot.np_random,
    }
    about = {"world": snapshot.world, "task": snapshot.task, "task_parameters": dict(snapshot.task_parameters)}
    return write_values(path, values, about, classes)


def load(path: str | Path, world: World, task: Any, episode_class: type[Any]) -> Snapshot:
    """Reads what `save` wrote; its episode is without the task's state where that was another task.

    Raises SavedWorldError where there is none, or one of another world.
    """
    stored = StoredValues(path)
    about = stored.about if isinstance(stored.about, dict) else {}
    parameters = about.get("task_parameters", {})
    saved = Snapshot(None, {}, about.get("world", {}), about.get("task", ""), parameters)  # type: ignore[arg-type]
    typed = isinstance(saved.world, dict) and isinstance(saved.task, str) and isinstance(parameters, dict)
    if not typed or not saved.world:
        raise SavedWorldError(f"the saved world {path} is damaged or none (it does not say which world it is of)")
    saved.check_world(world)
    classes = classes_in(episode_class, *_state_classes(world))
    episode, np_random = stored.read("episode", classes), stored.read("np_random", {})
    if not isinstance(episode, episode_class) or not isinstance(np_random, dict):
        raise SavedWorldError(f"the saved world {path} is damaged or none (it holds no episode)")
    state_class = getattr(world, "state_class", None)
    if state_class is not None and not isinstance(episode.world, state_class):
        raise SavedWorldError(f"the saved world {path} is damaged or none (it holds no {state_class.__name__})")
    if saved.task == task_name(task):
        state_class = getattr(task, "state_class", None)
        episode = replace(episode, task=stored.read("task", classes_in(state_class)))
        if isinstance(state_class, type) and not isinstance(episode.task, state_class):
            raise SavedWorldError(f"the saved world {path} is damaged or none (it holds no {state_class.__name__})")
    if (place := getattr(world, "placed", None)) is not None:
        episode = replace(episode, world=place(episode.world))
    return saved._replace(episode=episode, np_random=np_random)


def identity(world: World) -> dict[str, str]:
    """What two worlds must have in common for one to go on where the other stopped; names and values for people."""
    own = getattr(world, "identity", {})
    return {"kind": type(world).__name__, "size": f"{world.size[0]} x {world.size[1]}", **own}


def task_name(task: Any) -> str:
    """The class of the task, or those of its parts."""
    if isinstance(task, Sum):
        return " + ".join(task_name(part) for part, _ in task.parts.values())
    return type(task).__name__


def task_parameters(task: Any) -> dict[str, str]:
    """What the task was made with, and the weights of its parts: the numbers and words among the arguments of its class
    that it keeps under their names."""
    if isinstance(task, Sum):
        return {
            f"{name}/{key}": value
            for name, (part, weight) in task.parts.items()
            for key, value in {"weight": str(weight), **task_parameters(part)}.items()
        }
    kept = {name: getattr(task, name, None) for name in signature(type(task)).parameters}
    return {name: str(value) for name, value in kept.items() if isinstance(value, (int, float, str))}


def _state_classes(world: Any) -> list[Any]:
    """What a world and its parts say that their states are made of."""
    parts = [getattr(world, name, None) for name in ("memory", "dream", "truth")]
    inner = [kind for part in parts if part is not None for kind in _state_classes(part)]
    return [getattr(world, "state_class", None), *inner]
