"""The machine of the published tutorial, with everything that is odd in it.

It exists to reproduce the tutorial's numbers. Its stages are graded one goal too early (T0 on a*b, T1 on
a*b+c, T2 on (a*b+c)-d), ADD adds the same c again and again, STO stores nothing but a flag, and RCL in T2
replaces the accumulator by d*e. To learn to calculate, use the calculator.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.machines.machine import Machine, Outcome, execute
from toolagent_pl.problems import STAGES, Problems, Stage
from toolagent_pl.tokens import Token

OPERANDS = 5  # a, b, c, d, e; the later ones are not used by the earlier stages
LAST_STAGE = 2
_GRADED = {
    STAGES["T0"]: [Token.MUL, Token.ANS],
    STAGES["T1"]: [Token.MUL, Token.ADD, Token.ANS],
    STAGES["T2"]: [Token.MUL, Token.ADD, Token.SUB, Token.ANS],
}


class TutorialState(NamedTuple):
    """State of ``B`` machines.

    Attributes:
        problems: The problems worked on.
        value: int64 ``[B]``, the accumulator, 0 where it is empty.
        valued: bool ``[B]``, whether the accumulator holds a value.
        stored: bool ``[B]``, whether STO was called.
        done, answered: bool ``[B]``.
        steps, idle: int64 ``[B]``, actions taken, and those of them that changed nothing.
    """

    problems: Problems
    value: Tensor
    valued: Tensor
    stored: Tensor
    done: Tensor
    answered: Tensor
    steps: Tensor
    idle: Tensor


class TutorialMachine(Machine[TutorialState]):
    """The tutorial's step rules for stages 0, 1 and 2.

    Args:
        max_steps: Actions after which an episode ends unanswered; None for no limit.
    """

    def __init__(self, max_steps: int | None = 7) -> None:
        super().__init__(max_steps)

    def start(self, problems: Problems) -> TutorialState:
        """Empty accumulator, nothing stored."""
        zero = torch.zeros_like(problems.target)
        no = torch.zeros_like(zero, dtype=torch.bool)
        return TutorialState(
            problems=problems, value=zero, valued=no, stored=no, done=no, answered=no, steps=zero, idle=zero
        )

    def step(self, state: TutorialState, action: Tensor) -> TutorialState:
        """Execute one action for each problem (int64 ``[B]``; a negative action is padding)."""
        problems, value, valued, stored, done, answered, steps, idle = state
        stage = problems.stage
        a, b, c, d, e = _operands(problems)
        active = ~done & (action >= 0)
        swapped = stored & (stage == LAST_STAGE)

        multiply = active & (action == Token.MUL)
        add = active & valued & (action == Token.ADD)
        subtract = active & valued & (action == Token.SUB)
        store = active & (action == Token.STO)
        recall = active & stored & (action == Token.RCL)
        answer = active & (action == Token.ANS)

        product = torch.where(valued, value * torch.where(stage > 0, d, 1), a * b)
        subtrahend = torch.where(swapped, e, torch.where(stage > 0, d, 0))
        changed = torch.where(multiply, product, value + c * add - subtrahend * subtract)
        changed = torch.where(recall & swapped, d * e, changed)  # elsewhere an empty value is recalled as 0
        steps = steps + active
        done = done | answer
        if self.max_steps is not None:
            done = done | (steps >= self.max_steps)
        return TutorialState(
            problems=problems,
            value=changed,
            valued=valued | multiply | recall,
            stored=stored | store,
            done=done,
            answered=answered | answer,
            steps=steps,
            idle=idle + (active & ~(multiply | add | subtract | store | recall | answer)),
        )

    def outcome(self, state: TutorialState) -> Outcome:
        """How the episodes ended; correct is judged on the stage's true target, not on the tutorial's."""
        return Outcome(
            answered=state.answered,
            answer=torch.where(state.answered, state.value, 0),
            valued=state.answered & state.valued,
            correct=state.answered & state.valued & (state.value == state.problems.target),
            steps=state.steps,
        )

    def check_ladder(self, stages: Sequence[Stage]) -> None:
        """Refuse anything but the tutorial's stages in the tutorial's order: its rules go by their numbers.

        Raises:
            ValueError: If ``stages`` are not T0, T1, T2 or the first of them.
        """
        if tuple(stages) != tuple(_GRADED)[: len(stages)]:
            raise ValueError(
                f"data.stages: got {[stage.name for stage in stages]}, expected [T0, T1, T2] or the first of them "
                "for TutorialMachine"
            )

    def shortest_program(self, stage: Stage) -> list[Token]:
        """The shortest program that reaches the goal that the tutorial grades the stage on."""
        return _GRADED[stage]

    def run(self, operands: Tensor, stage: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Execute whole programs and reward them as the tutorial does.

        Args:
            operands: int64 ``[B, 5]``, a to e.
            stage: int64 ``[B]``, 0, 1 or 2.
            actions: int64 ``[B, T]``; a negative action is padding and takes no step.

        Returns:
            reward float32 ``[B]`` and steps int64 ``[B]``.

        Raises:
            ValueError: If a shape, type or stage is none of these.
        """
        if operands.ndim != 2 or operands.shape[1] != OPERANDS or operands.dtype != torch.int64:
            raise ValueError(
                f"operands: got {operands.dtype} of shape {list(operands.shape)}, "
                f"expected int64 of shape [problems, {OPERANDS}]"
            )
        if stage.shape != operands.shape[:1] or stage.dtype != torch.int64:
            raise ValueError(
                f"stage: got {stage.dtype} of shape {list(stage.shape)}, expected int64 of shape [{len(operands)}]"
            )
        if bool(((stage < 0) | (stage > LAST_STAGE)).any()):
            raise ValueError(f"stage: got {stage.unique().tolist()}, expected values from 0 to {LAST_STAGE}")
        zero = torch.zeros_like(stage)
        problems = Problems(
            number=zero, stage=stage, observation=operands, operands=operands, length=zero + OPERANDS,
            target=zero, tree=zero.new_zeros(len(zero), 0, 4),
        )  # fmt: skip
        outcome = self.outcome(execute(self, problems, actions)[-1])
        return tutorial_reward(problems, outcome), outcome.steps


def tutorial_reward(problems: Problems, outcome: Outcome) -> Tensor:
    """The tutorial's shaped reward, float32 ``[B]``: 1 for its own idea of the target, and 0.2 for each part.

    Only an answer is paid. A value that happens to equal several goals is paid for each of them, so the
    reward can exceed 1.
    """
    a, b, c, d, e = _operands(problems)
    goal0 = a * b
    goal1 = goal0 + c
    goal2 = goal1 - d
    goal3 = d * e
    goal4 = goal1 - goal3
    goals = torch.stack([goal0, goal1, goal2, goal3, goal4], 1)  # [B, 5]
    reached = (outcome.answer[:, None] == goals) & outcome.valued[:, None]
    share = torch.tensor(  # of each goal, by stage
        [[0.25, 0.5, 0.0, 0.0, 0.0], [0.25, 0.5, 0.75, 0.0, 0.0], [0.2, 0.4, 0.0, 0.6, 0.6]], device=goals.device
    )
    shaped = (share[problems.stage] * reached).sum(1)
    correct = reached.gather(1, problems.stage[:, None])[:, 0]
    return correct + 0.2 * shaped


def _operands(problems: Problems) -> tuple[Tensor, ...]:
    """The columns a, b, c, d, e; those that the ladder has no room for are 0."""
    tape = problems.operands
    return torch.nn.functional.pad(tape, (0, OPERANDS - tape.shape[1])).unbind(1)
