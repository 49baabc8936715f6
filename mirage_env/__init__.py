"""Mirage env: one image becomes a persistent, explorable world behind the Gymnasium API.

    import gymnasium as gym
    import mirage_env

    env = gym.make("Mirage-v0", image="kitchen.jpg")      # or no image at all: a built-in scene
    episode = mirage_env.generate("kitchen.jpg", poses)   # without gym: poses (T, 4, 4) world_from_camera

Importing this package registers the environment ids and nothing heavier: torch is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mirage_env.envs.registration import register_all

if TYPE_CHECKING:
    from mirage_env.errors import MirageError as MirageError
    from mirage_env.images import builtin_image as builtin_image
    from mirage_env.images import builtin_names as builtin_names
    from mirage_env.images import load_image as load_image
    from mirage_env.types import Cameras as Cameras
    from mirage_env.types import Frames as Frames
    from mirage_env.world_model import Episode as Episode
    from mirage_env.world_model import generate as generate
    from mirage_env.world_model import load_world as load_world

__version__ = "0.1.0"

_HOME = {
    "Cameras": "types",
    "Episode": "world_model",
    "Frames": "types",
    "MirageError": "errors",
    "builtin_image": "images",
    "builtin_names": "images",
    "generate": "world_model",
    "load_image": "images",
    "load_world": "world_model",
}
"""Public name -> the module it comes from, imported when it is first asked for (PEP 562)."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_all()
