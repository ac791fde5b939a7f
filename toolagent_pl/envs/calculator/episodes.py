"""Episodes of arithmetic as people read them: the problem, each call, the value after it, and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

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
        positions: Before each call, what the tools report of positions in the prompt, which may be nothing.
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
        values = ["-" if value is None else str(value) for value in self.values]
        calls = [name if name == "ANS" else f"{name}={value}" for name, value in zip(self.plan, values, strict=True)]
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
    columns: dict[str, Tensor] = {
        **{name: getattr(problems, name) for name in ("stage", "prompt", "operands", "length", "target")},
        **outcome._asdict(),
        "reference": problems.reference_length,
        "actions": rollout.actions[:longest].T,
        "values": torch.stack([state.value for state in states], 1),
        "has_value": torch.stack([state.valued for state in states], 1),
        "looked_at": rollout.observations.positions[:longest].transpose(0, 1),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        ArithmeticEpisode(
            stage=env.stage_name(one.stage),
            problem=text_of(one.prompt, env.vocabulary),
            plan=[env.actions[action] for action in one.actions[: one.steps]],
            solved=one.correct,
            operands=one.operands[: one.length],
            target=one.target,
            values=[value if has else None for value, has in zip(one.values, one.has_value, strict=True)][: one.steps],
            positions=one.looked_at[: one.steps],
            answer=one.answer if one.valued else None,
            reference_length=one.reference,
        )
        for one in (SimpleNamespace(**dict(zip(columns, row, strict=True))) for row in rows)
    ]
