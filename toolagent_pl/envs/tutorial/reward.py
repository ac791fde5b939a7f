"""The published tutorial's shaped reward."""

from torch import Tensor

from toolagent_pl.envs.tutorial.env import TutorialEnv, tutorial_reward
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.rewards import Reward, at_last_step
from toolagent_pl.rl.rollout import Rollout


class TutorialReward(Reward):
    """The published tutorial's shaped reward, paid at the last step. Only for the tutorial's environment."""

    def check_env(self, env: Env) -> None:
        """Refuse any environment but the tutorial's."""
        if not isinstance(env, TutorialEnv):
            raise ValueError(f"reward: got TutorialReward with {type(env).__name__}, expected TutorialEnv")

    def __call__(self, env: Env, rollout: Rollout) -> Tensor:
        """Reward of each step, float32 ``[T, N]``."""
        assert isinstance(env, TutorialEnv)  # check_env saw to it
        return at_last_step(tutorial_reward(rollout.problems, env.outcome(rollout.final)), rollout)
