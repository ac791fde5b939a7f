"""Learning: rollouts, rewards, and algorithms that turn them into losses."""

from toolagent_pl.learning.a2c import A2C
from toolagent_pl.learning.algorithm import Advantages, Algorithm, LossTerms
from toolagent_pl.learning.grpo import GRPO, RLOO
from toolagent_pl.learning.ppo import PPO
from toolagent_pl.learning.replay import SuccessReplay
from toolagent_pl.learning.rewards import OutcomeReward, ProgressReward, Reward, TutorialReward
from toolagent_pl.learning.rollout import collect
from toolagent_pl.learning.tutorial import TutorialA2C

__all__ = [
    "A2C",
    "GRPO",
    "PPO",
    "RLOO",
    "Advantages",
    "Algorithm",
    "LossTerms",
    "OutcomeReward",
    "ProgressReward",
    "Reward",
    "SuccessReplay",
    "TutorialA2C",
    "TutorialReward",
    "collect",
]
