"""A native vector environment as Stable-Baselines3 wants it.

    SB3VecEnv(gym.make_vec("Mirage-v0", num_envs=8, autoreset_mode="SameStep"))

is bit for bit a `DummyVecEnv` of the same environments, only that their worlds are asked together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv

from mirage_env.envs.vector import WalkVectorEnv
from mirage_env.errors import InvalidValueError


class SB3VecEnv(VecEnv):
    """Stable-Baselines3's `VecEnv` over a `WalkVectorEnv` or a `SyncVectorEnv`, which must reset in the same step.

    `infos[i]` is what environment i said of its last step; where that ended an episode, `terminal_observation` is what
    it showed, and `reset_infos[i]` what the new one began with. Raises InvalidValueError for another autoreset mode.
    """

    def __init__(self, env: WalkVectorEnv | SyncVectorEnv):
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise InvalidValueError(
                "Stable-Baselines3 resets in the step that ends an episode; make the vector environment with "
                'autoreset_mode="SameStep"'
            )
        if len({id(one.unwrapped) for one in env.envs}) < env.num_envs:
            raise InvalidValueError("one environment appears twice; make as many as are to walk")
        self.env, self.envs = env, env.envs
        self._actions: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = {**env.metadata, **self.metadata}

    def reset(self) -> Any:
        """Begins an episode everywhere; seeds and options that were set count once."""
        if isinstance(self.env, WalkVectorEnv) or all(own == self._options[0] for own in self._options):
            names = {name for own in self._options for name in own}
            options: Any = {name: [own.get(name) for own in self._options] for name in names}
            if not isinstance(self.env, WalkVectorEnv):
                options = dict(self._options[0])
            observations, infos = self.env.reset(seed=list(self._seeds), options=options or None)
            self.reset_infos = [unbatched(infos, i) for i in range(self.num_envs)]
        else:  # Gymnasium's own hands everybody the same
            for i in range(self.num_envs):
                one = {**self._options[i], "reset_mask": np.arange(self.num_envs) == i}
                observations, infos = self.env.reset(seed=list(self._seeds), options=one)
                self.reset_infos[i] = unbatched(infos, i)
        self._reset_seeds()
        self._reset_options()
        return _copied(observations)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        actions = self._actions
        if isinstance(actions, list):  # of dicts or tuples
            empty: Any = create_empty_array(self.action_space, self.num_envs)
            actions = concatenate(self.action_space, actions, empty)
        observations, rewards, terminated, truncated, batched = self.env.step(actions)
        last, ended = batched.pop("final_info", {}), batched.pop("final_obs", None)
        dones, infos = terminated | truncated, []
        for i in range(self.num_envs):
            info = unbatched(batched, i)
            if dones[i]:
                self.reset_infos[i] = info
                info = {**unbatched(last, i), "terminal_observation": _one(ended, i)}
            infos.append({**info, "TimeLimit.truncated": bool(truncated[i] and not terminated[i])})
        return _copied(observations), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """What each environment renders, for `render` to tile."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"the render mode is {self.render_mode}; pictures need rgb_array", stacklevel=2)
            return [None] * self.num_envs
        return [env.render() for env in self.env.envs]  # type: ignore[misc]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [env.get_wrapper_attr(attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        for env in self._chosen(indices):
            setattr(env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        return [env.get_wrapper_attr(method_name)(*method_args, **method_kwargs) for env in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        return [is_wrapped(env, wrapper_class) for env in self._chosen(indices)]

    def _chosen(self, indices: Any) -> list[Any]:
        return [self.env.envs[i] for i in self._get_indices(indices)]


def unbatched(infos: dict[str, Any], index: int) -> dict[str, Any]:
    """What environment `index` put into the info of a vector environment, in plain Python numbers."""
    own = {}
    for name, value in infos.items():
        mask = infos.get(f"_{name}")
        if mask is not None and mask[index]:
            own[name] = unbatched(value, index) if isinstance(value, dict) else _plain(value[index])
    return own


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value.copy() if isinstance(value, np.ndarray) else value


def _one(observations: Any, index: int) -> Any:
    """One observation of a batch: an array, or a mapping (with Gymnasium's masks) or tuple of them."""
    if isinstance(observations, dict):
        return {name: _one(value, index) for name, value in observations.items() if not name.startswith("_")}
    if isinstance(observations, tuple):
        return tuple(_one(value, index) for value in observations)
    return _copied(observations[index])


def _copied(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {name: _copied(value) for name, value in observations.items()}
    return tuple(map(_copied, observations)) if isinstance(observations, tuple) else observations.copy()
