"""How the frozen suites were chosen: `python -m mirage_env.evaluation.freeze [SUITE ...] --out FOLDER`.

Seeds are tried in order, several walks in each scene, until a walk fits its suite's protocol: how much of a view other
views show, by true depth, and a floor on texture. No model takes part in the choice. Running this again gives the same
files; to change a suite is to raise its version.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mirage_env.evaluation.codec import PHOTOGRAPHS
from mirage_env.evaluation.metrics import gradient_energy
from mirage_env.evaluation.suites import FOLDER, FORMAT, CameraPath, SimulatedTake, thumbnail
from mirage_env.evaluation.walk import SKY_M, seen_from
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY, Scene, free, make_scene, sample_trajectory, visible_depth
from mirage_env.simulator.trajectories import FOV_DEG, RADIUS_M
from mirage_env.types import Cameras

SCENES = 32
TRIES = 6
"""Walks tried in one scene before the next seed."""
TEXTURE_FLOOR = 0.003
"""Least gradient energy of the pictures at 64 x 64 pixels: about the lower third of all walks is blander."""
LOOK = (32, 32)
"""The size at which overlaps are judged."""
Places = Float[np.ndarray, "T 6"]


@dataclass(frozen=True)
class Draft:
    """A walk that is being judged, in the frame of the environment."""

    take: SimulatedTake
    depth_m: Float[Tensor, "T H W"]
    cameras: Cameras

    def overlap(self, seen: int, by: int) -> float:
        """The share of frame `seen` that frame `by` shows."""
        shown = seen_from(
            self.depth_m[by : by + 1], self.cameras[by : by + 1],
            self.depth_m[seen : seen + 1], self.cameras[seen : seen + 1],
        )  # fmt: skip
        return float(shown.float().mean())

    def overlaps(self, frames: Sequence[int]) -> list[float]:
        """The share of each of the frames that the first one shows."""
        return [self.overlap(frame, 0) for frame in frames]


@dataclass(frozen=True)
class Protocol:
    """What makes a suite."""

    about: str
    first_seed: int
    families: tuple[str, ...]
    walk: Callable[[Scene, np.random.Generator], Float[Tensor, "T 4 4"] | None]
    fits: Callable[[Draft], bool]
    pairs: tuple[tuple[int, int], ...] = ()


def smooth_walk(scene: Scene, rng: np.random.Generator) -> Float[Tensor, "33 4 4"]:
    """33 frames, at half of what an action may do, so that the first picture stays in sight for a while."""
    return sample_trajectory(scene, rng, str(rng.choice(("walk", "turn", "orbit"))), 33, 0.125, 5.0)


def stays_in_sight(draft: Draft) -> bool:
    """Neither a standing camera nor one that leaves everything behind."""
    return 0.15 <= min(draft.overlaps((16, 24, 32))) <= 0.8


def there_and_back(scene: Scene, rng: np.random.Generator) -> Float[Tensor, "49 4 4"]:
    """24 frames away, and back over the same places."""
    way = sample_trajectory(scene, rng, str(rng.choice(("walk", "turn", "orbit"))), 25, 0.2, 8.0)
    return torch.cat([way, way.flip(0)[1:]])


def leaves(draft: Draft) -> bool:
    """At the farthest point at most 30 % of the view was in the first one."""
    return draft.overlap(24, 0) <= 0.3


def twice_beyond(scene: Scene, rng: np.random.Generator) -> Float[Tensor, "49 4 4"]:
    """16 frames to a place that the first picture does not show, back, and there again."""
    way = sample_trajectory(scene, rng, str(rng.choice(("walk", "turn"))), 17, 0.25, 10.0)
    return torch.cat([way, way.flip(0)[1:], way[1:]])


def forgets_between(draft: Draft) -> bool:
    """The place is out of sight from halfway back to halfway there again: 16 frames, two chunks of 8."""
    return draft.overlap(16, 0) <= 0.1 and draft.overlap(16, 8) <= 0.35


def rounds(scene: Scene, rng: np.random.Generator) -> Float[Tensor, "129 4 4"] | None:
    """A closed curve of 56 frames around the start, again and again: chunks 2 and 16 see the same views."""
    start = sample_trajectory(scene, rng, "turn", 1)[0]
    phase = 2 * np.pi * np.arange(129) / 56
    right = rng.uniform(0.2, 0.6) * np.sin(phase)
    forward = rng.uniform(0.2, 0.6) * (1 - np.cos(phase))
    yaw = torch.from_numpy(np.radians(rng.uniform(-20, 20)) * np.sin(2 * phase)).float()
    poses = torch.eye(4).repeat(129, 1, 1)
    poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = yaw.cos(), yaw.sin(), -yaw.sin(), yaw.cos()
    poses[:, 0, 3], poses[:, 2, 3] = torch.from_numpy(right).float(), torch.from_numpy(forward).float()
    placed = _level(start) @ poses
    pitched = placed @ (torch.linalg.inv(_level(start)) @ start)
    return pitched if bool(free(scene, placed[:56, [0, 2], 3], RADIUS_M).all()) else None


def stays_in_seen_space(draft: Draft) -> bool:
    return min(draft.overlaps(range(7, 56, 7))) >= 0.4


PROTOCOLS = {
    "novel-view": Protocol(
        "33 frames of a smooth walk that keeps part of the first picture in sight",
        10_000, (*FAMILIES, HELD_OUT_FAMILY), smooth_walk, stays_in_sight,
    ),
    "held-out-family": Protocol(
        "novel-view in the one family of layouts and textures that training never draws from",
        20_000, (HELD_OUT_FAMILY,), smooth_walk, stays_in_sight,
    ),
    "closed-loop": Protocol(
        "24 frames away, until at most 30 % of the view was in the first picture, and back: last against first",
        30_000, FAMILIES, there_and_back, leaves, ((0, 48),),
    ),
    "revisit-invented": Protocol(
        "to a place that the picture does not show, back, and there again two chunks later: is it still there?",
        40_000, FAMILIES, twice_beyond, forgets_between, ((13, 45), (14, 46), (15, 47), (16, 48)),
    ),
    "long": Protocol(
        "16 chunks of 8 frames in rounds through seen space; chunks 2 and 16 see the same views",
        50_000, FAMILIES, rounds, stays_in_seen_space, tuple((k, k + 112) for k in range(9, 17)),
    ),
    "validation": Protocol(
        "as novel-view, in other scenes of the families that training knows: to choose by",
        901_000, FAMILIES, smooth_walk, stays_in_sight,
    ),
    "validation-revisit": Protocol(
        "as revisit-invented, in other scenes: to choose by",
        951_000, FAMILIES, twice_beyond, forgets_between, ((13, 45), (14, 46), (15, 47), (16, 48)),
    ),
}  # fmt: skip


def choose(protocol: Protocol) -> Iterator[SimulatedTake]:
    """`SCENES` takes that fit, families in turn."""
    seed = protocol.first_seed
    for number in range(SCENES):
        family = protocol.families[number % len(protocol.families)]
        take = None
        while take is None:
            take = _try_scene(protocol, f"{number:02d}-{family}", family, seed)
            seed += 1
        yield take


def _try_scene(protocol: Protocol, name: str, family: str, seed: int) -> SimulatedTake | None:
    scene, rng = make_scene(seed, family), np.random.default_rng([seed, 2])
    for _ in range(TRIES):
        poses = protocol.walk(scene, rng)
        fov = round(float(rng.uniform(*FOV_DEG)), 1)
        if poses is None:
            continue
        take = take_of(name, family, seed, poses, fov, protocol.pairs)
        cameras = take.path.cameras(LOOK)
        there = Cameras(take.scene_from_world @ cameras.world_from_camera, cameras.intrinsics_px, LOOK)
        draft = Draft(take, visible_depth(scene, there).clamp(max=SKY_M), cameras)
        if protocol.fits(draft) and texture(take) >= TEXTURE_FLOOR:
            values = {**take.__dict__, "thumbnail": thumbnail(_glimpses(take, (0,), (128, 128))[0])}
            return SimulatedTake(**values)
    return None


def take_of(
    name: str, family: str, seed: int, poses: Float[Tensor, "T 4 4"], fov_deg: float, pairs: tuple[tuple[int, int], ...]
) -> SimulatedTake:
    """Poses in a scene's world (floor at y = 0) as places relative to the first camera, rounded as they are stored."""
    level = _level(poses[0])
    here = torch.linalg.inv(level.double()) @ poses.double()
    forward, x = here[:, :3, 2], here[:, :3, 3]
    yaw = torch.atan2(forward[:, 0], forward[:, 2]).rad2deg()
    pitch = torch.asin((-forward[:, 1]).clamp(-1, 1)).rad2deg()
    rows = torch.stack([*x.unbind(1), yaw, pitch, torch.zeros_like(yaw)], 1)
    places = tuple(tuple(round(float(v), 4) + 0.0 for v in row) for row in rows)
    turned = float(torch.atan2(level[0, 2], level[2, 2]).rad2deg())
    start = (round(float(level[0, 3]), 4), round(float(level[2, 3]), 4), round(turned, 4))
    return SimulatedTake(name, family, seed, start, CameraPath(places, fov_deg, round(float(-level[1, 3]), 4)), pairs)


