"""Rewards: what an episode pays, step by step."""

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor

from toolagent_pl.machines.calculator import CalculatorMachine
from toolagent_pl.machines.machine import Machine, MachineState
from toolagent_pl.machines.microcode import COPY, RegisterState
from toolagent_pl.machines.tutorial import TutorialMachine, tutorial_reward
from toolagent_pl.tokens import Token


class Reward(ABC):
    """Pays ``B`` finished episodes. Derive from it and name your class in the configuration."""

    def check_machine(self, machine: Machine[Any]) -> None:
        """Refuse a machine on which this reward has no meaning.

        Raises:
            ValueError: If it has none.
        """

    @abstractmethod
    def __call__(self, machine: Machine[Any], final: MachineState, actions: Tensor) -> Tensor:
        """Reward of each step.

        Args:
            machine: The machine that the episodes ran on.
            final: Its state after the last action.
            actions: int64 ``[T, B]``, tokens; those after the end of an episode must be ignored.

        Returns:
            float32 ``[T, B]``, zero after the end of an episode.
        """


class OutcomeReward(Reward):
    """1 at the last step of a solved problem, else 0."""

    def __call__(self, machine: Machine[Any], final: MachineState, actions: Tensor) -> Tensor:
        """Reward of each step, float32 ``[T, B]``."""
        return _at_last_step(machine.outcome(final).correct.float(), final.steps, len(actions))


class TutorialReward(Reward):
    """The published tutorial's shaped reward, paid at the last step. Only for the tutorial's machine."""

    def check_machine(self, machine: Machine[Any]) -> None:
        """Refuse any machine but the tutorial."""
        if not isinstance(machine, TutorialMachine):
            raise ValueError(
                f"model.reward: got TutorialReward with {type(machine).__name__}, expected TutorialMachine"
            )

    def __call__(self, machine: Machine[Any], final: MachineState, actions: Tensor) -> Tensor:
        """Reward of each step, float32 ``[T, B]``."""
        return _at_last_step(tutorial_reward(final.problems, machine.outcome(final)), final.steps, len(actions))


class ProgressReward(Reward):
    """The outcome, and ``weight`` for each operator of the problem carried out on the right operands.

    Judged by structure, never by numbers: instead of values the calculator computes which span of the tape a
    value covers, and an operator counts when it joins the two spans that it joins in the problem. Numbers
    that are equal by luck are no progress.

    Args:
        weight: Reward for each operator, at the step that carries it out.

    Raises:
        ValueError: If ``weight`` is negative.
    """

    def __init__(self, weight: float = 0.2) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"model.reward.weight: got {weight}, expected a number of at least 0")
        self.weight = weight

    def check_machine(self, machine: Machine[Any]) -> None:
        """Refuse any machine but the calculator."""
        if not isinstance(machine, CalculatorMachine):
            raise ValueError(
                f"model.reward: got ProgressReward with {type(machine).__name__}, expected CalculatorMachine"
            )

    def __call__(self, machine: Machine[Any], final: MachineState, actions: Tensor) -> Tensor:
        """Reward of each step, float32 ``[T, B]``."""
        assert isinstance(machine, CalculatorMachine)  # check_machine saw to it
        problems = final.problems
        width = problems.operands.shape[1]
        tool, start, split, end = problems.tree.unbind(2)  # [B, M]

        def span(first: Tensor, last: Tensor) -> Tensor:
            return first * (width + 1) + last

        def join(action: Tensor, left: Tensor, right: Tensor) -> Tensor:
            """Span of the operator that joins these spans, or -1 where the problem has none."""
            match = (tool == action[:, None]) & (span(start, split) == left[:, None])
            match &= span(split, end) == right[:, None]
            joined = torch.where(match, span(start, end), -1).amax(1) if match.shape[1] else torch.full_like(left, -1)
            return torch.where(action == COPY, left, joined)

        position = torch.arange(width, device=problems.device)
        leaves = span(position, position + 1).expand_as(problems.operands)
        state = machine.start(problems._replace(operands=leaves))
        carried_out = []
        for action in actions:
            before = state
            state = machine.step(state, action, combine=join)
            worked = (state.steps > before.steps) & (state.idle == before.idle)
            operator = action.ge(Token.MUL) & action.le(Token.SUB)
            carried_out.append(worked & operator & (state.value >= 0))
        outcome = _at_last_step(machine.outcome(cast(RegisterState, final)).correct.float(), final.steps, len(actions))
        return outcome + self.weight * torch.stack(carried_out)


def _at_last_step(reward: Tensor, steps: Tensor, horizon: int) -> Tensor:
    """``reward`` [B] placed at the last step taken by each episode, float32 ``[T, B]``."""
    last = torch.arange(1, horizon + 1, device=reward.device)[:, None] == steps
    return reward * last
