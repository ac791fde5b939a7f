"""Environments as transition tables: a finite control state, and registers that tools combine.

What a call does to the control state (is the accumulator empty, how many operands are left, how high is the stack)
depends on that state and the token alone, never on a number. So it is worked out once, for all pairs of them: to
execute a call is to look its transition up, to read two registers, and to write one.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.envs.env import Env, Observation
from toolagent_pl.problems import Problems
from toolagent_pl.tools import PADDING, Token, Tool, Vocabulary

ACCUMULATOR, EMPTY, FREE = 0, 1, 2  # registers: the accumulator, one with nothing in it, the first of an env's own
COPY = 0  # in the place of a tool: the left register as it is
VALUE, PLACE = 0, 1  # what a register holds
IDLE = 8  # column of a table

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


class Transitions(NamedTuple):
    """What calls do, int64 ``[control states, 1 + vocabulary]`` each; padding comes first.

    Attributes:
        control: Next control state. Its lowest bit says whether there is a value in the accumulator.
        tool: Token of a tool, or COPY.
        left, right: Registers that it reads.
        target: Register that it writes.
        idle: 1 where the call does not apply.
    """

    control: Tensor
    tool: Tensor
    left: Tensor
    right: Tensor
    target: Tensor
    idle: Tensor

    @classmethod
    def none(cls, control: Tensor) -> "Transitions":
        """The next control states, and nothing else."""
        zero = torch.zeros_like(control)
        return cls(control, zero + COPY, zero + ACCUMULATOR, zero + EMPTY, zero + ACCUMULATOR, zero + 1)

    def put(self, where: Tensor, **columns: Tensor | int) -> None:
        """Set what happens where ``where`` (bool) is true; columns that are not given stay as in ``none``."""
        for name, value in {"idle": 0, **columns}.items():
            column = getattr(self, name)
            column.copy_(torch.where(where, value, column))

    def table(self) -> Tensor:
        """The columns, int64 ``[control states * (1 + vocabulary), 9]``.

        A control state is written as the row of its token 0, so that control plus token is the row of the pair. A
        register is written as the two positions of its value and its place among all numbers of a state.

        Nine numbers are no multiple of 16 bytes: a GPU gives each row that is one a block of threads of its own, which
        takes it ten times as long.
        """
        pairs = self.control.shape[1]
        first = self.control * pairs - PADDING
        idle = self.idle.masked_fill(torch.arange(pairs) == 0, 0)
        positions = [2 * register + part for register in self[2:5] for part in (VALUE, PLACE)]
        return torch.stack([first, self.tool, *positions, idle], 2).flatten(0, 1)


class RegisterState(NamedTuple):
    """State of ``B`` episodes.

    Attributes:
        registers: int64 ``[B, R, 2]``: values, and places of their last operands in the prompt. One that is empty holds
            any value; which ones are empty follows from the control state.
        control: int64 ``[B]``, the row of the transition table for token 0.
        valued: bool ``[B]``, whether there is a value in the accumulator.
        terminated, truncated: bool ``[B]``.
        applied: bool ``[B]``, whether the last call did anything; true at the start.
        steps, idle: int64 ``[B]``, actions taken, and those of them that did not apply.
        limit: int64 ``[B]``, most steps.
        target: int64 ``[B]``, the right answer.
    """

    registers: Tensor
    control: Tensor
    valued: Tensor
    terminated: Tensor
    truncated: Tensor
    applied: Tensor
    steps: Tensor
    idle: Tensor
    limit: Tensor
    target: Tensor

    @property
    def value(self) -> Tensor:
        """The accumulator, 0 where it is empty; int64 ``[B]``."""
        return torch.where(self.valued, self.registers[:, ACCUMULATOR, VALUE], 0)


class RegisterEnv(Env[RegisterState]):
    """An environment that follows a transition table."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._width = 0  # of the tapes that the tables in use are for

    def _new_tables(self, tools: Sequence[Tool]) -> None:
        self.vocabulary = Vocabulary(tools)
        self._tables = {}

    @abstractmethod
    def _transitions(self, width: int) -> Transitions:
        """The rules, for tapes of up to ``width`` operands."""

    def _reports(self, width: int) -> Tensor:
        """What is reported in each control state, int64 ``[control states, K]``: see ``observe``."""
        return torch.zeros(1, 0, dtype=torch.int64)

    def tables(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Transitions (see ``Transitions.table``) and reports for tapes of up to ``width`` operands.

        Made once: to copy them in each update, a GPU would be waited for.
        """
        key = width, device
        if key not in self._tables:
            self._tables[key] = self._transitions(width).table().to(device), self._reports(width).to(device)
        return self._tables[key]

    def _start(self, problems: Problems, own: Tensor, number: Tensor, limit: Tensor) -> RegisterState:
        """Nothing done yet.

        Args:
            own: int64 ``[B, R - FREE, 2]``, the environment's own registers.
            number: int64 ``[B]``, number of the control state.
            limit: int64 ``[B]``, most steps.
        """
        zero = torch.zeros_like(problems.target)
        no = torch.zeros_like(zero, dtype=torch.bool)
        fixed = torch.stack([zero, zero - 1], 1)[:, None].expand(-1, FREE, -1)
        pairs = 1 + self.vocabulary.size
        return RegisterState(
            registers=torch.cat([fixed, own], 1),
            control=number * pairs - PADDING,
            valued=no,
            terminated=no,
            truncated=limit.le(0),
            applied=~no,
            steps=zero,
            idle=zero,
            limit=limit,
            target=problems.target,
        )

    def _tape_width(self, state: RegisterState) -> int:
        """How many operands the tape of a state has room for."""
        raise NotImplementedError

    def step(self, state: RegisterState, action: Tensor, combine: Combine | None = None) -> RegisterState:
        """The state after an action.

        Args:
            action: int64 ``[B]``, tokens; a negative one is padding and takes no step.
            combine: What to write, from (token, left, right), int64 ``[B]`` each; the tools' functions without it.
                Where the token is COPY it must be ``left``.
        """
        table, _ = self.tables(self._tape_width(state), state.control.device)
        over = state.terminated | state.truncated
        known = torch.where(action < self.vocabulary.size, action, int(Token.EOS))  # one that does nothing
        action = known.clamp(min=PADDING).masked_fill(over, PADDING)
        row = table.index_select(0, state.control + action)  # [B, 9]
        control, tool, idle, stepped = row[:, 0], row[:, 1], row[:, IDLE], action.ne(PADDING)
        numbers = state.registers.flatten(1)  # [B, 2 R]
        left, left_place, right, right_place = numbers.gather(1, row[:, 2:6]).unbind(1)
        value = (combine or self.vocabulary.apply)(tool, left, right)
        place = torch.where(tool.eq(COPY), left_place, right_place)
        registers = numbers.scatter(1, row[:, 6:IDLE], torch.stack([value, place], 1)).view_as(state.registers)
        steps = state.steps + stepped
        terminated = state.terminated | action.eq(Token.ANS)
        return RegisterState(
            registers=registers,
            control=control,
            valued=(torch.div(control, 1 + self.vocabulary.size, rounding_mode="floor") & 1).bool(),
            terminated=terminated,
            truncated=steps.ge(state.limit) & ~terminated,
            applied=torch.where(stepped, idle.eq(0), state.applied),
            steps=steps,
            idle=state.idle + idle,
            limit=state.limit,
            target=state.target,
        )

    def applies(self, state: RegisterState, tokens: Tensor) -> Tensor:
        """Whether each of these actions would do something, bool ``[B, A]``; where an episode is over, before its end.

        Args:
            tokens: int64 ``[A]``.
        """
        table, _ = self.tables(self._tape_width(state), state.control.device)
        return table[state.control[:, None] + tokens, IDLE].eq(0)

    def observe(self, state: RegisterState) -> Observation:
        """What the tools report: flags by control state, places of the registers that the control state names."""
        _, reports = self.tables(self._tape_width(state), state.control.device)
        number = torch.div(state.control, 1 + self.vocabulary.size, rounding_mode="floor")
        row = reports.index_select(0, number) if self.flags else number.new_zeros(len(number), 0)
        flags = row[:, : max(0, self.flags - 1)].float()
        if self.flags:
            flags = torch.cat([flags, state.applied[:, None].float()], 1)
        held = row[:, self.flags - 1 : self.flags - 1 + self.places] if self.places else row[:, :0]
        return Observation(flags, state.registers[..., PLACE].gather(1, held))
