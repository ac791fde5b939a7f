"""Arithmetic problems: expressions, batches of them, stages, and streams that never repeat."""

from toolagent_pl.problems.batch import Problems
from toolagent_pl.problems.stages import STAGES, Ladder, Stage

__all__ = ["STAGES", "Ladder", "Problems", "Stage"]
