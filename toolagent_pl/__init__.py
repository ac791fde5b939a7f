"""A small laboratory for agents that learn to plan, remember and call tools by reinforcement."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolagent_pl.envs.calculator import CalculatorEnv, Problems, Tool
    from toolagent_pl.envs.calculator.solver import Solver
    from toolagent_pl.envs.tutorial import TutorialEnv
    from toolagent_pl.training import ProblemDataModule, ToolAgent

_HOMES = {
    "CalculatorEnv": "envs.calculator",
    "Problems": "envs.calculator",
    "Tool": "envs.calculator",
    "Solver": "envs.calculator.solver",
    "TutorialEnv": "envs.tutorial",
    "ProblemDataModule": "training",
    "ToolAgent": "training",
}
__all__ = [
    "CalculatorEnv",
    "ProblemDataModule",
    "Problems",
    "Solver",
    "Tool",
    "ToolAgent",
    "TutorialEnv",
    "__version__",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the command line has things to do before torch is loaded."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
