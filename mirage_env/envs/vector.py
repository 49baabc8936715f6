"""Many walks at once: `gym.make_vec("Mirage-v0", num_envs=N)`. The steps are those of `WalkEnv`; here they meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from mirage_env.envs.env import WalkEnv
from mirage_env.envs.mirage import MirageEnv
from mirage_env.envs.mirage_sim import MirageSimEnv
from mirage_env.envs.mirage_twin import MirageTwinEnv
from mirage_env.envs.registration import PlainSpec
from mirage_env.envs.world import Need, Walk, answer
from mirage_env.errors import InvalidValueError, UnknownNameError, check_count
from mirage_env.lockstep import in_step

T = TypeVar("T")
BATCHING_MODES = ("auto", "exact", "batched")


class WalkVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """Several `WalkEnv` of one kind that ask the world together.

    Observations, rewards and infos are those of `SyncVectorEnv` over the same environments, which `batching="exact"`
    guarantees to the bit: environment i gives the same frames alone or in any company. `"batched"` puts all worlds that
    are due through the networks at once whatever that does to the order of sums. `"auto"` is exact on a CPU and batched
    on a GPU.

    With `chunk=n` all environments generate at the same steps: one that is reset while the others' chunk is under way
    makes its first chunk that much shorter. There alone it differs from an environment of its own.

    `reset` takes one seed (environment i gets seed + i) or a list. A list or tuple of N as an option gives environment
    i its i-th, anything else is for all (so write one pose as an array); `reset_mask`, N booleans, resets some alone.

    Args:
        envs: the environments, each with its own random numbers; their worlds must be equal.
        autoreset_mode: NEXT_STEP, SAME_STEP or DISABLED, see Gymnasium.
        batching: "auto", "exact" or "batched", as above.
    """

    spec = PlainSpec(additional_wrappers=())  # those are of single environments

    def __init__(
        self,
        envs: Sequence[WalkEnv],
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        batching: str = "auto",
    ):
        modes = {mode.name: mode for mode in AutoresetMode} | {mode.value: mode for mode in AutoresetMode}
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise UnknownNameError("autoreset mode", str(autoreset_mode), [mode.name for mode in AutoresetMode])
        if batching not in BATCHING_MODES:
            raise UnknownNameError("batching", str(batching), BATCHING_MODES)
        self.envs = list(envs)
        first = self.envs[0]
        self.num_envs, self.world, self.chunk = len(self.envs), first.world, first.chunk
        self.autoreset_mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else modes[autoreset_mode]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.exact = batching == "exact" or (batching == "auto" and _on_cpu(self.world))
        for env in self.envs:
            env.share_memory(self.num_envs)
        self.single_action_space, self.single_observation_space = first.action_space, first.observation_space
        self.action_space = batch_space(first.action_space, self.num_envs)
        self.observation_space = batch_space(first.observation_space, self.num_envs)
        self._clock = 0
        self._over = np.zeros(self.num_envs, bool)
        self._seen: list[Any] = [None] * self.num_envs

    # ---- Gymnasium --------------------------------------------------------------------------------------------------

    def reset(
        self,
        *,
        seed: Any = None,  # a whole number, N of them or None, or None; told apart here, in one sentence
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode in every environment, or in those of `options["reset_mask"]`."""
        seeds = self._seeds(seed)
        chosen, own = self._chosen(options)
        for i in chosen:
            self.envs[i].check_options(own[i])
        if len(chosen) == self.num_envs:
            self._clock = 0
        infos: dict[str, Any] = {}
        walks = [self.envs[i].resetting(seeds[i], own[i], self._clock) for i in chosen]
        for i, (seen, info) in zip(chosen, self.together(walks), strict=True):
            self._seen[i], self._over[i] = seen, False
            infos = self._add_info(infos, info, i)
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One action each. Raises InvalidValueError for actions that make no sense; then nothing has changed."""
        renewed = self._over.copy() if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros_like(self._over)
        given = self._actions(actions, renewed)
        clock = (self._clock + 1) % self.chunk
        walks: list[Walk[Any]] = [
            env.resetting(skipped=clock) if renewed[i] else env.stepping(given[i]) for i, env in enumerate(self.envs)
        ]
        results = self.together(walks)
        self._clock = clock

        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        own: list[dict[str, Any]] = [{}] * self.num_envs
        for i, result in enumerate(results):
            if renewed[i]:
                self._seen[i], own[i] = result
            else:
                self._seen[i], rewards[i], terminated[i], truncated[i], own[i] = result
        over = terminated | truncated

        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP
        ended = [i for i in range(self.num_envs) if over[i] and same_step]
        last = {i: {"final_obs": self._seen[i], "final_info": own[i]} for i in ended}
        begun = self.together([self.envs[i].resetting(skipped=clock) for i in last])
        for i, (seen, info) in zip(last, begun, strict=True):
            self._seen[i], own[i] = seen, info
        self._over = np.zeros_like(over) if same_step else over

        infos: dict[str, Any] = {}
        for i in range(self.num_envs):
            infos = self._add_info(infos, last.get(i, {}), i)
            infos = self._add_info(infos, own[i], i)
        return self._observations(), rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """What each environment renders; None without a render mode."""
        pictures = tuple(env.render() for env in self.envs)
        return None if self.render_mode is None else pictures

    def close_extras(self, **kwargs: Any) -> None:
        """Closes every environment."""
        for env in self.envs:
            env.close()

    # ---- what SyncVectorEnv has, too --------------------------------------------------------------------------------

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random numbers of each environment."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """What each environment was seeded with last."""
        return self.get_attr("np_random_seed")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute `name` of each environment, called with the arguments if it can be."""
        found = [getattr(env, name) for env in self.envs]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of each environment."""
        return tuple(getattr(env, name) for env in self.envs)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of each environment: a list or tuple of N gives each its own."""
        for env, value in zip(self.envs, per_env(name, values, self.num_envs), strict=True):
            setattr(env, name, value)

    # ---- beyond Gymnasium -------------------------------------------------------------------------------------------

    def together(self, walks: Sequence[Walk[T]]) -> list[T]:
        """Runs walks of these environments to their ends; what they need of the world at a time is asked at once."""

        def ask(needs: list[Need]) -> list[Any]:
            return answer(self.world, needs, self.exact)

        return in_step(walks, ask)

    # ---- the parts --------------------------------------------------------------------------------------------------

    def _actions(self, actions: Any, renewed: np.ndarray) -> list[Any]:
        """One action an environment, all checked before any acts."""
        if not hasattr(actions, "__len__") or len(actions) != self.num_envs:
            count = len(actions) if hasattr(actions, "__len__") else repr(actions)
            raise InvalidValueError(f"step needs one action for each of {self.num_envs} environments, got {count}")
        given = list(iterate(self.action_space, actions))
        for i in np.flatnonzero(~renewed):
            try:
                self.envs[i].motion(given[i])
            except InvalidValueError as error:
                raise InvalidValueError(f"environment {i}: {error}") from None
        return given

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None or isinstance(seed, (int, np.integer)):
            first = 0 if seed is None else check_count("seed", seed, least=0)
            return [None if seed is None else first + i for i in range(self.num_envs)]
        if not isinstance(seed, (list, tuple, np.ndarray)) or len(seed) != self.num_envs:
            got = len(seed) if isinstance(seed, (list, tuple, np.ndarray)) else repr(seed)
            raise InvalidValueError(f"seed must be one whole number or {self.num_envs} of them, got {got}")
        return [None if one is None else check_count("seed", one, least=0) for one in seed]

    def _chosen(self, options: dict[str, Any] | None) -> tuple[list[int], list[dict[str, Any]]]:
        """Which environments to reset, and the options of every one."""
        if options is not None and not isinstance(options, Mapping):
            raise InvalidValueError(f"reset options must be a mapping of names to values, got {options!r}")
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        chosen = np.ones(self.num_envs, bool) if mask is None else mask
        if not isinstance(chosen, np.ndarray) or chosen.dtype != bool or chosen.shape != (self.num_envs,):
            got = f"{chosen.dtype} {chosen.shape}" if isinstance(chosen, np.ndarray) else type(chosen).__name__
            raise InvalidValueError(f"reset_mask must be an array of {self.num_envs} booleans, got {got}")
        if not chosen.any():
            raise InvalidValueError("reset_mask chooses no environment; set at least one entry to True")
        waiting = [i for i in np.flatnonzero(~chosen) if self._seen[i] is None]
        if waiting:
            raise InvalidValueError(f"environment {waiting[0]} was never reset; reset all once before resetting some")
        each = {name: per_env(name, value, self.num_envs) for name, value in options.items()}
        own = [{name: values[i] for name, values in each.items()} for i in range(self.num_envs)]
        return np.flatnonzero(chosen).tolist(), own

    def _observations(self) -> Any:
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs, np.zeros)
        return concatenate(self.single_observation_space, self._seen, empty)


