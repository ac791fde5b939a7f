"""A small laboratory for agents that learn to plan, remember and call tools by reinforcement."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolagent_pl.envs import CalculatorEnv, TutorialEnv
    from toolagent_pl.problems import Problems
    from toolagent_pl.solver import Solver
    from toolagent_pl.tools import Tool

__all__ = ["CalculatorEnv", "Problems", "Solver", "Tool", "TutorialEnv", "__version__"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the command line has things to do before torch is loaded."""
    if name in ("CalculatorEnv", "TutorialEnv"):
        from toolagent_pl import envs

        return getattr(envs, name)
    if name == "Problems":
        from toolagent_pl.problems import Problems

        return Problems
    if name == "Solver":
        from toolagent_pl.solver import Solver

        return Solver
    if name == "Tool":
        from toolagent_pl.tools import Tool

        return Tool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
