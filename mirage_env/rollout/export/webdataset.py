"""WebDataset: OUT/000000.tar, ...; one sample a frame, in order, its key the episode's and the frame's number.

000007-000012.rgb.png      8-bit RGB
000007-000012.depth.png    16-bit grey, metres over `depth_unit_m`, 0 where not valid
000007-000012.json         episode, frame, world_from_camera, intrinsics_px, timestamp_s, depth_unit_m, prompt; action
                           and reward where a step begins at the frame
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mirage_env.rollout import png
from mirage_env.rollout.store import StoredEpisode

SHARD_BYTES = 500 * 2**20


def write(episodes: Iterable[StoredEpisode], out: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """A shard ends with the sample that exceeds `shard_bytes`."""
    samples = (sample for episode in episodes for sample in _samples(episode))
    shard, sample = 0, next(samples, None)
    while sample is not None:
        with tarfile.open(out / f"{shard:06d}.tar", "w") as tar:
            while sample is not None and tar.offset < shard_bytes:
                for name, data in sample.items():
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
                sample = next(samples, None)
        shard += 1


def _samples(episode: StoredEpisode) -> Iterator[dict[str, bytes]]:
    poses, lenses = episode.array("world_from_camera"), episode.array("intrinsics_px")
    seconds, actions, rewards = (episode.array(name) for name in ("timestamp_s", "actions", "rewards"))
    stride = episode.metadata["frames_a_step"]
    for frame, (rgb, depth) in enumerate(zip(episode.pictures(), episode.depth_units(), strict=True)):
        about: dict[str, Any] = {
            "episode": episode.summary["episode"],
            "frame": frame,
            "world_from_camera": poses[frame].tolist(),
            "intrinsics_px": lenses[frame].tolist(),
            "timestamp_s": float(seconds[frame]),
            "depth_unit_m": episode.depth_unit_m,
            "prompt": episode.metadata["prompt"],
        }
        step, within = divmod(frame, stride)
        if not within and step < len(actions):
            about |= {"action": actions[step].tolist(), "reward": float(rewards[step])}
        key = f"{episode.name}-{frame:06d}"
        yield {
            f"{key}.depth.png": png.encode(depth),
            f"{key}.json": json.dumps(about).encode(),
            f"{key}.rgb.png": png.encode(rgb),
        }