class MirageVectorEnv(WalkVectorEnv):
    """`gym.make_vec("Mirage-v0", num_envs=N)`: arguments as `MirageEnv`; a list of N as `image` gives each its own."""

    def __init__(
        self,
        num_envs: int = 1,
        image: Any = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        batching: str = "auto",
        **kwargs: Any,
    ):
        images = per_env("image", image, check_count("num_envs", num_envs))
        super().__init__([MirageEnv(own, **_limited(kwargs)) for own in images], autoreset_mode, batching)


class MirageSimVectorEnv(WalkVectorEnv):
    """`gym.make_vec("MirageSim-v0", num_envs=N)`: arguments as `MirageSimEnv`; `scene_seed` may be a list of N."""

    env_class: type[MirageSimEnv | MirageTwinEnv] = MirageSimEnv

    def __init__(
        self,
        num_envs: int = 1,
        scene_seed: int | Sequence[int] | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        batching: str = "auto",
        **kwargs: Any,
    ):
        seeds = per_env("scene_seed", scene_seed, check_count("num_envs", num_envs))
        envs = [self.env_class(scene_seed=own, **_limited(kwargs)) for own in seeds]
        super().__init__(envs, autoreset_mode, batching)


class MirageTwinVectorEnv(MirageSimVectorEnv):
    """`gym.make_vec("MirageTwin-v0", num_envs=N)`: arguments as `MirageTwinEnv`; `scene_seed` may be a list of N."""

    env_class = MirageTwinEnv


def per_env(name: str, value: Any, num_envs: int) -> list[Any]:
    """One value an environment: a list or tuple is taken apart, anything else is everybody's."""
    if not isinstance(value, (list, tuple)):
        return [value] * num_envs
    if len(value) != num_envs:
        raise InvalidValueError(f"{name} has {len(value)} entries for {num_envs} environments; give one or {num_envs}")
    return list(value)


def _limited(kwargs: dict[str, Any]) -> dict[str, Any]:
    """`gym.make_vec` hands its time limit on; as in `gym.make`, -1 is none."""
    return {**kwargs, "max_episode_steps": None} if kwargs.get("max_episode_steps") == -1 else kwargs


def _on_cpu(world: Any) -> bool:
    device = getattr(getattr(world, "dream", world), "device", None)
    return device is None or device.type == "cpu"
