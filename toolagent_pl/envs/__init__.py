"""Environments: what an agent's calls do, what the tools report, and what episodes pay."""

from toolagent_pl.envs.calculator import CalculatorEnv
from toolagent_pl.envs.env import Env, EnvSpec, Observation, Outcome, execute
from toolagent_pl.envs.tutorial import TutorialEnv

__all__ = ["CalculatorEnv", "Env", "EnvSpec", "Observation", "Outcome", "TutorialEnv", "execute"]
