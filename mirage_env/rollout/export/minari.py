"""Minari: `MINARI_DATASETS_PATH=OUT`, then `minari.load_dataset("mirage/rollout-v0")`.

Observations are a Dict at the steps (the last frame of each): rgb uint8, depth_m float32 (0 where not valid),
world_from_camera, intrinsics_px, remembered (0 or 1). Nothing is compressed with loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from mirage_env.errors import InvalidValueError
from mirage_env.rollout.store import StoredEpisode

DATASET_ID = "mirage/rollout-v0"


def write(episodes: Iterable[StoredEpisode], out: Path) -> None:
    """Raises InvalidValueError for episodes whose pictures or actions differ in shape."""
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    storage, given, about = None, None, []
    for episode in episodes:
        actions, observations = episode.array("actions"), _observations(episode)
        if storage is None:
            given = _space(observations), _action_space(actions)
            place = out / DATASET_ID / "data"
            place.mkdir(parents=True)
            storage = MinariStorage.new(place, *given, data_format="arrow", jpeg_encoding=False)
        if given != (_space(observations), _action_space(actions)):
            raise InvalidValueError(f"episode {episode.name} has other shapes than the first; Minari needs one")
        steps = len(actions)
        last = np.arange(1, steps + 1) == steps
        buffer = EpisodeBuffer(
            seed=episode.metadata["seed"],
            observations=observations,
            actions=actions,
            rewards=episode.array("rewards"),
            terminations=last & episode.metadata["terminated"],
            truncations=last & episode.metadata["truncated"],
        )
        storage.update_episodes([buffer])
        about.append({name: episode.metadata[name] for name in ("episode", "image", "licence", "certificate")})
    assert storage is not None  # `export` calls it with at least one
    storage.update_episode_metadata(about)
    storage.update_metadata({"dataset_id": DATASET_ID, "minari_version": minari.__version__})


def _observations(episode: StoredEpisode) -> dict[str, np.ndarray]:
    steps = slice(None, None, episode.metadata["frames_a_step"])
    poses, lenses = (episode.array(name)[steps] for name in ("world_from_camera", "intrinsics_px"))
    return {
        "rgb": episode.rgb()[steps],
        "depth_m": episode.depth_m()[steps],
        "world_from_camera": poses,
        "intrinsics_px": lenses,
        "remembered": episode.array("remembered")[steps].astype(np.uint8),
    }


def _space(observations: dict[str, np.ndarray]) -> spaces.Space[Any]:
    return spaces.Dict({name: _box(values) for name, values in observations.items()})


def _box(values: np.ndarray) -> spaces.Space[Any]:
    shape = values.shape[1:]
    if values.dtype == np.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def _action_space(actions: np.ndarray) -> spaces.Space[Any]:
    return spaces.Box(-1.0, 1.0, actions.shape[1:], np.float32) if actions.ndim > 1 else spaces.Discrete(9)
