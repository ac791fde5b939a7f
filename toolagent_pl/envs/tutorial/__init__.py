"""The published tutorial: its environment with everything that is odd in it, its agent, its reward and its A2C."""

from toolagent_pl.envs.tutorial.a2c import TutorialA2C
from toolagent_pl.envs.tutorial.blind import BlindAgent
from toolagent_pl.envs.tutorial.env import TutorialEnv
from toolagent_pl.envs.tutorial.reward import TutorialReward

__all__ = ["BlindAgent", "TutorialA2C", "TutorialEnv", "TutorialReward"]
