"""The calculator: real tools and a real memory."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.machines.machine import Machine, Outcome, execute
from toolagent_pl.problems import Problems, Stage
from toolagent_pl.tokens import PADDING, Token

MEMORY_DEPTH = 8


class CalculatorState(NamedTuple):
    """State of ``B`` calculators.

    Attributes:
        problems: The problems worked on; their operands are the tape.
        tape: int64 ``[B, N + 2]``, their operands and two empty slots, to look ahead at the end.
        position: int64 ``[B]``, operands taken from the tape so far.
        value: int64 ``[B]``, the accumulator, 0 where it is empty.
        valued: bool ``[B]``, whether the accumulator holds a value.
        left: int64 ``[B]``, the recalled left operand.
        recalled: bool ``[B]``, whether there is one.
        memory: int64 ``[B, MEMORY_DEPTH]``, a stack.
        depth: int64 ``[B]``, its height.
        done, answered: bool ``[B]``.
        steps, idle: int64 ``[B]``, actions taken, and those of them that changed nothing.
    """

    problems: Problems
    tape: Tensor
    position: Tensor
    value: Tensor
    valued: Tensor
    left: Tensor
    recalled: Tensor
    memory: Tensor
    depth: Tensor
    done: Tensor
    answered: Tensor
    steps: Tensor
    idle: Tensor


Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


def arithmetic(tool: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left tool right`` for each row; where ``tool`` is no operator the result has no meaning."""
    return torch.where(tool == Token.MUL, left * right, left + torch.where(tool == Token.SUB, -right, right))


class CalculatorMachine(Machine[CalculatorState]):
    """Reads a tape of operands from left to right, computes in an accumulator, remembers on a stack.

    - MUL, ADD, SUB join: a recalled left operand with the accumulator; else the accumulator with the next
      operand; else, with an empty accumulator, the next two operands.
    - STO pushes the accumulator and empties it; else it pushes the next operand.
    - RCL pops into the left operand; else, with an empty accumulator, into the accumulator.
      Neither STO nor RCL applies while a left operand is recalled.
    - ANS ends the episode. It is correct if the accumulator equals the target and nothing is left over on the
      tape, in memory or as a left operand: an answer that is right by luck on half-done work earns nothing.
    - Every other token, and every call that does not apply, takes a step and changes nothing.

    Args:
        max_steps: Actions after which an episode ends unanswered; None for no limit.
    """

    def start(self, problems: Problems) -> CalculatorState:
        """Empty accumulator, empty memory, untouched tape."""
        zero = torch.zeros_like(problems.target)
        no = torch.zeros_like(zero, dtype=torch.bool)
        memory = zero.new_zeros(problems.size, MEMORY_DEPTH)
        tape = torch.nn.functional.pad(problems.operands, (0, 2))
        return CalculatorState(
            problems=problems, tape=tape, position=zero, value=zero, valued=no, left=zero, recalled=no,
            memory=memory, depth=zero, done=no, answered=no, steps=zero, idle=zero,
        )  # fmt: skip

    def step(self, state: CalculatorState, action: Tensor, combine: Combine = arithmetic) -> CalculatorState:
        """Execute one action for each problem.

        Args:
            action: int64 ``[B]``; a negative action is padding and takes no step.
            combine: What the operators compute from (tool, left, right).
        """
        problems, tape, position, value, valued, left, recalled, memory, depth, done, answered, steps, idle = state
        active = ~done & (action >= 0)
        action = action.masked_fill(~active, PADDING)
        remaining = problems.length - position
        following = tape.gather(1, position[:, None])[:, 0]
        second = tape.gather(1, position[:, None] + 1)[:, 0]

        # Which rule applies; at most one of these is true in each row.
        operate = (action >= Token.MUL) & (action <= Token.SUB)
        join_recalled = operate & recalled & valued
        join_next = operate & ~recalled & valued & (remaining >= 1)
        join_two = operate & ~valued & (remaining >= 2)
        joined = join_recalled | join_next | join_two
        storable = (action == Token.STO) & ~recalled & (depth < MEMORY_DEPTH)
        store_value = storable & valued
        store_next = storable & ~valued & (remaining >= 1)
        recall = (action == Token.RCL) & ~recalled & (depth > 0)
        answer = action == Token.ANS

        slot = depth.clamp(max=MEMORY_DEPTH - 1)[:, None]
        top = memory.gather(1, (depth - 1).clamp(min=0)[:, None])[:, 0]
        stored = torch.where(store_value, value, following)
        store = store_value | store_next
        memory = torch.where(store[:, None], memory.scatter(1, slot, stored[:, None]), memory)

        result = combine(
            action,
            torch.where(join_recalled, left, torch.where(valued, value, following)),
            torch.where(join_recalled, value, torch.where(valued, following, second)),
        )
        recall_left = recall & valued
        recall_value = recall & ~valued
        new_value = torch.where(joined, result, torch.where(recall_value, top, value))
        new_value = new_value.masked_fill(store_value, 0)
        steps = steps + active
        done = done | answer
        if self.max_steps is not None:
            done = done | (steps >= self.max_steps)
        return CalculatorState(
            problems=problems,
            tape=tape,
            position=position + (join_next | store_next) + 2 * join_two,
            value=new_value,
            valued=(valued | joined | recall_value) & ~store_value,
            left=torch.where(recall_left, top, left),
            recalled=(recalled | recall_left) & ~join_recalled,
            memory=memory,
            depth=depth + store - recall.long(),
            done=done,
            answered=answered | answer,
            steps=steps,
            idle=idle + (active & ~(joined | store | recall | answer)),
        )

    def outcome(self, state: CalculatorState) -> Outcome:
        """How the episodes ended."""
        finished = (state.position == state.problems.length) & (state.depth == 0) & ~state.recalled
        right = state.valued & (state.value == state.problems.target)
        return Outcome(
            answered=state.answered,
            answer=torch.where(state.answered, state.value, 0),
            valued=state.answered & state.valued,
            correct=state.answered & right & finished,
            steps=state.steps,
        )

    def check_ladder(self, stages: Sequence[Stage]) -> None:
        """Every stage can be calculated."""

    def shortest_program(self, stage: Stage) -> list[Token]:
        """The shortest program that reads the tape from left to right."""
        return stage.program

    def run(self, problems: Problems, actions: Tensor) -> Outcome:
        """Execute whole programs.

        Args:
            actions: int64 ``[B, T]``; a negative action is padding and takes no step.

        Raises:
            ValueError: If there is not one row of int64 actions for each problem.
        """
        return self.outcome(execute(self, problems, actions)[-1])
