"""The calculator: real tools and a real memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from toolagent_pl.machines.machine import Outcome, execute
from toolagent_pl.machines.microcode import ACCUMULATOR, FREE, PAIRS, Effects, RegisterMachine, RegisterState
from toolagent_pl.problems import Problems, Stage
from toolagent_pl.tokens import PADDING, Token

MEMORY_DEPTH = 8
# Registers: the recalled left operand, the stack, and the tape, its last operand in the last of them.
LEFT, MEMORY, TAPE = FREE, FREE + 1, FREE + 1 + MEMORY_DEPTH


def _shape(remaining: Tensor, depth: Tensor, recalled: Tensor, valued: Tensor) -> Tensor:
    """Number of a shape: operands left on the tape, height of the stack, and what is there."""
    return ((remaining * (MEMORY_DEPTH + 1) + depth) * 2 + recalled.long()) * 2 + valued.long()


def _effects(width: int) -> Effects:
    """The rules, for tapes of up to ``width`` operands."""
    axes = (torch.arange(size) for size in (width + 1, MEMORY_DEPTH + 1, 2, 2, PAIRS))
    grid = torch.meshgrid(*axes, indexing="ij")
    remaining, depth, recalled, valued, action = (axis.reshape(-1, PAIRS) for axis in grid)
    recalled, valued, action = recalled == 1, valued == 1, action + PADDING

    # Which rule applies; at most one of these is true for each pair.
    operate = action.ge(Token.MUL) & action.le(Token.SUB)
    join_recalled = operate & recalled & valued
    join_next = operate & ~recalled & valued & (remaining >= 1)
    join_two = operate & ~valued & (remaining >= 2)
    storable = action.eq(Token.STO) & ~recalled & (depth < MEMORY_DEPTH)
    store_value = storable & valued
    store_next = storable & ~valued & (remaining >= 1)
    recallable = action.eq(Token.RCL) & ~recalled & (depth > 0)
    recall_left = recallable & valued
    recall_value = recallable & ~valued

    effects = Effects.none(
        _shape(
            remaining=remaining - (join_next | store_next).long() - 2 * join_two.long(),
            depth=depth + (store_value | store_next).long() - recallable.long(),
            recalled=(recalled | recall_left) & ~join_recalled,
            valued=(valued | join_two | recall_value) & ~store_value,
        )
    )
    following, free, top = TAPE + width - remaining, MEMORY + depth, MEMORY + depth - 1
    effects.put(join_recalled, tool=action, left=LEFT, right=ACCUMULATOR)
    effects.put(join_next, tool=action, left=ACCUMULATOR, right=following)
    effects.put(join_two, tool=action, left=following, right=following + 1)
    effects.put(store_value, left=ACCUMULATOR, target=free)
    effects.put(store_next, left=following, target=free)
    effects.put(recall_left, left=top, target=LEFT)
    effects.put(recall_value, left=top, target=ACCUMULATOR)
    effects.put(action.eq(Token.ANS))
    return effects


class CalculatorMachine(RegisterMachine):
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

    def start(self, problems: Problems) -> RegisterState:
        """Empty accumulator, empty memory, untouched tape."""
        width = problems.operands.shape[1]
        position = torch.arange(width, device=problems.device) - width + problems.length[:, None]  # [B, N]
        tape = problems.operands.gather(1, position.clamp(min=0))
        nothing = torch.zeros_like(problems.length)
        shape = _shape(problems.length, depth=nothing, recalled=nothing, valued=nothing)
        return self._start(problems, [nothing[:, None].expand(-1, TAPE - FREE), tape], shape)

    def _effects(self, width: int) -> Effects:
        return _effects(width)

    def outcome(self, state: RegisterState) -> Outcome:
        """How the episodes ended."""
        accumulator = state.registers[:, ACCUMULATOR]
        valued = state.answered & state.valued
        right = (state.number == 1) & (accumulator == state.problems.target)  # nothing but a value in the accumulator
        return Outcome(
            answered=state.answered,
            answer=torch.where(valued, accumulator, 0),
            valued=valued,
            correct=valued & right,
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
