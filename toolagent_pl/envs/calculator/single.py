"""The calculator for one problem, in plain Python: microseconds a call, where a batch of one takes a millisecond."""

from typing import NamedTuple

import torch

from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.tools import Token

BLOCK = 128  # problems that are made at a time: one alone takes nearly as long


class Value(NamedTuple):
    """A number, and where in the prompt its last operand ends."""

    number: int
    position: int


class SingleProblem(NamedTuple):
    """One problem of a batch: columns of ``Problems`` without padding, and ``limit``, the most actions."""

    number: int
    stage: int
    prompt: list[int]
    tape: list[Value]
    target: int
    limit: int


def single_problems(env: CalculatorEnv, problems: Problems) -> list[SingleProblem]:
    """The problems of a batch, one by one."""
    told = (problems.number, problems.stage, problems.prompt, problems.prompt_length)
    tape = (problems.operands, problems.positions, problems.length)
    columns = (*told, *tape, problems.target, env.reset(problems).limit)
    return [
        SingleProblem(number, stage, prompt[:end], [*map(Value, operands[:length], positions[:length])], target, limit)
        for number, stage, prompt, end, operands, positions, length, target, limit in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def single_problem(env: CalculatorEnv, expression: str) -> SingleProblem:
    """The problem that is written; see ``Problems.from_expressions``."""
    return single_problems(env, Problems.from_expressions([expression], env.vocabulary.tools, minimal_brackets=True))[0]


class SingleCalculator:
    """The rules of a ``CalculatorEnv``, for one episode at a time; a test holds them against each other.

    Args:
        env: Whose actions, tools, feedback and depth of memory these are.
    """

    def __init__(self, env: CalculatorEnv) -> None:
        self._env, self._tools = env, env.vocabulary.by_token

    def reset(self, problem: SingleProblem) -> None:
        """Empty accumulator, empty memory, untouched tape."""
        self.problem, self.tape, self.memory = problem, problem.tape.copy(), list[Value]()
        self.accumulator: Value | None = None
        self.left: Value | None = None
        self.steps = 0
        self.applied, self.terminated, self.truncated = True, False, False

    def applies(self, action: int) -> bool:
        """Whether this action would do something; after the end of the episode, before it."""
        token = self._env.tokens[action]
        if token in self._tools:  # a left operand is only ever there beside an accumulator
            return self.left is not None or len(self.tape) >= (2 if self.accumulator is None else 1)
        if token == Token.STO:
            there = self.accumulator is not None or bool(self.tape)
            return self.left is None and there and len(self.memory) < self._env.memory_depth
        if token == Token.RCL:
            return self.left is None and bool(self.memory)
        return token == Token.ANS

    def step(self, action: int) -> None:
        """Take an action; after the end of the episode nothing changes."""
        if self.over:
            return
        self.steps += 1
        self.applied = self.applies(action)
        if self.applied:
            self._carry_out(self._env.tokens[action])
        self.truncated = self.steps >= self.problem.limit and not self.terminated

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
        else:
            left = self.left or self.accumulator or self.tape.pop(0)
            right = self.accumulator if self.left and self.accumulator else self.tape.pop(0)
            # A tool is a function of tensors, with the int64 arithmetic of tensors.
            number = self._tools[token].function(torch.tensor([left.number]), torch.tensor([right.number]))
            self.accumulator, self.left = Value(int(number), right.position), None

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.terminated or self.truncated

    @property
    def solved(self) -> bool:
        """Whether the problem is solved: the right answer, and nothing left over."""
        return self.terminated and self.right and not (self.tape or self.memory or self.left)

    @property
    def right(self) -> bool:
        """Whether the accumulator has the right answer."""
        return self.accumulator is not None and self.accumulator.number == self.problem.target

    @property
    def flags(self) -> list[bool]:
        """Is there an accumulator, a left operand, something in memory; did the last call apply. As reported."""
        return [self.accumulator is not None, self.left is not None, bool(self.memory), self.applied][: self._env.flags]

    @property
    def positions(self) -> list[int]:
        """Of next operand, accumulator, top of memory and left operand; -1 where there is none. As reported."""
        next_operand, top = self.tape[0] if self.tape else None, self.memory[-1] if self.memory else None
        values = (next_operand, self.accumulator, top, self.left)[: self._env.positions]
        return [-1 if value is None else value.position for value in values]
