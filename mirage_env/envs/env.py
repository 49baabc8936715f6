"""Walking through a world, step by step: the environment that the generated and the simulated world share."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import EzPickle
from jaxtyping import Float, UInt8
from torch import Tensor

from mirage_env.envs import actions, observations, snapshots, tasks
from mirage_env.envs.actions import Pose
from mirage_env.envs.floor_plan import FloorPlan
from mirage_env.envs.map_view import beside, draw_map
from mirage_env.envs.observations import DEFAULT_OBS
from mirage_env.envs.occupancy import BODY_M, COLLISION_MODES, Occupancy
from mirage_env.envs.registration import PlainSpec
from mirage_env.envs.snapshots import Snapshot, identity, task_name, task_parameters
from mirage_env.envs.untaken import Untaken
from mirage_env.envs.world import Advance, Begin, Draft, LatentWorld, Need, SceneSpec, Walk, World, answer
from mirage_env.errors import (
    InvalidValueError,
    SavedWorldError,
    UnknownNameError,
    check_array,
    check_count,
    check_number,
)
from mirage_env.geometry.poses import DEFAULT_FOV_DEG, check_cameras, intrinsics_from_fov
from mirage_env.lockstep import in_step
from mirage_env.types import Cameras, Frames

T = TypeVar("T")
FEEDBACK_MODES = ("draft", "hold")
STOPPED = 0.1
"""An action that asks for less than this share of a full one, in everything, asks to stop."""
TRAIL = 1000
"""How many of the last positions the map shows as the path."""


@dataclass(frozen=True)
class Episode:
    """Everything that changes between `reset` and the last step: a value, replaced at every step."""

    scene: SceneSpec
    about: Mapping[str, Any]
    """What `info` says of the scene: its source, its field of view and where that came from."""
    world: Any
    """The world's state after the last generated frame."""
    pose: Pose
    pending: tuple[tuple[Pose, ...], ...]
    """Sub-frame poses of each step that is not generated yet."""
    shown: Frames
    """The one frame that the observer sees."""
    occupancy: Occupancy
    task: Any
    """The task's state."""
    steps: int = 0
    collisions: int = 0
    over: bool = False
    skipped: int = 0
    """By how many steps the running chunk is shorter than others, so that the worlds of a vector stay in phase."""
    trail: tuple[tuple[float, float], ...] = ()
    """The last `TRAIL` places (x, z) of the body, the one now included."""
    last_action: tuple[float, ...] = (0.0,) * 7
    """See `observations.View`."""


