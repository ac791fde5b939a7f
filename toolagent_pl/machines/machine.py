"""What a tool machine is: a pure transition function on batches of states."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from toolagent_pl.problems import Problems, Stage
from toolagent_pl.tokens import Token


class Outcome(NamedTuple):
    """How ``B`` episodes ended.

    Attributes:
        answered: bool ``[B]``, whether ANS was called.
        answer: int64 ``[B]``, the value answered, 0 where there is none.
        valued: bool ``[B]``, whether there was a value to answer with.
        correct: bool ``[B]``, whether the problem was solved.
        steps: int64 ``[B]``, actions taken, ANS and calls that did nothing included.
    """

    answered: Tensor
    answer: Tensor
    valued: Tensor
    correct: Tensor
    steps: Tensor


class MachineState(Protocol):
    """What every state offers to rollouts, metrics and reports. Tensors ``[B]``."""

    @property
    def problems(self) -> Problems:
        """The problems worked on."""

    @property
    def value(self) -> Tensor:
        """int64, the accumulator; 0 where it is empty."""

    @property
    def valued(self) -> Tensor:
        """bool, whether there is a value in the accumulator."""

    @property
    def done(self) -> Tensor:
        """bool, whether the episode has ended."""

    @property
    def answered(self) -> Tensor:
        """bool, whether it has ended with ANS."""

    @property
    def steps(self) -> Tensor:
        """int64, actions taken so far."""

    @property
    def idle(self) -> Tensor:
        """int64, how many of them changed nothing."""


State = TypeVar("State", bound=MachineState)


class Machine(ABC, Generic[State]):
    """Executes tool tokens, one for each problem at a time. Its methods are pure, with no loop over problems.

    Args:
        max_steps: Actions after which an episode ends unanswered; None for no limit.

    Raises:
        ValueError: If ``max_steps`` is not positive.
    """

    def __init__(self, max_steps: int | None = None) -> None:
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"model.machine.max_steps: got {max_steps}, expected at least 1, or null for no limit")
        self.max_steps = max_steps

    @abstractmethod
    def start(self, problems: Problems) -> State:
        """The state before the first action."""

    @abstractmethod
    def step(self, state: State, action: Tensor) -> State:
        """The state after ``action`` (int64 ``[B]``, a negative one is padding). An ended episode stays as it is."""

    @abstractmethod
    def outcome(self, state: State) -> Outcome:
        """How the episodes ended, if they are left here."""

    @abstractmethod
    def check_ladder(self, stages: Sequence[Stage]) -> None:
        """Refuse stages that this machine cannot work on.

        Raises:
            ValueError: If a stage has no meaning on this machine.
        """

    @abstractmethod
    def shortest_program(self, stage: Stage) -> list[Token]:
        """The shortest program that this machine takes for a solution of every problem of a stage."""


def execute(machine: Machine[State], problems: Problems, actions: Tensor) -> list[State]:
    """All states along given actions.

    Args:
        actions: int64 ``[B, T]``; negative entries are padding.

    Returns:
        ``T + 1`` states, the first of them before any action.

    Raises:
        ValueError: If the shapes do not fit, or actions are not integers.
    """
    if actions.ndim != 2 or actions.shape[0] != problems.size or actions.dtype != torch.int64:
        raise ValueError(
            f"actions: got {actions.dtype} of shape {list(actions.shape)}, "
            f"expected int64 of shape [{problems.size}, steps], a row for each problem"
        )
    states = [machine.start(problems)]
    for action in actions.T.contiguous():
        states.append(machine.step(states[-1], action))
    return states
