"""The calculator: real tools and a real memory."""

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import (
    ACCUMULATOR,
    EMPTY,
    FREE,
    VALUE,
    Outcome,
    RegisterEnv,
    RegisterState,
    Transitions,
)
from toolagent_pl.envs.calculator.stages import Stage
from toolagent_pl.envs.calculator.tools import FLAGS, POSITIONS, Token, Tool
from toolagent_pl.rl.checks import check_range

Feedback = Literal["none", "flags", "position", "spans"]
UNLIMITED = 2**62
MAX_STEPS = 1024
MAX_MEMORY = 64
LEFT, MEMORY = FREE, FREE + 1  # registers: the recalled left operand, the stack, and behind it the tape


class CalculatorEnv(RegisterEnv):
    """Reads a tape of operands from left to right, computes in an accumulator, remembers on a stack.

    - A tool joins: a recalled left operand with the accumulator; else the accumulator with the next
      operand; else, with an empty accumulator, the next two operands.
    - STO pushes the accumulator and empties it; else it pushes the next operand.
    - RCL pops into the left operand; else, with an empty accumulator, into the accumulator.
      Neither STO nor RCL applies while a left operand is recalled.
    - ANS ends the episode. It is correct if the accumulator equals the target and nothing is left over on the
      tape, in memory or as a left operand: an answer that is right by luck on half-done work earns nothing.
    - Every other token, and every call that does not apply, takes a step and changes nothing.

    Args:
        stages: Stages that are trained on, easiest first: T0, T1, T2, E and a number of operators, or stages with a
            pattern or a number of operators.
        unseen: Stages that are tested on only.
        tools: What expressions are made of: MUL, ADD, SUB, tools, or dotted paths of tools, as in ``mine.MAX``.
        actions: Names of the tokens that may be called; null for the tools, ANS, STO and RCL.
        max_steps: Actions after which an episode is truncated; null for no limit; ``auto`` for three an operator of the
            problem and three more, which the reference plan always fits into.
        memory_depth: Most values in memory.
        feedback: What the tools report: ``none``; ``flags``; ``position``, flags and where in the prompt the next
            operand stands; ``spans``, also where the values in the accumulator, on top of memory and as left operand
            end.

    Raises:
        ValueError: If a number is out of range, or a stage, tool or action is unknown.
    """

    def __init__(
        self,
        stages: Sequence[str | Stage] = ("T0", "T1", "T2", "E1", "E2", "E3", "E4", "E5"),
        unseen: Sequence[str | Stage] = (),
        tools: Sequence[str | Tool] = ("MUL", "ADD", "SUB"),
        actions: Sequence[str] | None = None,
        max_steps: int | Literal["auto"] | None = "auto",
        memory_depth: int = 8,
        feedback: Feedback = "spans",
    ) -> None:
        super().__init__(stages, unseen, tools, actions)
        if max_steps != "auto":
            check_range(at_least=1, at_most=MAX_STEPS, max_steps=max_steps)
        check_range(at_least=1, at_most=MAX_MEMORY, memory_depth=memory_depth)
        if feedback not in get_args(Feedback):
            raise ValueError(f"feedback: got {feedback}, expected {', '.join(get_args(Feedback))}")
        self.max_steps, self.memory_depth, self.feedback = max_steps, memory_depth, feedback
        self.flags = 0 if feedback == "none" else len(FLAGS)
        self.positions = {"none": 0, "flags": 0, "position": 1, "spans": len(POSITIONS)}[feedback]

    def check(self) -> None:
        """Refuse a step limit that the reference plan does not fit into, and actions that it cannot do without.

        Raises:
            ValueError: Names the option to change.
        """
        for i, name in enumerate(self.all_stages):
            longest, needed = self._stages.longest_plan(i)
            if isinstance(self.max_steps, int) and longest > self.max_steps:
                raise ValueError(
                    f"max_steps: got {self.max_steps}, expected at least {longest}, the length of the longest plan of "
                    f"{name}"
                )
            if missing := [self.vocabulary.name(token) for token in needed if token not in self.tokens]:
                raise ValueError(f"actions: got no {', '.join(missing)}, expected what a plan of {name} is made of")

    def _limit(self, problems: Problems) -> Tensor:
        if self.max_steps == "auto":
            return 3 * problems.length
        return torch.full_like(problems.length, UNLIMITED if self.max_steps is None else int(self.max_steps))

    def horizon(self, problems: Problems) -> int:
        """Most actions that any of these episodes can take.

        Raises:
            ValueError: If there is no limit.
        """
        if self.max_steps is None:
            raise ValueError(f"max_steps: got null, expected 1 to {MAX_STEPS}, or auto, to let an agent act")
        return 3 * problems.operands.shape[1] if self.max_steps == "auto" else self.max_steps

    def _control(self, remaining: Tensor, depth: Tensor, recalled: Tensor, valued: Tensor) -> Tensor:
        """Number of a control state: operands left on the tape, height of the stack, and what is there."""
        return ((remaining * (self.memory_depth + 1) + depth) * 2 + recalled.long()) * 2 + valued.long()

    def _grid(self, width: int, *more: int) -> list[Tensor]:
        """Remaining operands, height, recalled, valued of all control states, and further axes."""
        axes = (torch.arange(size) for size in (width + 1, self.memory_depth + 1, 2, 2, *more))
        return [axis.reshape(-1, *more) for axis in torch.meshgrid(*axes, indexing="ij")]

    @property
    def _tape(self) -> int:
        """First register of the tape, whose last operand is in the last register."""
        return MEMORY + self.memory_depth

    def _tape_width(self, state: RegisterState) -> int:
        return state.registers.shape[1] - self._tape

    def _transitions(self, width: int, token: Tensor) -> Transitions:
        remaining, depth, recalled, valued, action = self._grid(width, len(token))
        recalled, valued, action = recalled == 1, valued == 1, token[action]

        # Which rule applies; at most one of these is true for each pair.
        operate = torch.isin(action, torch.tensor(self.vocabulary.operators))
        join_recalled = operate & recalled & valued
        join_next = operate & ~recalled & valued & (remaining >= 1)
        join_two = operate & ~valued & (remaining >= 2)
        storable = action.eq(Token.STO) & ~recalled & (depth < self.memory_depth)
        store_value = storable & valued
        store_next = storable & ~valued & (remaining >= 1)
        recallable = action.eq(Token.RCL) & ~recalled & (depth > 0)
        recall_left = recallable & valued
        recall_value = recallable & ~valued

        transitions = Transitions.none(
            self._control(
                remaining=remaining - (join_next | store_next).long() - 2 * join_two.long(),
                depth=depth + (store_value | store_next).long() - recallable.long(),
                recalled=(recalled | recall_left) & ~join_recalled,
                valued=(valued | join_two | recall_value) & ~store_value,
            )
        )
        following, free, top = self._tape + width - remaining, MEMORY + depth, MEMORY + depth - 1
        transitions.put(join_recalled, tool=action, left=LEFT, right=ACCUMULATOR)
        transitions.put(join_next, tool=action, left=ACCUMULATOR, right=following)
        transitions.put(join_two, tool=action, left=following, right=following + 1)
        transitions.put(store_value, left=ACCUMULATOR, target=free)
        transitions.put(store_next, left=following, target=free)
        transitions.put(recall_left, left=top, target=LEFT)
        transitions.put(recall_value, left=top, target=ACCUMULATOR)
        transitions.put(action.eq(Token.ANS))
        return transitions

    def _reports(self, width: int) -> Tensor:
        """Three flags, then the registers whose positions are reported; EMPTY where there is nothing."""
        remaining, depth, recalled, valued = self._grid(width)
        return torch.stack(
            [
                valued,
                recalled,
                depth.gt(0).long(),
                torch.where(remaining.gt(0), self._tape + width - remaining, EMPTY),
                torch.where(valued.gt(0), ACCUMULATOR, EMPTY),
                torch.where(depth.gt(0), MEMORY + depth - 1, EMPTY),
                torch.where(recalled.gt(0), LEFT, EMPTY),
            ],
            1,
        )

    def reset(self, problems: Problems) -> RegisterState:
        """Empty accumulator, empty memory, untouched tape."""
        width = problems.operands.shape[1]
        position = torch.arange(width, device=problems.device) - width + problems.length[:, None]  # [B, N]
        position = position.clamp(min=0)
        tape = torch.stack([problems.operands.gather(1, position), problems.positions.gather(1, position)], 2)
        nothing = torch.zeros_like(problems.length)
        own = torch.cat([tape.new_zeros(problems.size, self._tape - FREE, 2), tape], 1)
        number = self._control(problems.length, depth=nothing, recalled=nothing, valued=nothing)
        return self._start(problems, own, number, self._limit(problems))

    def outcome(self, state: RegisterState) -> Outcome:
        """How the episodes ended."""
        accumulator = state.registers[:, ACCUMULATOR, VALUE]
        valued = state.terminated & state.valued
        pairs = 1 + len(self.actions)
        nothing_else = state.control < 2 * pairs  # no operands left, empty memory, no left operand
        return Outcome(
            answered=state.terminated,
            answer=torch.where(valued, accumulator, 0),
            valued=valued,
            correct=valued & nothing_else & (accumulator == state.target),
            steps=state.steps,
        )

    def run(self, problems: Problems, actions: Tensor) -> Outcome:
        """Execute whole plans. There is no limit of steps but a number given as ``max_steps``.

        Args:
            actions: int64 ``[B, T]``, tokens; a negative action is padding and takes no step.

        Raises:
            ValueError: If there is not one row of int64 actions for each problem.
        """
        machine = copy.copy(self)
        machine.max_steps = None if self.max_steps == "auto" else self.max_steps
        return machine.run_tokens(problems, actions)
