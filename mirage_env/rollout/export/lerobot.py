"""LeRobot v3.0, written directly: `LeRobotDataset("mirage/rollout", root=OUT)`.

    meta/info.json, stats.json, tasks.parquet, episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet                               one row a step, several episodes a file
    videos/observation.images.rgb/chunk-000/file-000.mp4          the same rows as pictures

A row is what was seen before an action and the action; what the last action led to has no row there. Depth is a 16-bit
PNG in millimetres within the parquet, lossless, and marked by `is_depth_map`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mirage_env.artefacts import VideoFile
from mirage_env.errors import InvalidValueError
from mirage_env.rollout import png
from mirage_env.rollout.store import StoredEpisode

RGB, DEPTH, STATE = "observation.images.rgb", "observation.images.depth", "observation.state"
ROWS_A_FILE = 10_000
"""A file ends with the episode that exceeds it."""
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_POSE = [f"world_from_camera.{row}{column}" for row in range(3) for column in range(4)]
_LENS = ["fx", "fy", "cx", "cy"]
_INDICES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
            "task_index": "int64"}  # fmt: skip


def write(episodes: Iterable[StoredEpisode], out: Path, rows_a_file: int = ROWS_A_FILE) -> None:
    """Raises InvalidValueError for steps a second that are no whole number, or shapes that differ."""
    import pyarrow
    from pyarrow import parquet

    def table(path: str, rows: dict[str, Any]) -> None:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(rows), out / path)

    shape: tuple[int, ...] = ()
    first: StoredEpisode | None = None
    tasks: dict[str, int] = {}
    about: list[dict[str, Any]] = []
    sums: dict[str, _Sums] = {}
    rows: dict[str, list[Any]] = {}
    video: VideoFile | None = None
    total = begun = file = 0

    def end_file() -> None:
        assert video is not None
        video.close()
        place = {"chunk_index": file // 1000, "file_index": file % 1000}
        table(_DATA.format(**place), {name: _column(name, values) for name, values in rows.items()})

    for episode in episodes:
        actions, metadata = episode.array("actions"), episode.metadata
        if first is None:
            first, shape = episode, (*metadata["size_px"], *actions.shape[1:])
            fps = metadata["fps"] / metadata["frames_a_step"]
            if fps != round(fps):
                raise InvalidValueError(f"LeRobot needs a whole number of steps a second, this run has {fps:g}")
        if shape != (*metadata["size_px"], *actions.shape[1:]):
            raise InvalidValueError(f"episode {episode.name} has other shapes than the first; LeRobot needs one")
        if video is None or total - begun >= rows_a_file:
            if video is not None:
                end_file()
                file += 1
            begun, rows = total, {}
            place = {"chunk_index": file // 1000, "file_index": file % 1000}
            path = out / _VIDEO.format(video_key=RGB, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            video = VideoFile(path, metadata["size_px"], fps=fps)
        task = metadata["prompt"] or "move through the scene"
        tasks.setdefault(task, len(tasks))
        own: dict[str, _Sums] = {}
        for name, values in _rows(episode, len(about), total, tasks[task], fps, video, own).items():
            rows.setdefault(name, []).extend(values)
        for name, found in own.items():
            sums.setdefault(name, _Sums()).merge(found)
        place = {"chunk_index": file // 1000, "file_index": file % 1000}
        about.append({
            "episode_index": len(about), "tasks": [task], "length": len(actions),
            "data/chunk_index": place["chunk_index"], "data/file_index": place["file_index"],
            "dataset_from_index": total, "dataset_to_index": total + len(actions),
            f"videos/{RGB}/chunk_index": place["chunk_index"], f"videos/{RGB}/file_index": place["file_index"],
            f"videos/{RGB}/from_timestamp": (total - begun) / fps,
            f"videos/{RGB}/to_timestamp": (total - begun + len(actions)) / fps,
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            **{f"stats/{name}/{key}": value for name, x in own.items() for key, value in x.about().items()},
        })  # fmt: skip
        total += len(actions)
    assert first is not None  # `export` calls it with at least one
    end_file()
    table("meta/episodes/chunk-000/file-000.parquet", {name: [row[name] for row in about] for name in about[0]})
    _write_tasks(out / "meta" / "tasks.parquet", tasks)
    statistics = {name: x.about() for name, x in sums.items()}
    info = _info(first, fps, len(about), total, len(tasks))
    for name, content in (("info", info), ("stats", statistics)):
        (out / "meta" / f"{name}.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _rows(
    episode: StoredEpisode, index: int, total: int, task: int, fps: float, video: VideoFile, own: dict[str, _Sums]
) -> dict[str, list[Any]]:
    """The columns of an episode; its pictures go into the video, and what `stats.json` needs of all into `own`."""
    actions, stride = episode.array("actions"), episode.metadata["frames_a_step"]
    steps = len(actions)
    poses, lenses = (episode.array(n)[: steps * stride : stride] for n in ("world_from_camera", "intrinsics_px"))
    depth: list[dict[str, Any]] = []
    millimetres = episode.depth_unit_m * 1000
    for frame, (rgb, units) in enumerate(zip(episode.pictures(), episode.depth_units(), strict=True)):
        if frame % stride or frame >= steps * stride:
            continue
        video.write(rgb)
        in_mm = units if millimetres == 1 else np.rint(units * millimetres).clip(0, 65535).astype(np.uint16)
        depth.append({"bytes": png.encode(in_mm), "path": None})
        own.setdefault(RGB, _Sums()).add(rgb.reshape(-1, 3) / 255.0, (3, 1, 1))
        own.setdefault(DEPTH, _Sums()).add(in_mm.reshape(-1, 1), (1, 1, 1))
    columns: dict[str, np.ndarray] = {
        STATE: poses[:, :3].reshape(steps, 12).astype(np.float32),
        "observation.intrinsics_px": lenses[:, (0, 1, 0, 1), (0, 1, 2, 2)].astype(np.float32),
        "action": actions.reshape(steps, -1).astype(np.float32),
        "next.reward": episode.array("rewards").astype(np.float32),
        "next.done": np.arange(1, steps + 1) == steps,
        "timestamp": (np.arange(steps) / fps).astype(np.float32),
        "frame_index": np.arange(steps),
        "episode_index": np.full(steps, index),
        "index": total + np.arange(steps),
        "task_index": np.full(steps, task),
    }
    for name, values in columns.items():
        own[name] = _Sums().add(values.reshape(steps, -1))
    return {DEPTH: depth, **{name: list(values) for name, values in columns.items()}}


class _Sums:
    """min, max, mean, std and count of columns, one batch after another."""

    def __init__(self) -> None:
        self.count = 0
        self.shape: tuple[int, ...] = ()
        self.low = self.high = self.total = self.square = np.zeros(0)

    def add(self, values: np.ndarray, shape: tuple[int, ...] = (-1,)) -> _Sums:
        """Rows of values; statistics come out in `shape`."""
        values, batch = values.astype(np.float64), _Sums()
        batch.shape, batch.count = shape, len(values)
        batch.low, batch.high = values.min(0), values.max(0)
        batch.total, batch.square = values.sum(0), (values**2).sum(0)
        return self.merge(batch)

    def merge(self, other: _Sums) -> _Sums:
        if not self.count:
            self.__dict__ |= vars(other)
            return self
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.total, self.square = self.total + other.total, self.square + other.square
        self.count += other.count
        return self

    def about(self) -> dict[str, Any]:
        mean = self.total / self.count
        std = np.sqrt(np.maximum(self.square / self.count - mean**2, 0.0))
        found = {"min": self.low, "max": self.high, "mean": mean, "std": std}
        return {**{key: value.reshape(self.shape).tolist() for key, value in found.items()}, "count": [self.count]}


def _column(name: str, values: list[Any]) -> Any:
    """Typed as the features say."""
    import pyarrow

    if name == DEPTH:
        return pyarrow.array(values, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    array = np.array(values)
    if array.ndim == 1:
        return pyarrow.array(array.astype(_INDICES.get(name, array.dtype)))
    flat = pyarrow.array(array.reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _write_tasks(path: Path, tasks: dict[str, int]) -> None:
    """A pandas table whose index is the task's words, as LeRobot reads it."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"task_index": list(tasks.values()), "task": list(tasks)})
    columns = [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": columns,
        "creator": {},
        "pandas_version": "2.0",
    }
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _info(episode: StoredEpisode, fps: float, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    height, width = episode.metadata["size_px"]
    sides = ["height", "width", "channels"]
    video = {
        "video.fps": int(fps),
        "video.height": height,
        "video.width": width,
        "video.channels": 3,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "has_audio": False,
    }
    action = int(np.prod(episode.array("actions").shape[1:]))
    features: dict[str, Any] = {
        RGB: {"dtype": "video", "shape": [height, width, 3], "names": sides, "info": video},
        DEPTH: {
            "dtype": "image",
            "shape": [height, width, 1],
            "names": sides,
            "info": {"is_depth_map": True, "depth_unit": "mm"},
        },
        STATE: {"dtype": "float32", "shape": [12], "names": _POSE},
        "observation.intrinsics_px": {"dtype": "float32", "shape": [4], "names": _LENS},
        "action": {"dtype": "float32", "shape": [action], "names": [f"action.{i}" for i in range(action)]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        **{name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _INDICES.items()},
    }
    return {
        "codebase_version": "v3.0",
        "robot_type": "camera",
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": int(fps),
        "splits": {"train": f"0:{episodes}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": features,
    }
