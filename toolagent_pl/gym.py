"""The environments for Gymnasium under a short name, as in ``gymnasium.make("toolagent_pl.gym:toolagent_pl/...")``."""

from toolagent_pl.interop.calculator import Calculator, VectorCalculator
from toolagent_pl.interop.gymnasium import ID, SingleEnv, VectorEnv

__all__ = ["ID", "Calculator", "SingleEnv", "VectorCalculator", "VectorEnv"]
