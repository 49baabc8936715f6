"""python read_lerobot.py DATASET OUT.npz: every item of a dataset as the lerobot package loads it.

It runs in lerobot's own environment, which needs nothing of ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main(root: str, out: str) -> None:
    dataset = LeRobotDataset("mirage/rollout", root=Path(root), video_backend="pyav")
    items = [dataset[index] for index in range(len(dataset))]
    tensors = [name for name, value in items[0].items() if not isinstance(value, str)]
    about = {
        "episodes": dataset.num_episodes,
        "frames": dataset.num_frames,
        "fps": dataset.fps,
        "camera_keys": sorted(dataset.meta.camera_keys),
        "depth_keys": getattr(dataset.meta, "depth_keys", None),
        "tasks": [item["task"] for item in items],
        "action_mean": np.asarray(dataset.meta.stats["action"]["mean"]).tolist(),
    }
    np.savez(out, about=json.dumps(about), **{name: np.stack([np.asarray(i[name]) for i in items]) for name in tensors})


if __name__ == "__main__":
    main(*sys.argv[1:])
