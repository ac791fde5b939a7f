"""Batches of environments for Stable-Baselines3, which has a standard of its own for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    from gymnasium.vector import AutoresetMode, VectorEnv
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
except ImportError:
    raise ImportError("toolagent_pl.interop.sb3: needs Stable-Baselines3, pip install 'toolagent_pl[sb3]'") from None


class BatchVecEnv(VecEnv):
    """A vector environment of Gymnasium, stepped as the batch that it is, as Stable-Baselines3 wants it.

    It gives what ``DummyVecEnv`` makes of single environments: infos have ``TimeLimit.truncated``, and at the end of an
    episode ``terminal_observation``; ``seed(s)`` seeds environment ``i`` with ``s + i``. ``VecMonitor`` around it logs
    returns and lengths of episodes. Attributes are those of the batch, and methods return a row for each environment,
    as ``env_method("action_masks")``, which sb3-contrib's ``MaskablePPO`` asks.

    Args:
        env: One that begins a new episode in the step that ends one, ``autoreset_mode="SameStep"``.

    Raises:
        ValueError: If it does not.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset_mode: got {getattr(mode, 'value', mode)}, expected SameStep")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin new episodes, of the sequences that ``seed`` has set."""
        observation, infos = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self.reset_infos = self._infos(infos)
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take them."""
        observation, reward, terminated, truncated, found = self.env.step(self._actions)
        done, infos = terminated | truncated, self._infos(found)
        ends = self._infos(found["final_info"]) if done.any() else []
        for i in done.nonzero()[0].tolist():
            self.reset_infos[i], infos[i] = infos[i], {**ends[i], "terminal_observation": found["final_obs"][i]}
        for info, cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut
        return observation, reward.astype(np.float32), done, infos

    def _infos(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Infos of a batch, where ``_name`` says which environments have a ``name``, one by one."""
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for name, there in found.items():
            if name.startswith("_") and name not in ("_final_obs", "_final_info"):
                for i in there.nonzero()[0].tolist():
                    infos[i][name[1:]] = found[name[1:]][i]
        return infos

    def close(self) -> None:
        """Close the batch."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture of each environment."""
        images: Any = self.env.render()
        return list(images)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the batch, once for each environment."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batch."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Of what a method of the batch returns the rows of these environments."""
        rows = getattr(self.env, method_name)(*args, **kwargs)
        return [rows[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """No environment of the batch has a wrapper of its own."""
        return [False for _ in self._get_indices(indices)]
