"""A small laboratory for agents that learn to plan, remember and call tools by reinforcement."""

from toolagent_pl.machines import CalculatorMachine, TutorialMachine
from toolagent_pl.problems import Problems

__all__ = ["CalculatorMachine", "Problems", "TutorialMachine", "__version__"]
__version__ = "0.1.0"
