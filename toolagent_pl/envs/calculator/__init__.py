"""The calculator: expressions, the tools that work them out, and agents that read."""

from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.progress import ProgressReward
from toolagent_pl.envs.calculator.reader import Reader
from toolagent_pl.envs.calculator.stages import Stage
from toolagent_pl.envs.calculator.tools import Tool
from toolagent_pl.envs.calculator.transformer import TransformerReader

__all__ = ["CalculatorEnv", "Problems", "ProgressReward", "Reader", "Stage", "Tool", "TransformerReader"]
