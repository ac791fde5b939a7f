"""The calculator for one problem, in plain Python: microseconds a call, where a batch of one takes a millisecond."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from toolagent_pl.tools import Token, Tool


class Operand(NamedTuple):
    """A number, and where in the prompt it ends."""

    value: int
    place: int


class SingleCalculator:
    """The rules of ``CalculatorEnv``, for one episode at a time; a test holds them against each other.

    Args:
        tools: By their tokens.
        memory_depth: Most values in memory.
    """

    def __init__(self, tools: Mapping[int, Tool], memory_depth: int) -> None:
        self._tools, self._memory_depth = tools, memory_depth

    def reset(self, tape: Sequence[Operand], target: int, limit: int) -> None:
        """Empty accumulator, empty memory, untouched tape; the episode is truncated after ``limit`` calls."""
        self.tape, self.memory = list(tape), list[Operand]()
        self.accumulator: Operand | None = None
        self.left: Operand | None = None
        self.target, self.limit, self.steps = target, limit, 0
        self.applied, self.terminated, self.truncated = True, False, False

    def applies(self, token: int) -> bool:
        """Whether this call would do something."""
        if token in self._tools:  # a left operand is only ever there beside an accumulator
            return self.left is not None or len(self.tape) >= (2 if self.accumulator is None else 1)
        if token == Token.STO:
            there = self.accumulator is not None or bool(self.tape)
            return self.left is None and there and len(self.memory) < self._memory_depth
        if token == Token.RCL:
            return self.left is None and bool(self.memory)
        return token == Token.ANS

    def step(self, token: int) -> None:
        """Take an action; after the end of the episode nothing changes."""
        if self.over:
            return
        self.steps += 1
        self.applied = self.applies(token)
        if self.applied:
            self._carry_out(token)
        self.truncated = self.steps >= self.limit and not self.terminated

    def _carry_out(self, token: int) -> None:
        if token == Token.ANS:
            self.terminated = True
        elif token == Token.STO:
            self.memory.append(self.accumulator or self.tape.pop(0))
            self.accumulator = None
        elif token == Token.RCL and self.accumulator is None:
            self.accumulator = self.memory.pop()
        elif token == Token.RCL:
            self.left = self.memory.pop()
        elif self.left and self.accumulator:
            self.accumulator, self.left = self._join(token, self.left, self.accumulator), None
        else:
            left = self.accumulator or self.tape.pop(0)
            self.accumulator = self._join(token, left, self.tape.pop(0))

    def _join(self, token: int, left: Operand, right: Operand) -> Operand:
        # A tool is a function of tensors, with the int64 arithmetic of tensors.
        result = self._tools[token].function(torch.tensor([left.value]), torch.tensor([right.value]))
        return Operand(int(result), right.place)

    @property
    def over(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated

    @property
    def solved(self) -> bool:
        """Whether the problem has been solved: the right answer, and nothing left over."""
        left_over = self.tape or self.memory or self.left
        return bool(self.terminated and self.accumulator and self.accumulator.value == self.target and not left_over)

    @property
    def flags(self) -> list[bool]:
        """Is there an accumulator, a left operand, something in memory; did the last call apply."""
        return [self.accumulator is not None, self.left is not None, bool(self.memory), self.applied]

    @property
    def places(self) -> list[int]:
        """Of the next operand, accumulator, top of memory and left operand; -1 where there is none."""
        ends = (self.tape[0] if self.tape else None, self.accumulator, self.memory[-1] if self.memory else None)
        return [-1 if one is None else one.place for one in (*ends, self.left)]
