"""To look at: OUT/000007.mp4 and OUT/000007.png, the contact sheet with depth and what was remembered."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from mirage_env.artefacts import VIDEO_MIN_SIDE_PX, walk_sheet, write_video
from mirage_env.rollout.store import StoredEpisode
from mirage_env.types import Cameras, Frames


def write(episodes: Iterable[StoredEpisode], out: Path) -> None:
    for episode in episodes:
        rgb, about = episode.rgb(), episode.metadata
        height, width = about["size_px"]
        enlargement = -(-VIDEO_MIN_SIDE_PX // min(height, width))
        write_video(out / f"{episode.name}.mp4", rgb, fps=about["fps"], enlargement=enlargement)
        depth_m = torch.from_numpy(episode.depth_m())
        poses, lenses = (torch.from_numpy(episode.array(n)) for n in ("world_from_camera", "intrinsics_px"))
        remembered = torch.from_numpy(episode.array("remembered"))
        nothing = torch.zeros(depth_m.shape, dtype=torch.bool)
        cameras = Cameras(poses, lenses, (height, width))
        frames = Frames(torch.from_numpy(rgb), depth_m, nothing, nothing, remembered, cameras)
        found = about["certificate"]
        words = f"{about['image'] or about['env']}, {about['mover']}; reprojection {found['reprojection_rel']}"
        walk_sheet(frames, title=f"Episode {episode.name}", subtitle=words).save(out / f"{episode.name}.png")
