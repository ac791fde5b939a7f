"""Reinforcement learning of agents that act in environments: rollouts, rewards, algorithms. It knows no environment."""

from toolagent_pl.rl.a2c import A2C
from toolagent_pl.rl.agent import Agent, Evaluation, Policy
from toolagent_pl.rl.algorithm import Advantages, Algorithm, LossTerms
from toolagent_pl.rl.env import Env, Episode, execute, keep_ended
from toolagent_pl.rl.grpo import GRPO, RLOO
from toolagent_pl.rl.mlp import MLPAgent
from toolagent_pl.rl.ppo import PPO
from toolagent_pl.rl.replay import SuccessReplay
from toolagent_pl.rl.rewards import OutcomeReward, Reward, at_last_step
from toolagent_pl.rl.rollout import Rollout, collect

__all__ = [
    "A2C",
    "GRPO",
    "PPO",
    "RLOO",
    "Advantages",
    "Agent",
    "Algorithm",
    "Env",
    "Episode",
    "Evaluation",
    "LossTerms",
    "MLPAgent",
    "OutcomeReward",
    "Policy",
    "Reward",
    "Rollout",
    "SuccessReplay",
    "at_last_step",
    "collect",
    "execute",
    "keep_ended",
]
