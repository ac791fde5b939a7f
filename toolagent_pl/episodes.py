"""Episodes as people read them: the problem, each call, the value after it, and the answer."""

from dataclasses import dataclass
from typing import Any

import torch

from toolagent_pl.agents import Rollout
from toolagent_pl.envs import Env, execute
from toolagent_pl.learning.rollout import visible_actions
from toolagent_pl.problems.expression import text_of


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        stage: Name of the stage; None for a problem of no stage.
        expression: The problem, as the agent's prompt has it.
        operands: The tape.
        target: The right answer.
        plan: Names of the tokens called, until the end of the episode.
        values: Accumulator after each of them; None where it is empty.
        places: Before each of them, what the tools report of places in the prompt; empty lists without such feedback.
        answer: The value answered; None where there is none.
        correct: Whether the problem is solved.
        steps: Number of calls.
        textbook_length: Calls of the textbook's plan.
    """

    stage: str | None
    expression: str
    operands: list[int]
    target: int
    plan: list[str]
    values: list[int | None]
    places: list[list[int]]
    answer: int | None
    correct: bool
    steps: int
    textbook_length: int

    def as_dict(self) -> dict[str, Any]:
        """All attributes, ready for JSON."""
        return dict(vars(self))

    @property
    def calls(self) -> str:
        """Each call with the accumulator after it, ``-`` where that is empty."""
        return " ".join(
            name if name == "ANS" else f"{name}={'-' if value is None else value}"
            for name, value in zip(self.plan, self.values, strict=True)
        )

    def __str__(self) -> str:
        answer = "no answer" if self.answer is None else str(self.answer)
        return f"{self.expression} = {self.target}: {self.calls} -> {answer}, {'right' if self.correct else 'wrong'}"


def episodes(rollout: Rollout, env: Env, stages: tuple[str, ...] = ()) -> list[Episode]:
    """The episodes of a rollout, one by one.

    Args:
        env: The environment that they ran in.
        stages: Names of the stages, in the order that problems count them by.
    """
    problems, outcome, vocabulary = rollout.problems, rollout.outcome, env.vocabulary
    longest = max([1, *outcome.steps.tolist()])  # an episode may not have begun
    states = execute(env, problems, visible_actions(rollout)[:, :longest])[1:]
    columns = zip(
        problems.stage.tolist(),
        problems.prompt.tolist(),
        problems.operands.tolist(),
        problems.length.tolist(),
        problems.target.tolist(),
        rollout.tokens[:longest].T.tolist(),
        torch.stack([state.value for state in states], 1).tolist(),
        torch.stack([state.valued for state in states], 1).tolist(),
        rollout.observations.places[:longest].transpose(0, 1).tolist(),
        outcome.answer.tolist(),
        outcome.valued.tolist(),
        outcome.correct.tolist(),
        outcome.steps.tolist(),
        problems.textbook_length.tolist(),
        strict=True,
    )
    result = []
    for (
        stage,
        prompt,
        tape,
        n,
        target,
        called,
        values,
        valued,
        places,
        answer,
        answered,
        correct,
        steps,
        book,
    ) in columns:
        result.append(
            Episode(
                stage=stages[stage] if 0 <= stage < len(stages) else None,
                expression=text_of(prompt, vocabulary),
                operands=tape[:n],
                target=target,
                plan=[vocabulary.names[token] for token in called[:steps]],
                values=[v if has else None for v, has in zip(values[:steps], valued[:steps], strict=True)],
                places=places[:steps],
                answer=answer if answered else None,
                correct=correct,
                steps=steps,
                textbook_length=book,
            )
        )
    return result
