"""Camera paths through scenes, and whole clips: many random walks rendered in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.simulator.collision import free
from mirage_env.simulator.render import render, visible_depth
from mirage_env.simulator.scene import FAMILIES, Scene, make_scene
from mirage_env.types import Cameras, Frames

KINDS = ("walk", "turn", "orbit", "loop", "jerky")
"""What a clip draws from that is told no kind; `bounce` is there beside them."""
RADIUS_M, BOUNCE_RADIUS_M = 0.25, 0.2
SECONDS_PER_FRAME = 0.2
FOV_DEG = (55.0, 85.0)


def sample_trajectory(
    scene: Scene, rng: np.random.Generator, kind: str, frames: int, step_m: float = 0.25, turn_deg: float = 10.0
) -> Float32[Tensor, "T 4 4"]:
    """`frames` camera poses (world_from_camera, the scene's world) that never touch anything still.

    Kinds: "walk" goes where there is room, "turn" looks around on the spot, "orbit" steps sideways around what it looks
    at, "loop" leaves and comes back over the same places, "jerky" is a random policy at the limits of the action space,
    "bounce" goes straight on until it is stopped, as near as a body comes, and then turns by a quarter to the whole of
    a circle, as agents do that have not learned yet.
    From frame to frame a camera moves at most `step_m` metres forward and sideways each and turns at most `turn_deg`.
    """
    if kind not in (*KINDS, "bounce"):
        raise UnknownNameError("trajectory kind", kind, (*KINDS, "bounce"))
    if frames < 1:
        raise InvalidValueError(f"a trajectory needs at least 1 frame, got {frames}")
    turn = np.deg2rad(turn_deg)
    height = rng.uniform(0.9, 1.7)
    x, z, yaw = _start(scene, rng, height)
    pitch = float(np.clip(rng.normal(-0.06, 0.08), -0.25, 0.2))
    if kind == "loop":
        half = frames // 2 + 1
        way = _steps(scene, rng, str(rng.choice(["walk", "turn", "orbit"])), half, step_m, turn, (x, z, yaw, pitch))
        back = way[::-1][1:]
        path = np.concatenate([way, back])[:frames]
        if len(path) < frames:
            path = np.concatenate([path, path[-1:].repeat(frames - len(path), 0)])
    else:
        path = _steps(scene, rng, kind, frames, step_m, turn, (x, z, yaw, pitch))
    states = torch.from_numpy(path).float()
    rotation = rotation_from_yaw_pitch_roll(states[:, 2], states[:, 3], torch.zeros(frames))
    return rigid(rotation, torch.stack([states[:, 0], torch.full((frames,), -float(height)), states[:, 1]], 1))


def _start(scene: Scene, rng: np.random.Generator, height: float) -> tuple[float, float, float]:
    """A free place and a heading with a view: the median depth is above a metre where the scene allows it."""
    low, high = scene.walkable[:, :2].amin(0).numpy(), scene.walkable[:, 2:].amax(0).numpy()
    for radius in (0.35, RADIUS_M):
        for _ in range(20):
            spots = torch.from_numpy(rng.uniform(low, high, (64, 2)).astype(np.float32))
            spots = spots[free(scene, spots, radius)]
            if len(spots) >= 4:
                break
        else:
            continue
        break
    else:
        raise InvalidValueError(
            f'scene {scene.seed} of family "{scene.family}" has no free floor to start on; take another seed'
        )
    spots = spots[:6]
    yaw = torch.from_numpy(rng.uniform(-np.pi, np.pi, len(spots)).astype(np.float32))
    still = torch.zeros(len(spots))
    position = torch.stack([spots[:, 0], torch.full_like(yaw, -height), spots[:, 1]], 1)
    size = (16, 16)
    lens = intrinsics_from_fov(1.2, size).expand(len(spots), 3, 3)
    depth = visible_depth(scene, Cameras(rigid(rotation_from_yaw_pitch_roll(yaw, still, still), position), lens, size))
    median = depth.flatten(1).median(1).values.numpy()
    good = np.flatnonzero(median > 1.3)
    best = int(rng.choice(good)) if len(good) else int(median.argmax())
    return float(spots[best, 0]), float(spots[best, 1]), float(yaw[best])


def _steps(
    scene: Scene, rng: np.random.Generator, kind: str, frames: int, step_m: float, turn: float,
    state: tuple[float, float, float, float],
) -> np.ndarray:  # fmt: skip
    """(frames, 4) of x, z, yaw, pitch from a start."""
    x, z, yaw, pitch = state
    path = [(x, z, yaw, pitch)]
    speed, side = rng.uniform(0.3, 1.0) * step_m, float(rng.choice([-1, 1]))
    rate, bend = rng.uniform(0.3, 1.0) * turn * side, 0.0
    distance, rest = rng.uniform(1.0, 2.5), 0.0
    radius = BOUNCE_RADIUS_M if kind == "bounce" else RADIUS_M
    for _ in range(frames - 1):
        if kind == "jerky":
            action = rng.uniform(-1, 1, 3) if rng.random() < 0.5 else rng.choice([-1.0, 0.0, 1.0], 3)
            forward, right, spin = action[0] * step_m, action[1] * step_m, action[2] * turn
            if rng.random() < 0.15:
                pitch = float(np.clip(pitch + rng.uniform(-1, 1) * turn, -0.35, 0.35))
        elif kind == "turn":
            forward, right, spin = 0.05 * step_m * rng.normal(), 0.05 * step_m * rng.normal(), rate
        elif kind == "orbit":
            forward, right = 0.0, -side * speed
            spin = float(np.clip(side * np.arctan(speed / distance), -turn, turn))
        elif kind == "bounce":
            forward, right, spin = (0.0 if rest else step_m), 0.0, side * min(rest, turn)
            rest = max(0.0, rest - turn)
        else:
            bend = 0.8 * bend + 0.35 * turn * rng.normal()
            forward, right, spin = speed, 0.0, float(np.clip(bend, -turn, turn))
            # Feel ahead with whiskers and steer to the side with more room.
            angles = yaw + np.array([-0.9, -0.45, 0.0, 0.45, 0.9])
            reach = np.array([0.4, 0.8, 1.3, 1.9])
            points = np.stack([x + np.sin(angles)[:, None] * reach, z + np.cos(angles)[:, None] * reach], -1)
            clear = free(scene, torch.from_numpy(points.reshape(-1, 2).astype(np.float32)), RADIUS_M).numpy()
            room = np.cumprod(clear.reshape(5, 4), 1).sum(1)
            if room[2] < 4:
                if room[:2].sum() != room[3:].sum():
                    side = 1.0 if room[3:].sum() > room[:2].sum() else -1.0
                spin = side * turn * (1.0 if room[2] < 2 else 0.6)
                forward *= room[2] / 4
        forward, right = float(np.clip(forward, -step_m, step_m)), float(np.clip(right, -step_m, step_m))
        sin, cos = np.sin(yaw), np.cos(yaw)
        moves = [(forward, right), (forward, 0.0), (0.0, right), (0.0, 0.0)]
        if kind == "bounce":
            moves[1:3] = [(forward / 2, 0.0), (forward / 4, 0.0)]
        ends = np.array([(x + f * sin + r * cos, z + f * cos - r * sin) for f, r in moves], dtype=np.float32)
        halfway = (ends + np.array([x, z], dtype=np.float32)) / 2
        fits = free(scene, torch.from_numpy(np.concatenate([ends, halfway])), radius).numpy()
        chosen = next((i for i in range(3) if fits[i] and fits[i + 4]), 3)
        if chosen == 3 and kind == "orbit":
            side, spin = -side, 0.0
        if chosen and kind == "bounce":
            side, rest = float(rng.choice([-1, 1])), float(rng.uniform(0.5 * np.pi, 2 * np.pi))
        if chosen < 3:
            x, z = float(ends[chosen, 0]), float(ends[chosen, 1])
        yaw += spin
        path.append((x, z, yaw, pitch))
    return np.array(path)


def sample_clip(
    seed: int,
    frames: int,
    size: tuple[int, int],
    family: str | None = None,
    kind: str | None = None,
    fov_deg: tuple[float, float] = FOV_DEG,
    device: str = "cpu",
) -> Frames:
    """One clip of `frames` pictures of `size` (H, W): scene, path and lens follow from the seed; see `sample_clips`."""
    return sample_clips([seed], frames, size, family, kind, fov_deg, device)[0]


def sample_clips(
    seeds: Sequence[int],
    frames: int,
    size: tuple[int, int],
    family: str | None = None,
    kind: str | None = None,
    fov_deg: tuple[float, float] = FOV_DEG,
    device: str = "cpu",
) -> list[Frames]:
    """A clip a seed, rendered together; a clip does not depend on its company.

    Without `family` (or `kind`) each seed draws its own from `FAMILIES` (or `KINDS`). `fov_deg` is the range of
    horizontal fields of view. Poses stay in the scene's world: floor at y = 0, +y down.
    Frames are `SECONDS_PER_FRAME` apart.
    """
    scenes, poses, lenses = [], [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        drawn_family, drawn_kind = str(rng.choice(FAMILIES)), str(rng.choice(KINDS))
        scene = make_scene(seed, family or drawn_family)
        scenes.append(scene)
        poses.append(sample_trajectory(scene, rng, kind or drawn_kind, frames))
        lenses.append(intrinsics_from_fov(float(np.deg2rad(rng.uniform(*fov_deg))), size).expand(frames, 3, 3))
    cameras = Cameras(torch.cat(poses), torch.cat(lenses), size).to(device)
    index = torch.arange(len(scenes)).repeat_interleave(frames)
    time_s = SECONDS_PER_FRAME * torch.arange(frames).float().repeat(len(scenes))
    shown = render(scenes, index, cameras, time_s)
    return [shown[i * frames : (i + 1) * frames] for i in range(len(scenes))]
