"""A small laboratory for agents that learn to plan, remember and call tools by reinforcement."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolagent_pl.machines import CalculatorMachine, TutorialMachine
    from toolagent_pl.problems import Problems

__all__ = ["CalculatorMachine", "Problems", "TutorialMachine", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the command line has things to do before torch is loaded."""
    if name in ("CalculatorMachine", "TutorialMachine"):
        from toolagent_pl import machines

        return getattr(machines, name)
    if name == "Problems":
        from toolagent_pl.problems import Problems

        return Problems
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