def _level(pose: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """The pose without its pitch: the environment's frame in the scene."""
    sin, cos = torch.nn.functional.normalize(pose[[0, 2], 2], dim=0)
    level = torch.eye(4)
    level[0, 0], level[0, 2], level[2, 0], level[2, 2] = cos, sin, -sin, cos
    level[:3, 3] = pose[:3, 3]
    return level


def texture(take: SimulatedTake) -> float:
    """Mean gradient energy of pictures along the walk; the first one must not be bland either."""
    last = len(take.path.places) - 1
    energy = gradient_energy(_glimpses(take, (0, last // 4, last // 2, last), (64, 64)))
    return float(torch.minimum(energy.mean(), energy[0]))


def _glimpses(take: SimulatedTake, frames: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The pictures of some frames, everything that moves where it is at the start."""
    places = tuple(take.path.places[i] for i in frames)
    path = CameraPath(places, take.path.fov_deg, take.path.camera_height_m)
    return SimulatedTake(**{**take.__dict__, "path": path}).walk(size).truth.rgb


def photographs() -> Iterator[dict[str, Any]]:
    """32 frames into a photograph and back to where they began, to the right and to the left in turn."""
    for number, name in enumerate(PHOTOGRAPHS):
        side = 1 if number % 2 else -1
        way = np.sin(np.pi * np.arange(33) / 32) ** 2
        rows = [[round(side * 0.5 * s, 4), 0.0, round(0.6 * s, 4), round(-side * 20.0 * s, 4), 0.0, 0.0] for s in way]
        yield {"id": name, "fov_deg": 70.0, "camera_height_m": 1.2, "path_m_deg": rows}


def entry(take: SimulatedTake) -> dict[str, Any]:
    """The take as a JSON object."""
    return {
        "id": take.id,
        "family": take.family,
        "seed": take.seed,
        "start_m_deg": take.start,
        "fov_deg": take.path.fov_deg,
        "camera_height_m": take.path.camera_height_m,
        "first_picture_8x8": take.thumbnail,
        "path_m_deg": take.path.places,
    }


def write_suite(file: Path, about: str, pairs: Sequence[tuple[int, int]], scenes: Sequence[dict[str, Any]]) -> None:
    """One line a scene, so that a change of one shows as one."""
    head = {"format": FORMAT, "name": file.stem, "version": 1, "about": about, "pairs": pairs}
    lines = ",\n".join(json.dumps(scene, separators=(",", ":")) for scene in scenes)
    file.write_text(json.dumps(head)[:-1] + f', "scenes": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Writes the named suites, or all."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("suites", nargs="*", default=[*PROTOCOLS, "photos"])
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for name in arguments.suites:
        file = arguments.out / f"{name}.json"
        if name == "photos":
            about = "scikit-image's photographs, without a truth to compare with: 32 frames that end where they began"
            write_suite(file, about, [(0, 32)], list(photographs()))
        else:
            scenes = []
            for take in choose(PROTOCOLS[name]):
                scenes.append(entry(take))
                print(f"{name} {take.id} seed {take.seed}", flush=True)
            write_suite(file, PROTOCOLS[name].about, PROTOCOLS[name].pairs, scenes)


if __name__ == "__main__":
    main()
