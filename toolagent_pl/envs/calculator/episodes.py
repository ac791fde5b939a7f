"""Episodes of arithmetic as people read them: the problem, each call, the value after it, and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from toolagent_pl.envs.calculator.expression import text_of
from toolagent_pl.rl.env import Episode
from toolagent_pl.rl.rollout import Rollout


@dataclass(frozen=True)
class ArithmeticEpisode(Episode):
    """One episode; its problem is the expression as the agent's prompt has it.

    Attributes:
        operands: The operands, from left to right.
        target: The right answer.
        values: Accumulator after each call; None where it is empty.
        positions: Before each call, what the tools report of positions in the prompt; empty lists without such
            feedback.
        answer: The value answered; None where there is none.
        reference_length: Calls of the reference plan.
    """

    operands: list[int]
    target: int
    values: list[int | None]
    positions: list[list[int]]
    answer: int | None
    reference_length: int

    @property
    def story(self) -> str:
        """Each call with the accumulator after it, ``-`` where that is empty, and the answer."""
        calls = [
            name if name == "ANS" else f"{name}={'-' if value is None else value}"
            for name, value in zip(self.plan, self.values, strict=True)
        ]
        return " ".join([*calls, "->", "no answer" if self.answer is None else str(self.answer)])

    def __str__(self) -> str:
        return f"{self.problem} = {self.target}: {self.story}, {'right' if self.solved else 'wrong'}"


def episodes(env: Any, rollout: Rollout, states: Sequence[Any], outcome: Any) -> list[ArithmeticEpisode]:
    """The episodes of a rollout, one by one.

    Args:
        env: The environment that they ran in, a ``RegisterEnv``.
        states: After each call.
        outcome: How the episodes ended.
    """
    problems, longest = rollout.problems, len(states)
    columns: list[Any] = [
        problems.stage,
        problems.prompt,
        problems.operands,
        problems.length,
        problems.target,
        rollout.actions[:longest].T,
        torch.stack([state.value for state in states], 1),
        torch.stack([state.valued for state in states], 1),
        rollout.observations.positions[:longest].transpose(0, 1),
        outcome.answer,
        outcome.valued,
        outcome.correct,
        outcome.steps,
        problems.reference_length,
    ]
    return [
        ArithmeticEpisode(
            stage=env.stage_name(stage),
            problem=text_of(prompt, env.vocabulary),
            plan=[env.actions[action] for action in called[:steps]],
            solved=correct,
            operands=operands[:length],
            target=target,
            values=[value if has else None for value, has in zip(values[:steps], valued[:steps], strict=True)],
            positions=positions[:steps],
            answer=answer if answered else None,
            reference_length=reference,
        )
        for (
            stage, prompt, operands, length, target, called, values, valued, positions, answer, answered, correct,
            steps, reference,
        ) in zip(*(column.tolist() for column in columns), strict=True)
    ]  # fmt: skip
