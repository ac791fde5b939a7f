"""Training with Lightning: the module, the data, and what happens around the updates."""

from toolagent_pl.training.data import ProblemDataModule
from toolagent_pl.training.module import ToolAgent

__all__ = ["ProblemDataModule", "ToolAgent"]
