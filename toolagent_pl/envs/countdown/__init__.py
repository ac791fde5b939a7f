"""Countdown: planning on values."""

from toolagent_pl.envs.countdown.agent import AfterstateAgent, CountdownAgent
from toolagent_pl.envs.countdown.env import CountdownEnv
from toolagent_pl.envs.countdown.problems import Stage
from toolagent_pl.rl.solver import ProblemSolver as CountdownSolver

__all__ = ["AfterstateAgent", "CountdownAgent", "CountdownEnv", "CountdownSolver", "Stage"]