class WalkEnv(gym.Env[Any, Any], EzPickle):
    """A camera walks through `world`; a subclass says where an episode begins.

    Time. One step is one latent frame. With `chunk=1` every observation is generated. With `chunk=n` the world is
    asked once in n steps for the frames of all of them, which is cheaper; in between, `feedback="draft"` shows a cheap
    picture of the new pose from the memory alone and `"hold"` the last frame, and `info["generated"]` is False.
    Termination, truncation and `reset` generate what is left, so that the last observation of an episode is always
    generated.

    Args:
        source: the world: what turns cameras into frames.
        world: a saved world that every episode begins in: the path of what `save` wrote, or a snapshot. What was seen
            is remembered and known, the body stands where it stood, and the task begins anew.
        fov_deg: horizontal field of view; "auto" takes the picture's own, else 70; `info["fov_source"]` says which.
        intrinsics: K (3, 3) in pixels of the world's size, instead of a field of view.
        up: which way is up in the first camera's axes (x right, y down, z forward); "auto" is a level camera.
        camera_height_m: how far above the floor the first camera is. The floor is the plane y = camera_height_m.
        action_mode: "planar", "discrete", "navigation" or "free", see `mirage_env.envs.actions`.
        step_m, turn_deg: how far one action of size 1 moves (metres) and turns (degrees).
        obs: names of observations, see `mirage_env.envs.observations`; one plain string gives its Box. The default are
            two pictures that policies can read as they are; `("rgb", "depth")` gives depth in metres.
        depth_range_m: observed depth is clipped to (near, far), in metres.
        chunk, feedback: as above.
        look_around: how many views of one turn around are generated before an episode begins, evenly spread, the last
            as the first picture, all in one chunk: map, memory and task then know what lies to the sides and behind. 0:
            none.
        task, task_kwargs: a name or an instance, see `mirage_env.envs.tasks`.
        collision: "slide", "stop", "none" or "seen", for a body of 0.2 m radius. With "seen" it slides and enters
            nothing that was never seen: in a generated world what is behind the camera is not there yet, and an agent
            that is paid for new space learns to walk backwards through all walls.
        max_episode_steps: truncate after so many steps; None never does.
        render_mode: "rgb_array" or "depth_array" (float32 metres); Gymnasium adds "human" and lists.
        render_map: put the map beside the picture of "rgb_array": what is known to be free and solid, the path, the
            camera and the goal.

    What `info` has, after `reset` and every `step`:

        world_from_camera   float32 (4, 4), where the camera is now, after collisions
        generated           whether the frame on show is generated; False for a draft or a held one
        chunk_phase         steps since the last generated frame, 0 to chunk - 1
        remembered_share    share of the latent cells of the frame that memory showed, the rest is invented
        memory_points, memory_bytes     what the world holds; 0 in the simulator
        drift               how far what is seen lies from what is remembered; 0 is none, see `World.stats`
        collided, collisions            whether this step was hindered, and how many were in this episode
        known_m3            cubic metres seen twice alike, free or solid: the coverage
        reward_terms        parts of the reward and other numbers of the task, see `envs.tasks`; empty at reset
        fov_deg, fov_source             horizontal field of view, and whence: given, picture, default or intrinsics
        image, image_sha256             generated worlds: the picture and the hash of its file or pixels
        scene_seed, family              simulated ones: the scene and its kind of place
        gap_db              `MirageTwin-v0`: PSNR of the last generated frame against the truth

    Raises:
        UnknownNameError, InvalidValueError: in one sentence, for arguments that make no sense.
    """

    metadata = {"render_modes": ["rgb_array", "depth_array"], "render_fps": 5}  # noqa: RUF012 (Gymnasium's contract)
    reset_options: tuple[str, ...] = ("world_from_camera", "world")
    """Names that `reset(options=...)` understands."""
    spec = PlainSpec()

    def __init__(
        self,
        source: World,
        *,
        world: Any = None,
        fov_deg: float | str = "auto",
        intrinsics: Any = None,
        up: Sequence[float] | np.ndarray | str = "auto",
        camera_height_m: float = 1.2,
        action_mode: str = "planar",
        step_m: float = 0.25,
        turn_deg: float = 10.0,
        obs: str | Sequence[str] = DEFAULT_OBS,
        depth_range_m: Sequence[float] = (0.1, 20.0),
        chunk: int = 1,
        feedback: str = "draft",
        look_around: int = 0,
        task: Any = "free",
        task_kwargs: Any = None,
        collision: str = "slide",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        render_map: bool = False,
    ):
        for what, name, known in (
            ("collision mode", collision, COLLISION_MODES),
            ("feedback", feedback, FEEDBACK_MODES),
            ("render mode", render_mode, (None, *self.metadata["render_modes"])),
        ):
            if name not in known:
                raise UnknownNameError(what, str(name), [str(x) for x in known])
        if multiprocessing.parent_process() is not None and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # a worker among many; and a forked pool of threads would hang
        self.world = source
        self.action_space = actions.action_space(action_mode)
        self.depth_range_m = observations.check_depth_range(depth_range_m)
        self._names = observations.parse_names(obs)
        self.obs = obs if isinstance(obs, str) else self._names
        channels = source.channels if isinstance(source, LatentWorld) else 0
        if "latent" in self._names and not channels:
            raise InvalidValueError('the observation "latent" needs a world with a latent memory; this one has none')
        layout = observations.Layout(source.size, source.latent_size, self.depth_range_m, channels)
        self.observation_space = observations.observation_space(obs, layout)
        if task_kwargs is not None and not isinstance(task_kwargs, Mapping):
            raise InvalidValueError(f"task_kwargs must be a mapping of names to values, got {task_kwargs!r}")
        self.task = tasks.make_task(task, **(task_kwargs or {}))
        if "goal" in self._names and not hasattr(self.task, "goal"):
            raise InvalidValueError('the observation "goal" needs a task with a goal; this task has none')

        self.action_mode, self.feedback, self.collision = action_mode, feedback, collision
        self.render_mode, self.render_map = render_mode, render_map
        self.step_m = check_number("step_m", step_m, 0.0, 10.0)
        self.turn_rad = math.radians(check_number("turn_deg", turn_deg, 0.0, 90.0))
        self.camera_height_m = check_number("camera_height_m", camera_height_m, 0.05, 100.0)
        self.chunk = check_count("chunk", chunk)
        self.look_around = check_count("look_around", look_around, least=0)
        self.max_episode_steps = (
            None if max_episode_steps is None else check_count("max_episode_steps", max_episode_steps)
        )
        if isinstance(up, str):
            if up != "auto":
                raise InvalidValueError(f'up must be "auto" or a vector in camera axes, got "{up}"')
            up = (0.0, -1.0, 0.0)
        self.start = actions.pose_from_up(up)
        self._intrinsics = None if intrinsics is None else _check_intrinsics(intrinsics, source.size)
        self._fov_deg = None if fov_deg == "auto" else check_number("fov_deg", fov_deg, 1.0, 170.0)

        self._episode: Episode | None = None
        self._closed = False
        self._begins_in = None if world is None else self.load(world)
        self._sharers = 1
        self._untaken = Untaken(self._sharers)

    # ---- where an episode begins ------------------------------------------------------------------------------------

    def scene(self, options: Mapping[str, Any]) -> tuple[SceneSpec, dict[str, Any]]:
        """The scene of a new episode and what `info` says about it; random choices come from `np_random`."""
        raise NotImplementedError

    def first_camera(self) -> Float[Tensor, "4 4"]:
        """`SceneSpec.world_from_camera`: where `up` puts it."""
        return actions.world_from_camera([self.start])[0]

    def lens(self, fov_deg: float | None = None, given: Any = None) -> tuple[Float[Tensor, "3 3"], dict[str, Any]]:
        """K for a picture whose own horizontal field of view may be known, and what `info` says of it.

        `given` is a K (3, 3) in pixels for this episode alone.
        """
        own = self._intrinsics if given is None else _check_intrinsics(given, self.world.size)
        if own is not None:
            intrinsics, source = own.clone(), "intrinsics"
        else:
            known = ((self._fov_deg, "given"), (fov_deg, "picture"), (DEFAULT_FOV_DEG, "default"))
            degrees, source = next((degrees, source) for degrees, source in known if degrees is not None)
            intrinsics = intrinsics_from_fov(math.radians(degrees), self.world.size)
        fov = math.degrees(2 * math.atan(0.5 * self.world.size[1] / float(intrinsics[0, 0])))
        return intrinsics, {"fov_deg": fov, "fov_source": source}

    def move(self, episode: Episode, target: tuple[float, float]) -> tuple[float, float]:
        """How far the body gets on its level way to `target` (x, z), by the map of what was generated."""
        return episode.occupancy.move((episode.pose.x, episode.pose.z), target, self.collision)

    def motion(self, action: Any) -> actions.Motion:
        """What `action` asks for, in metres and radians; raises InvalidValueError for one that makes no sense."""
        return actions.motion_from_action(action, self.action_mode, self.step_m, self.turn_rad)

    def units(self, action: Any) -> actions.Motion:
        """The same in steps and turns."""
        return actions.motion_from_action(action, self.action_mode, 1.0, 1.0)

    def plan(self, episode: Episode) -> FloorPlan:
        """Where the body can go: by the map, and through what is unknown."""
        return episode.occupancy.plan(through_unknown=True)

    def evidence(self, frames: Frames, state: Any) -> Frames:
        """What map and task are shown of the frames that the world just generated, and its state after them."""
        return frames

    def pictures(self, episode: Episode) -> list[UInt8[np.ndarray, "H W 3"]]:
        """What `render` shows side by side."""
        return [episode.shown.rgb[-1].numpy().copy()]

    # ---- Gymnasium --------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; `options["world_from_camera"]` (4, 4) starts it at another pose of the same scene, and
        `options["world"]` in a saved world, as the argument `world` does for every episode."""
        return self._alone(self.resetting(seed, options))

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One action. Raises InvalidValueError for an action that makes no sense; then nothing has changed."""
        return self._alone(self.stepping(action))

    def resetting(
        self, seed: int | None = None, options: Mapping[str, Any] | None = None, skipped: int = 0
    ) -> Walk[tuple[Any, dict[str, Any]]]:
        """`reset` as a walk; the first chunk is `skipped` steps shorter. Where it raises, the episode before it
        goes on with the random numbers it had."""
        checked, generator, seeded = self.check_options(options), self._np_random, self._np_random_seed
        numbers = None if generator is None else generator.bit_generator.state
        untaken = self._untaken
        try:
            return (yield from self._resetting(seed, checked, skipped))
        except BaseException:  # also when this walk is given up because another one failed
            self._np_random, self._np_random_seed, self._untaken = generator, seeded, untaken
            if generator is not None and numbers is not None:
                generator.bit_generator.state = numbers
            raise

    def _resetting(
        self, seed: int | None, options: Mapping[str, Any], skipped: int
    ) -> Walk[tuple[Any, dict[str, Any]]]:
        super().reset(seed=seed)
        saved = options.get("world", self._begins_in)
        more = self._of_scene(options)
        if saved is None or more:
            saved = None
            scene, about = self.scene(options)
        else:
            episode = self.load(saved).episode
            scene = episode.scene
        start = options.get("world_from_camera")
        if start is not None:
            start = _check_pose(start, scene.intrinsics_px, self.world.size)
        if self._episode is not None and self._episode.pending:
            self._episode, _ = yield from self._generated(self._episode)

        self._untaken = self._untaken.next_episode()
        if saved is None:
            frames, state = yield Begin(scene, int(self.np_random.integers(2**31)))
            frames = _on_cpu(frames)
            self._untaken.keep(frames)
            seen = self.evidence(frames, state)
            occupancy = Occupancy.empty(scene.camera_height_m).seen(seen)
            episode = Episode(scene, about, state, self.start, (), frames[-1:], occupancy, task=None)
        elif episode.pending:
            episode, seen = yield from self._generated(episode)
        else:
            seen = self.evidence(episode.shown, episode.world)
        if start is not None:
            way = (start,) * self.world.temporal_stride
            episode, seen = yield from self._generated(replace(episode, pose=start, pending=(way,)))
        if saved is None and self.look_around:
            turn = actions.around(episode.pose, self.look_around)
            ways = (actions.between(*pair, self.world.temporal_stride) for pair in pairwise(turn))
            episode, seen = yield from self._generated(replace(episode, pending=tuple(ways)))
        episode = replace(
            episode,
            task=None,
            steps=0,
            collisions=0,
            over=False,
            skipped=skipped,
            trail=((episode.pose.x, episode.pose.z),),
        )
        moment = self._moment(episode, episode, None, seen, options)
        episode = replace(episode, task=self.task.begin(moment, self.np_random))
        result = self._observe(episode, moment), self._info(episode, moment, {})
        self._episode, self._closed = episode, False
        return result

    def check_options(self, options: Any) -> Mapping[str, Any]:
        """The options of a reset; raises UnknownNameError or InvalidValueError, and nothing has changed then."""
        options = {} if options is None else options
        if not isinstance(options, Mapping):
            raise InvalidValueError(f"reset options must be a mapping of names to values, got {options!r}")
        known = (*self.reset_options, *getattr(self.task, "reset_options", ()))
        for name in options:
            if name not in known:
                raise UnknownNameError("reset option", name, known)
        if options.get("world") is not None and (more := self._of_scene(options)):
            raise InvalidValueError(f"a saved world has a scene of its own; leave out either world or {more[0]}")
        return options

    def _of_scene(self, options: Mapping[str, Any]) -> list[str]:
        return [name for name in self.reset_options if name in options and name not in WalkEnv.reset_options]

    def stepping(self, action: Any) -> Walk[tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]]:
        """`step` as a walk."""
        before = self._running("step")
        motion = self.motion(action)
        wanted = actions.moved(before.pose, motion, actions.PITCH_LIMIT[self.action_mode])
        reached = self._reached(before, wanted)
        episode = replace(
            before,
            pose=reached,
            pending=(*before.pending, actions.between(before.pose, reached, self.world.temporal_stride)),
            steps=before.steps + 1,
            collisions=before.collisions + (reached != wanted),
            trail=(*before.trail[1 - TRAIL :], (reached.x, reached.z)),
            last_action=(*self.units(action), float(reached != wanted)),
        )

        truncated = self.max_episode_steps is not None and episode.steps >= self.max_episode_steps
        due = truncated or len(episode.pending) + episode.skipped >= self.chunk
        episode, moment, verdict = yield from self._judged(before, episode, action, due)
        terminated = bool(verdict.terminated)
        if terminated and not due:
            episode, moment, verdict = yield from self._judged(before, episode, action, True)
        elif not due and self.feedback == "draft":
            draft = yield Draft(episode.world, self._cameras(episode, [reached]))
            episode = replace(episode, shown=_on_cpu(draft))

        self._episode = replace(episode, task=verdict.state, over=terminated or truncated)
        info = self._info(self._episode, moment, verdict.terms)
        return self._observe(self._episode, moment), float(verdict.reward), terminated, truncated, info

    def render(self) -> Any:
        """The frame on show: uint8 (H, W, 3), the map beside it with `render_map`, or float32 (H, W) metres of depth;
        None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode; make the environment with render_mode="rgb_array"')
            return None
        episode = self._begun("render")
        if self.render_mode == "depth_array":
            return observations.depth_m(episode.shown, self.depth_range_m)
        pictures = self.pictures(episode)
        return beside(pictures, self._drawn_map(episode)) if self.render_map else np.concatenate(pictures, axis=1)

    def close(self) -> None:
        """Drops the episode and all that was kept; only `reset` works from here."""
        self._episode = None
        self._untaken = Untaken(self._sharers)
        self._closed = True

    # ---- beyond Gymnasium -------------------------------------------------------------------------------------------

    @property
    def occupancy(self) -> Occupancy:
        """The map of everything generated in this episode."""
        return self._begun("occupancy").occupancy

    @property
    def pose(self) -> Pose:
        """Where the camera is."""
        return self._begun("pose").pose

    @property
    def goal(self) -> tuple[float, float] | None:
        """World (x, z) of the task's goal in metres; None for a task without one."""
        place = getattr(self.task, "place", None)
        return place(self._begun("goal").task) if place else None

    def top_down_map(self) -> UInt8[np.ndarray, "Z X"]:
        """See `Occupancy.top_down_map`."""
        return self.occupancy.top_down_map()

    def take_chunk(self) -> Frames | None:
        """Every frame generated since the last call, the first one of the episode included; None when there is none.

        Frames of two episodes never mix: what is left of the episode before the last `reset` comes first, alone. Older
        episodes are forgotten, and so is what exceeds 256 MiB; then the next call raises MirageError once.
        """
        return self._untaken.take()

    def share_memory(self, sharers: int) -> None:
        """Divides the memory for frames that nobody takes among `sharers` environments, of which this is one."""
        self._sharers, self._untaken = sharers, Untaken(sharers)

    @property
    def steps(self) -> int:
        """Steps taken in this episode."""
        return 0 if self._episode is None else self._episode.steps

    def snapshot(self) -> Snapshot:
        """This moment as a value: cheap, and any number may be kept."""
        episode = self._begun("snapshot")
        state, task = self.np_random.bit_generator.state, self.task
        return Snapshot(episode, state, identity(self.world), task_name(task), task_parameters(task))

    def restore(self, snapshot: Any) -> tuple[Any, dict[str, Any]]:
        """Goes back to a moment of this environment or of an equal one: a snapshot, or the path of what `save` wrote.

        Returns the observation and info of that moment, without the terms of a reward. What follows repeats bit for
        bit: frames, rewards, info, random numbers. Raises SavedWorldError for a snapshot of another world or task.
        """
        snapshot = self.load(snapshot)
        snapshot.check_task(self.task)
        episode = snapshot.episode
        if episode.pending and len(episode.pending) >= self.chunk:
            raise SavedWorldError(
                f"this snapshot was taken {len(episode.pending)} steps into a chunk, but here chunk is {self.chunk}; "
                f"make the environment with a chunk of at least {len(episode.pending) + 1}"
            )
        bits = type(self.np_random.bit_generator)()
        try:
            bits.state = dict(snapshot.np_random)
        except (KeyError, TypeError, ValueError) as error:
            raise SavedWorldError(
                f"the random numbers of this snapshot are none that can go on here ({error}); take another snapshot"
            ) from None
        moment = self._moment(episode, episode, None, None, {})
        seen, info = self._observe(episode, moment), self._info(episode, moment, {})

        self._episode, self._closed = episode, False
        self.np_random.bit_generator.state = bits.state
        self._untaken = Untaken(self._sharers)
        return seen, info

    def fork(self, count: int) -> list[WalkEnv]:
        """Environments that go on from this moment, each by itself; what they have in common is held once.

        They also have the same random numbers ahead: with equal actions they see the same. Wrappers stay behind.
        """
        here = self.snapshot()
        return [self._copy(here) for _ in range(check_count("the number of forks", count))]

    def save(self, path: str | Path) -> Path:
        """Writes `snapshot()` as one file, which replaces an older one only when it is complete."""
        return snapshots.save(path, self.snapshot(), self.world, self.task)

    def load(self, saved: Any) -> Snapshot:
        """The snapshot at a path, or the given one; raises SavedWorldError where it does not fit this world."""
        if not isinstance(saved, Snapshot):
            if not isinstance(saved, (str, Path)):
                raise InvalidValueError(f"a saved world is a path or a snapshot, got {type(saved).__name__}")
            return snapshots.load(saved, self.world, self.task, Episode)
        saved.check_world(self.world)
        return saved

    def _copy(self, moment: Snapshot) -> WalkEnv:
        other: WalkEnv = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.action_space, other.observation_space = deepcopy((self.action_space, self.observation_space))
        other.np_random = np.random.Generator(type(self.np_random.bit_generator)())
        other.restore(moment)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**EzPickle.__getstate__(self), **{name: self.__dict__.get(name) for name in self._PICKLED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        EzPickle.__setstate__(self, state)
        self.__dict__.update({name: state[name] for name in self._PICKLED})

    _PICKLED = ("_spec", "max_episode_steps", "_np_random", "_np_random_seed", "_episode", "_closed")

    # ---- the parts of a step ----------------------------------------------------------------------------------------

    def _begun(self, what: str) -> Episode:
        if self._episode is None:
            when = "after close()" if self._closed else "before reset()"
            raise ResetNeeded(f"{what} was used {when}; call reset() first")
        return self._episode

    def _running(self, what: str) -> Episode:
        episode = self._begun(what)
        if episode.over:
            raise ResetNeeded(f"{what} was used after the episode ended; call reset() first")
        return episode

    def _alone(self, walk: Walk[T]) -> T:
        def ask(needs: list[Need]) -> list[Any]:
            return answer(self.world, needs)

        return in_step([walk], ask)[0]

    def _reached(self, episode: Episode, wanted: Pose) -> Pose:
        """What collisions leave of the wanted pose: level motion by `move`, and the camera stays above the floor."""
        if self.collision == "none" or wanted[:3] == episode.pose[:3]:
            return wanted
        x, z = self.move(episode, (wanted.x, wanted.z))
        lowest = max(episode.pose.y, episode.scene.camera_height_m - BODY_M[0])
        return wanted._replace(x=x, y=min(wanted.y, lowest), z=z)

    def _drawn_map(self, episode: Episode) -> UInt8[np.ndarray, "S S 3"]:
        focal, width = float(episode.scene.intrinsics_px[0, 0]), self.world.size[1]
        return draw_map(
            episode.occupancy.top_down_map(),
            (episode.pose.x, episode.pose.z, episode.pose.yaw),
            fov_rad=2 * math.atan(0.5 * width / focal),
            trail=episode.trail,
            goal=self.goal,
        )

    def _cameras(self, episode: Episode, poses: Sequence[Pose]) -> Cameras:
        intrinsics = episode.scene.intrinsics_px.expand(len(poses), 3, 3)
        return Cameras(actions.world_from_camera(poses), intrinsics, self.world.size)

    def _generated(self, episode: Episode) -> Walk[tuple[Episode, Frames]]:
        """The episode with nothing pending, and what map and task are shown of the frames that took."""
        poses = [pose for way in episode.pending for pose in way]
        frames, state = yield Advance(episode.world, self._cameras(episode, poses))
        frames = _on_cpu(frames)
        self._untaken.keep(frames)
        seen = self.evidence(frames, state)
        occupancy = episode.occupancy.seen(seen[len(episode.pending[0]) - 1 :: len(episode.pending[0])])
        return replace(episode, world=state, pending=(), skipped=0, shown=frames[-1:], occupancy=occupancy), seen

    def _judged(
        self, before: Episode, episode: Episode, action: Any, generate: bool
    ) -> Walk[tuple[Episode, tasks.Moment, tasks.Verdict]]:
        """The episode, with what is pending generated if that is asked for, and what the task says of it."""
        frames = None
        if generate:
            episode, frames = yield from self._generated(episode)
        moment = self._moment(before, episode, action, frames, {})
        verdict = self.task.judge(before.task, moment)
        if not math.isfinite(verdict.reward):
            raise InvalidValueError(f"the task {type(self.task).__name__} gave a reward that is not finite")
        return episode, moment, verdict

    def _moment(
        self, before: Episode, episode: Episode, action: Any, frames: Frames | None, options: Mapping[str, Any]
    ) -> tasks.Moment:
        return tasks.Moment(
            step=episode.steps,
            action=action,
            previous=before.pose,
            pose=episode.pose,
            collided=episode.collisions > before.collisions,
            frames=frames,
            occupancy=episode.occupancy,
            new_voxels=episode.occupancy.known_voxels - before.occupancy.known_voxels,
            stopped=action is not None and all(abs(part) < STOPPED for part in self.units(action)),
            plan=partial(self.plan, episode),
            options=options,
        )

    def _observe(self, episode: Episode, moment: tasks.Moment) -> Any:
        goal, latent = getattr(self.task, "goal", None), None
        if "latent" in self._names:  # only where the world is one, which was checked when this was made
            shown = cast(LatentWorld, self.world).readout(episode.world, self._cameras(episode, [episode.pose]))
            latent = shown.tokens[0].cpu().numpy()
        view = observations.View(
            frame=episode.shown,
            pose=episode.pose,
            intrinsics_px=episode.scene.intrinsics_px.numpy(),
            depth_range_m=self.depth_range_m,
            chunk_share=len(episode.pending) / self.chunk,
            goal=goal(episode.task, moment) if goal and "goal" in self._names else None,
            occupancy=episode.occupancy,
            last_action=episode.last_action,
            latent=latent,
        )
        return observations.observe(self.obs, view)

    def _info(self, episode: Episode, moment: tasks.Moment, terms: Mapping[str, float]) -> dict[str, Any]:
        stats = self.world.stats(episode.world)
        return {
            "world_from_camera": actions.world_from_camera([episode.pose])[0].numpy(),
            "generated": not episode.pending,
            "chunk_phase": len(episode.pending),
            "remembered_share": float(episode.shown.remembered.float().mean()),
            "memory_points": int(stats["memory_points"]),
            "memory_bytes": int(stats["memory_bytes"]),
            "drift": float(np.nan_to_num(stats["drift"])),
            "collided": moment.collided,
            "collisions": episode.collisions,
            "known_m3": episode.occupancy.known_m3,
            "reward_terms": {name: float(value) for name, value in terms.items()},
            **episode.about,
        }


def _on_cpu(frames: Frames) -> Frames:
    return (
        frames
        if frames.rgb.device.type == "cpu"
        else Frames(**{f.name: getattr(frames, f.name).to("cpu") for f in fields(frames)})
    )


def _check_intrinsics(intrinsics: Any, size: tuple[int, int]) -> Float[Tensor, "3 3"]:
    matrix = torch.from_numpy(check_array("intrinsics", intrinsics, (3, 3)).copy())
    if matrix[2].tolist() != [0.0, 0.0, 1.0]:
        raise InvalidValueError(f"intrinsics must be a K (3, 3) whose last row is 0 0 1, got {matrix[2].tolist()}")
    (height, width), longer = size, max(size)
    for name, value, low, high in (
        ("focal length fx", matrix[0, 0], 0.05 * longer, 50.0 * longer),
        ("focal length fy", matrix[1, 1], 0.05 * longer, 50.0 * longer),
        ("centre cx", matrix[0, 2], 0.0, width),
        ("centre cy", matrix[1, 2], 0.0, height),
    ):
        if not low <= float(value) <= high:
            raise InvalidValueError(
                f"the {name} of intrinsics must be {low:g} to {high:g} pixels in a picture of {height} x {width}, "
                f"got {float(value):g}"
            )
    return matrix


def _check_pose(transform: Any, intrinsics_px: Float[Tensor, "3 3"], size: tuple[int, int]) -> Pose:
    matrix = torch.from_numpy(check_array("world_from_camera", transform, (4, 4)).copy())
    check_cameras(Cameras(matrix[None], intrinsics_px[None], size))
    return actions.pose_from_matrix(matrix)
