"""Problems: expressions, batches of them, stages, and the streams that training and evaluation draw from."""

from toolagent_pl.problems.batch import Problems
from toolagent_pl.problems.stages import Stage, Stages

__all__ = ["Problems", "Stage", "Stages"]
