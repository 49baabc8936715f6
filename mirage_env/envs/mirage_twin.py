"""MirageTwin-v0: the dream and the truth side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium.utils import EzPickle
from jaxtyping import UInt8

from mirage_env.envs.env import Episode, WalkEnv
from mirage_env.envs.floor_plan import FloorPlan
from mirage_env.envs.mirage_sim import check_scene_seed, draw_scene_seed, truly_moved
from mirage_env.envs.simulator_world import SimulatorState, SimulatorWorld
from mirage_env.envs.world import LatentWorld, SceneSpec, World
from mirage_env.errors import UnknownNameError, check_size
from mirage_env.types import Cameras, Frames, Readout

JUDGES = ("truth", "dream")
SAME_DB = 100.0
"""The gap of equal pictures, so that it stays finite."""


@dataclass(frozen=True)
class TwinState:
    """Both worlds after the same cameras, and what the true one showed of the last chunk."""

    dream: Any
    truth: SimulatorState
    shown: Frames
    """Every true frame of the last chunk."""
    gap_db: float
    """PSNR between the dream's last generated frame and the true one."""


class TwinWorld:
    """A generated world that begins with the first frame of a simulated one; its frames are the dream's."""

    state_class = TwinState

    def __init__(self, dream: World, truth: SimulatorWorld):
        self.dream, self.truth = dream, truth
        self.size, self.latent_size, self.temporal_stride = dream.size, dream.latent_size, dream.temporal_stride
        self.channels = dream.channels if isinstance(dream, LatentWorld) else 0

    def begin(self, scene: SceneSpec, seed: int) -> tuple[Frames, TwinState]:
        shown, truth = self.truth.begin(scene, seed)
        frames, dream = self.dream.begin(replace(scene, image=shown.rgb[0].numpy()), seed)
        return frames, TwinState(dream, truth, shown, _gap_db(frames, shown))

    def advance(self, state: TwinState, cameras: Cameras) -> tuple[Frames, TwinState]:
        shown, truth = self.truth.advance(state.truth, cameras)
        frames, dream = self.dream.advance(state.dream, cameras)
        return frames, TwinState(dream, truth, shown, _gap_db(frames, shown))

    def draft(self, state: TwinState, cameras: Cameras) -> Frames:
        return self.dream.draft(state.dream, cameras)

    @property
    def identity(self) -> dict[str, str]:
        """That of the dream."""
        return getattr(self.dream, "identity", {})

    def placed(self, state: TwinState) -> TwinState:
        """The state with the dream's part on the dream's device."""
        place = getattr(self.dream, "placed", None)
        return state if place is None else replace(state, dream=place(state.dream))

    def readout(self, state: TwinState, cameras: Cameras) -> Readout:
        """What the dream's memory shows."""
        return cast(LatentWorld, self.dream).readout(state.dream, cameras)

    def stats(self, state: TwinState) -> dict[str, Any]:
        return self.dream.stats(state.dream)


class MirageTwinEnv(WalkEnv):
    """A generated world and the true one that its picture was taken in, walked together (id `MirageTwin-v0`).

    Observations are the dream's. `info["gap_db"]` is the PSNR between the last generated frame and the true one at the
    same pose and time (100 where they are equal, as at reset), and `render` shows dream and truth side by side.

    Args:
        judge: "truth": collisions, map, shortest ways and the task's reward are those of the true world, as in
            `MirageSim-v0`, so that an agent which sees the dream is scored on what is there; "dream": they are those of
            the generated world, as in `Mirage-v0`. The body is the same in both worlds, so one of them must decide.
        family, scene_seed: the scene, as in `MirageSim-v0`.
        preset, weights, device: the model, as in `Mirage-v0`.
        size: (H, W) of the frames.
        **walk: everything else is shared by all worlds, see `WalkEnv`.
    """

    reset_options = (*WalkEnv.reset_options, "scene_seed")
    world: TwinWorld

    def __init__(
        self,
        *,
        judge: str = "truth",
        family: str | None = None,
        scene_seed: int | None = None,
        preset: str = "mirage-tiny",
        size: Sequence[int] = (128, 128),
        device: str = "auto",
        weights: str | Path | None = None,
        **walk: Any,
    ):
        from mirage_env.world_model import load_world

        EzPickle.__init__(
            self, judge=judge, family=family, scene_seed=scene_seed, preset=preset, size=size, device=device,
            weights=weights, **walk,
        )  # fmt: skip
        if judge not in JUDGES:
            raise UnknownNameError("judge", judge, JUDGES)
        self.judge = judge
        self.scene_seed = None if scene_seed is None else check_scene_seed(scene_seed)
        truth = SimulatorWorld(check_size(size), family)
        WalkEnv.__init__(self, TwinWorld(load_world(preset, truth.size, device, weights), truth), **walk)

    def scene(self, options: Mapping[str, Any]) -> tuple[SceneSpec, dict[str, Any]]:
        seed = draw_scene_seed(options, self.scene_seed, self.np_random)
        intrinsics_px, about = self.lens()
        scene = SceneSpec(self.first_camera(), intrinsics_px, self.camera_height_m, scene_seed=seed)
        return scene, {"scene_seed": seed, "family": self.world.truth.family_of(seed), **about}

    def move(self, episode: Episode, target: tuple[float, float]) -> tuple[float, float]:
        """As far as the world that judges lets the body go."""
        if self.judge == "dream":
            return super().move(episode, target)
        return truly_moved(self.world.truth, episode.world.truth, episode, target, self.collision)

    def plan(self, episode: Episode) -> FloorPlan:
        return super().plan(episode) if self.judge == "dream" else self.world.truth.plan(episode.world.truth)

    def evidence(self, frames: Frames, state: TwinState) -> Frames:
        return frames if self.judge == "dream" else state.shown

    def pictures(self, episode: Episode) -> list[UInt8[np.ndarray, "H W 3"]]:
        return [*super().pictures(episode), episode.world.shown.rgb[-1].numpy().copy()]

    def _info(self, episode: Episode, *rest: Any) -> dict[str, Any]:
        return {**super()._info(episode, *rest), "gap_db": episode.world.gap_db}


def _gap_db(dream: Frames, truth: Frames) -> float:
    """10 log10(255^2 / MSE) of the last frame in dB."""
    error = dream.rgb[-1].cpu().float() - truth.rgb[-1].float()
    return min(SAME_DB, float(10 * torch.log10(255.0**2 / error.square().mean())))
