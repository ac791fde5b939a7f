"""The environment of the published tutorial, with everything that is odd in it, to reproduce the tutorial's numbers.

Its stages are graded one goal too early (T0 on a*b, T1 on a*b+c, T2 on (a*b+c)-d), ADD adds the same c again and again,
STO stores nothing but a flag, and RCL in T2 replaces the accumulator by d*e.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import (
    ACCUMULATOR,
    FREE,
    VALUE,
    Outcome,
    RegisterEnv,
    RegisterState,
    Transitions,
)
from toolagent_pl.envs.calculator.stages import BUILT_IN
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl.checks import check_range

OPERANDS = 5  # a, b, c, d, e; the later ones are not used by the earlier stages
LAST_STAGE = 2
MAX_STEPS = 18  # an operand can be used again and again: they lead to 9 ** 19, the last power of 9 in int64
_GRADED = ([Token.MUL, Token.ANS], [Token.MUL, Token.ADD, Token.ANS], [Token.MUL, Token.ADD, Token.SUB, Token.ANS])

# Registers: the operands, the numbers 1 and 0.
A, B, C, D, E, ONE, ZERO = range(FREE, FREE + OPERANDS + 2)


def _control(stage: Tensor, stored: Tensor, valued: Tensor) -> Tensor:
    """Number of a control state: the stage, whether STO was called, and whether there is a value."""
    return (stage * 2 + stored.long()) * 2 + valued.long()


class TutorialEnv(RegisterEnv):
    """The tutorial's step rules for stages 0, 1 and 2. Its tools report nothing.

    Args:
        stages: T0, T1, T2, or the first of them: the rules go by their numbers.
        actions: Names of the tokens that may be called; null for the tools, ANS, STO and RCL.
        max_steps: Actions after which an episode is truncated; null for no limit.

    Raises:
        ValueError: If stages are others, an action is unknown, or ``max_steps`` is not positive, or lets a value leave
            64 bits.
    """

    default_agent = "toolagent_pl.envs.tutorial.blind.BlindAgent"

    def __init__(
        self,
        stages: Sequence[str] = ("T0", "T1", "T2"),
        actions: Sequence[str] | None = None,
        max_steps: int | None = 7,
    ) -> None:
        known = list(BUILT_IN)
        if not stages or list(stages) != known[: len(stages)]:
            raise ValueError(f"stages: got {list(stages)}, expected {known} or the first of them for TutorialEnv")
        super().__init__(stages, (), ("MUL", "ADD", "SUB"), actions)
        check_range(at_least=1, at_most=MAX_STEPS, max_steps=max_steps)
        self.max_steps = max_steps

    def check(self) -> None:
        """Refuse a step limit or actions with which the goal that the last stage is graded on cannot be reached."""
        plan = _GRADED[len(self.stages) - 1]
        if self.max_steps is not None and self.max_steps < len(plan):
            raise ValueError(f"max_steps: got {self.max_steps}, expected at least {len(plan)}")
        if missing := [token.name for token in plan if token not in self.tokens]:
            raise ValueError(f"actions: got no {', '.join(missing)}, expected {' '.join(t.name for t in plan)}")

    def horizon(self, problems: Problems) -> int:
        """Most actions that any of these episodes can take."""
        return MAX_STEPS if self.max_steps is None else self.max_steps

    def reset(self, problems: Problems) -> RegisterState:
        """Empty accumulator, nothing stored."""
        one, nothing = torch.ones_like(problems.stage)[:, None], torch.zeros_like(problems.stage)
        own = torch.cat([_operands(problems), one, nothing[:, None]], 1)
        own = torch.stack([own, torch.full_like(own, -1)], 2)
        control = _control(problems.stage, stored=nothing, valued=nothing)
        limit = torch.full_like(nothing, 2**62 if self.max_steps is None else self.max_steps)
        return self._start(problems, own, control, limit)

    def _tape_width(self, state: RegisterState) -> int:
        return OPERANDS

    def _transitions(self, width: int, token: Tensor) -> Transitions:
        sizes = (LAST_STAGE + 1, 2, 2, len(token))
        grid = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        stage, stored, valued, action = (axis.reshape(-1, sizes[-1]) for axis in grid)
        stored, valued, action = stored == 1, valued == 1, token[action]

        multiply, store = action.eq(Token.MUL), action.eq(Token.STO)
        recall = action.eq(Token.RCL) & stored
        swapped = stored & (stage == LAST_STAGE)
        transitions = Transitions.none(_control(stage, stored=stored | store, valued=valued | multiply | recall))
        transitions.put(multiply & ~valued, tool=Token.MUL, left=A, right=B)
        transitions.put(multiply & valued, tool=Token.MUL, right=torch.where(stage > 0, D, ONE))
        transitions.put(action.eq(Token.ADD) & valued, tool=Token.ADD, right=C)
        subtrahend = torch.where(swapped, E, torch.where(stage > 0, D, ZERO))
        transitions.put(action.eq(Token.SUB) & valued, tool=Token.SUB, right=subtrahend)
        transitions.put(recall)
        transitions.put(recall & ~valued, left=ZERO)  # an empty value is recalled as 0
        transitions.put(recall & swapped, tool=Token.MUL, left=D, right=E)
        transitions.put(store | action.eq(Token.ANS))
        return transitions

    def outcome(self, state: RegisterState) -> Outcome:
        """How the episodes ended; correct is judged on the stage's true target, not on the tutorial's."""
        accumulator, valued = state.registers[:, ACCUMULATOR, VALUE], state.terminated & state.valued
        return Outcome(
            answered=state.terminated,
            answer=torch.where(valued, accumulator, 0),
            valued=valued,
            correct=valued & (accumulator == state.target),
            steps=state.steps,
        )

    def run(self, operands: Tensor, stage: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Execute whole plans and reward them as the tutorial does.

        Args:
            operands: int64 ``[B, 5]``, a to e.
            stage: int64 ``[B]``, 0, 1 or 2.
            actions: int64 ``[B, T]``; a negative action is padding and takes no step.

        Returns:
            The reward, float32 ``[B]``, and the steps, int64 ``[B]``.

        Raises:
            ValueError: If a shape, type or stage is none of these.
        """
        rows = list(operands.shape[:1])
        for name, given, shape in (("operands", operands, [*rows, OPERANDS]), ("stage", stage, rows)):
            if given.dtype != torch.int64 or list(given.shape) != shape:
                got = f"{given.dtype} of shape {list(given.shape)}"
                raise ValueError(f"{name}: got {got}, expected int64 of shape {shape}")
        if bool(((stage < 0) | (stage > LAST_STAGE)).any()):
            raise ValueError(f"stage: got {stage.unique().tolist()}, expected values from 0 to {LAST_STAGE}")
        zero, tree = torch.zeros_like(stage), stage.new_zeros(len(stage), 0, 4)
        problems = Problems(zero, stage, operands, zero, operands, operands, zero + OPERANDS, zero, tree)
        outcome = self.run_tokens(problems, actions)
        return tutorial_reward(problems, outcome), outcome.steps


def tutorial_reward(problems: Problems, outcome: Outcome) -> Tensor:
    """The tutorial's shaped reward, float32 ``[B]``: 1 for its own idea of the target, and 0.2 for each part.

    Only an answer is paid, and one that happens to equal several goals for each of them: the reward can exceed 1.
    """
    a, b, c, d, e = _operands(problems).unbind(1)
    goals = torch.stack([a * b, a * b + c, a * b + c - d, d * e, a * b + c - d * e], 1)  # [B, 5]
    reached = (outcome.answer[:, None] == goals) & outcome.valued[:, None]
    one, two, three, four, five = reached.float().unbind(1)
    shaped = 0.25 * one + 0.5 * two + 0.75 * three * problems.stage.eq(1)
    last = 0.2 * one + 0.4 * two + 0.6 * four + 0.6 * five
    shaped = torch.where(problems.stage.eq(LAST_STAGE), last, shaped)
    return reached.gather(1, problems.stage[:, None])[:, 0] + 0.2 * shaped


def _operands(problems: Problems) -> Tensor:
    """a, b, c, d, e, int64 ``[B, 5]``; those that the stages have no room for are 0."""
    return torch.nn.functional.pad(problems.operands, (0, OPERANDS - problems.operands.shape[1]))
