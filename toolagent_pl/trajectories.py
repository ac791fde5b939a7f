"""Episodes as people read them: the problem, each tool called, the value after each call, and the answer."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from toolagent_pl.learning.rollout import Rollout, visible_actions
from toolagent_pl.machines import Machine, execute
from toolagent_pl.problems import Ladder, Problems
from toolagent_pl.tokens import Token


@dataclass(frozen=True)
class Trajectory:
    """One episode.

    Attributes:
        stage: Name of the stage.
        problem: The expression, with its digits.
        operands: The tape.
        target: The right answer.
        actions: Names of the tokens emitted, until the end of the episode.
        values: Accumulator after each of them; None where it is empty.
        answer: The value answered; None where there is none.
        correct: Whether the problem is solved.
        reward: Sum of the rewards.
        steps: Number of actions.
    """

    stage: str
    problem: str
    operands: list[int]
    target: int
    actions: list[str]
    values: list[int | None]
    answer: int | None
    correct: bool
    reward: float
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """All attributes, ready for JSON."""
        return asdict(self)

    @property
    def calls(self) -> str:
        """Each tool called with the accumulator after it, ``-`` where that is empty."""
        return " ".join(
            action if action == str(Token.ANS) else f"{action}={'-' if value is None else value}"
            for action, value in zip(self.actions, self.values, strict=True)
        )

    def __str__(self) -> str:
        answer = "no answer" if self.answer is None else str(self.answer)
        return f"{self.problem} = {self.target}: {self.calls} -> {answer}, {'right' if self.correct else 'wrong'}"


def trajectories(ladder: Ladder, machine: Machine, episodes: Rollout, rewards: Tensor) -> list[Trajectory]:
    """The episodes of a rollout, one by one.

    Args:
        rewards: ``[T, B]``.
    """
    problems: Problems = episodes.problems
    outcome = machine.outcome(episodes.final)
    actions = visible_actions(episodes)
    states = execute(machine, problems, actions)[1:]
    values = torch.stack([state.value for state in states], 1)  # [B, T]
    valued = torch.stack([state.valued for state in states], 1)
    columns = zip(
        problems.stage.tolist(),
        problems.operands.tolist(),
        problems.length.tolist(),
        problems.target.tolist(),
        actions.tolist(),
        values.tolist(),
        valued.tolist(),
        outcome.answer.tolist(),
        outcome.valued.tolist(),
        outcome.correct.tolist(),
        rewards.sum(0).tolist(),
        outcome.steps.tolist(),
        strict=True,
    )
    result = []
    for stage, tape, length, target, called, value, has_value, answer, has_answer, correct, reward, steps in columns:
        operands = tape[:length]
        result.append(
            Trajectory(
                stage=ladder.stages[stage].name,
                problem=ladder.stages[stage].written(operands),
                operands=operands,
                target=target,
                actions=[str(Token(action)) for action in called[:steps]],
                values=[v if has else None for v, has in zip(value[:steps], has_value[:steps], strict=True)],
                answer=answer if has_answer else None,
                correct=correct,
                reward=reward,
                steps=steps,
            )
        )
    return result
