"""Machines as tables: a finite control, and registers that it combines.

What a token does to the shape of a state (is the accumulator empty, how many operands are left, how high is the
stack) depends on that shape and the token alone, never on a number. So it is worked out once, for all pairs of
them, and to execute a token is to look its effect up, to read two registers, and to write one.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.machines.machine import Machine
from toolagent_pl.problems import Problems
from toolagent_pl.tokens import PADDING, Token

LAST_TOKEN = max(Token)
PAIRS = 1 + LAST_TOKEN - PADDING  # of one shape: with padding, and with each token
ACCUMULATOR, ZERO, FREE = 0, 1, 2  # registers: the accumulator, the number 0, and the first of a machine's own
COPY = -1  # in the place of an operator: the left register as it is

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


def arithmetic(tool: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left tool right`` for each row, int64 ``[B]``; ``left + right`` where ``tool`` is no operator."""
    return torch.where(tool.eq(Token.MUL), left * right, left + torch.where(tool.eq(Token.SUB), -right, right))


class Effects(NamedTuple):
    """What tokens do, int64 ``[shapes, PAIRS]`` each; padding comes first.

    Attributes:
        shape: Number of the next shape. Its lowest bit says whether there is a value in the accumulator.
        tool: MUL, ADD, SUB or COPY.
        left, right: Registers that it reads.
        target: Register that it writes.
        idle: 1 where nothing changes.
    """

    shape: Tensor
    tool: Tensor
    left: Tensor
    right: Tensor
    target: Tensor
    idle: Tensor

    @classmethod
    def none(cls, shape: Tensor) -> "Effects":
        """The next shapes, and nothing else. Zero is added, so that even ``left tool right`` is a copy."""
        zero = torch.zeros_like(shape)
        return cls(shape, zero + COPY, zero + ACCUMULATOR, zero + ZERO, zero + ACCUMULATOR, zero + 1)

    def put(self, where: Tensor, **columns: Tensor | int) -> None:
        """Set what happens where ``where`` (bool) is true; columns that are not given stay as in ``none``."""
        for name, value in {"idle": 0, **columns}.items():
            column = getattr(self, name)
            column.copy_(torch.where(where, value, column))

    def table(self) -> Tensor:
        """The columns, and whether a step is taken, int64 ``[shapes * PAIRS, 7]``.

        A shape is written as the row of its token 0, so that shape plus token is the row of the pair.
        """
        padding = torch.arange(PAIRS) == 0
        first = self.shape * PAIRS - PADDING
        step = (~padding).long().expand_as(first)
        idle = self.idle.masked_fill(padding, 0)
        return torch.stack([first, *self[1:5], idle, step], 2).flatten(0, 1)


class RegisterState(NamedTuple):
    """State of ``B`` machines.

    Attributes:
        problems: The problems worked on.
        registers: int64 ``[B, R]``; one that is empty holds any number.
        shape: int64 ``[B]``, a row of the table of effects.
        done, answered: bool ``[B]``.
        steps, idle: int64 ``[B]``, actions taken, and those of them that changed nothing.
    """

    problems: Problems
    registers: Tensor
    shape: Tensor
    done: Tensor
    answered: Tensor
    steps: Tensor
    idle: Tensor

    @property
    def number(self) -> Tensor:
        """Number of the shape, int64 ``[B]``."""
        return torch.div(self.shape, PAIRS, rounding_mode="floor")

    @property
    def valued(self) -> Tensor:
        """Whether there is a value in the accumulator, bool ``[B]``."""
        return self.number % 2 == 1

    @property
    def value(self) -> Tensor:
        """The accumulator, 0 where it is empty; int64 ``[B]``."""
        return torch.where(self.valued, self.registers[:, ACCUMULATOR], 0)


class RegisterMachine(Machine[RegisterState]):
    """A machine that follows a table of effects.

    Args:
        max_steps: Actions after which an episode ends unanswered; None for no limit.
    """

    def __init__(self, max_steps: int | None = None) -> None:
        super().__init__(max_steps)
        self._tables: dict[tuple[int, torch.device], Tensor] = {}

    @abstractmethod
    def _effects(self, width: int) -> Effects:
        """The rules, for tapes of up to ``width`` operands."""

    def table(self, problems: Problems) -> Tensor:
        """The rules for these problems, int64 ``[shapes * PAIRS, 7]``; see ``Effects.table``.

        Made once: to copy them in each update, a GPU would be waited for.
        """
        key = problems.operands.shape[1], problems.device
        if key not in self._tables:
            self._tables[key] = self._effects(key[0]).table().to(key[1])
        return self._tables[key]

    def _start(self, problems: Problems, own: list[Tensor], number: Tensor) -> RegisterState:
        """Nothing done yet.

        Args:
            own: int64 ``[B, ...]`` each, the machine's own registers.
            number: int64 ``[B]``, number of the shape.
        """
        zero = torch.zeros_like(problems.target)
        no = torch.zeros_like(zero, dtype=torch.bool)
        registers = torch.cat([zero.new_zeros(problems.size, FREE), *own], 1)
        return RegisterState(problems, registers, number * PAIRS - PADDING, no, no, zero, zero)

    def step(self, state: RegisterState, action: Tensor, combine: Combine = arithmetic) -> RegisterState:
        """Execute one action for each problem.

        Args:
            action: int64 ``[B]``; a negative action is padding and takes no step.
            combine: What to write, from (tool, left, right), int64 ``[B]`` each. Where ``tool`` is COPY it must
                be ``left``, or ``left + right``.
        """
        problems, registers, shape, done, answered, steps, idle = state
        effects = self.table(problems)
        action = action.clamp(PADDING, LAST_TOKEN).masked_fill_(done, PADDING)
        effect = effects.index_select(0, shape + action)  # [B, 7]
        shape, tool, _, _, target, idled, stepped = effect.unbind(1)
        left, right = registers.gather(1, effect[:, 2:4]).unbind(1)
        registers = registers.scatter(1, target[:, None], combine(tool, left, right)[:, None])
        answer = action.eq(Token.ANS)
        steps, done = steps + stepped, done | answer
        if self.max_steps is not None:
            done = done | (steps >= self.max_steps)
        return RegisterState(problems, registers, shape, done, answered | answer, steps, idle + idled)
