"""Tool machines: what the agent's actions do."""

from toolagent_pl.machines.calculator import CalculatorMachine
from toolagent_pl.machines.machine import Machine, MachineState, Outcome, execute
from toolagent_pl.machines.tutorial import TutorialMachine

__all__ = ["CalculatorMachine", "Machine", "MachineState", "Outcome", "TutorialMachine", "execute"]
