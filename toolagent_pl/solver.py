"""A trained agent at work: from written expressions to plans, answers and what the tools computed on the way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from toolagent_pl.agents import Rollout
from toolagent_pl.envs import Env
from toolagent_pl.envs.registers import COPY, RegisterEnv
from toolagent_pl.episodes import Episode, episodes
from toolagent_pl.learning.rollout import collect, visible_actions
from toolagent_pl.problems import Problems
from toolagent_pl.problems.expression import (
    INT64_MAX,
    Expression,
    ExpressionError,
    minimal_tokens,
    parse,
    quoted,
    value_bound,
)
from toolagent_pl.process import without_collecting
from toolagent_pl.saved import FILES, SavedAgent, build, check_new, read, write
from toolagent_pl.tools import Token

MOST_OPERATORS = 60  # of an expression
BEYOND = 2**63 - 2**24  # rounding in float64 lets no bound below it stand for a value that leaves int64
BATCH = 4096  # expressions that are solved at a time


@dataclass(frozen=True)
class Solution:
    """What an agent made of an expression.

    Attributes:
        expression: The text as it was given.
        plan: Names of the calls, in order.
        values: Accumulator after each of them; None where it is empty.
        answer: The value answered; None where there is none.
        target: The right answer.
        correct: Whether the answer is right, and nothing was left over.
        textbook_length: Calls of the textbook's plan.
    """

    expression: str
    plan: tuple[str, ...]
    values: tuple[int | None, ...]
    answer: int | None
    target: int
    correct: bool
    textbook_length: int

    @classmethod
    def of(cls, expression: str, episode: Episode) -> "Solution":
        """The solution that an episode is, of the expression as it was given."""
        return cls(
            expression=expression,
            plan=tuple(episode.plan),
            values=tuple(episode.values),
            answer=episode.answer,
            target=episode.target,
            correct=episode.correct,
            textbook_length=episode.textbook_length,
        )

    def as_dict(self) -> dict[str, Any]:
        """All attributes, ready for JSON."""
        return dict(vars(self))  # dataclasses.asdict would copy each number, which takes as long as to solve


class _Task(NamedTuple):
    """An expression to be solved, and where it stands among those given."""

    position: int
    prompt: list[int]
    expression: Expression


class Solver:
    """Solves written expressions with a trained agent, greedily, on the CPU.

    ``Solver.from_checkpoint()`` loads the agent that comes with the package.

    Args:
        description: What ``config.json`` holds; see ``SavedAgent``.
        weights: Of the agent, by name.

    Attributes:
        description: Classes and arguments of ``agent`` and ``env``, names of ``tools`` and ``trained_stages``, and
            facts about the training.
        agent: The agent.
        env: Its environment, with a step limit that follows from the expression.

    Raises:
        ValueError: If the description is not one of an agent that can be built here, or the weights do not fit it.
    """

    def __init__(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.description = dict(description)
        self.agent, self.env = build(description, weights)
        if self.agent.told_stage:
            path = self.description["agent"]["class_path"]
            raise ValueError(f"agent: got {path}, which is told the stage; expected one that reads expressions")

    @classmethod
    def from_checkpoint(cls, path: str | Path | None = None) -> "Solver":
        """Load an agent. Nothing but tensors and plain values is read; classes are found by their names.

        Args:
            path: A checkpoint of a run, with the ``config.yaml`` of the run one folder above it or beside it; or a
                folder that ``save_pretrained`` has written; None for the agent that comes with the package.

        Raises:
            ValueError: If there is no such agent, or it cannot be built.
            OSError: If a file cannot be read.
        """
        return cls(*read(path))

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "Solver":
        """Load an agent that ``save_pretrained`` has written, from a folder or from the Hugging Face Hub.

        Args:
            name: The folder; or a name on the Hub, ``owner/name``, for which the package ``huggingface_hub`` is needed.
            options: For the Hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            ValueError: If there is no such agent, or it cannot be built.
            OSError: If a file cannot be read.
        """
        if Path(name).expanduser().is_dir():
            return cls(*read(name))
        try:
            from toolagent_pl.hub import HubSolver
        except ImportError:
            raise ValueError(
                f"name: got {name}, which is no folder; expected one, or pip install 'toolagent_pl[hub]' for the Hub"
            ) from None
        return HubSolver.from_pretrained(str(name), **options)

    def save_pretrained(self, directory: str | Path, *, overwrite: bool = False, **facts: Any) -> None:
        """Write the agent as ``model.safetensors``, ``config.json`` and a model card, ``README.md``.

        Args:
            directory: Made if it is not there.
            overwrite: Replace these files where they are there already.
            facts: About the training, for the description and the card: ``command``, ``seed``, ``license``, ``figures``
                (by stage, as in ``{"E5": {"right": 9998, "tried": 10000}}``), or any others; those known already
                are kept.

        Raises:
            ValueError: If a fact has a name that the format uses otherwise, or a file is there already.
            OSError: If it cannot be written.
        """
        if not overwrite:
            check_new("directory", (Path(directory).expanduser() / name for name in FILES), "overwrite=True")
        write(directory, SavedAgent(self.description, self.agent.state_dict()), facts)

    @overload
    def solve(self, expressions: str) -> Solution: ...  # type: ignore[overload-overlap]

    @overload
    def solve(self, expressions: Iterable[str]) -> list[Solution]: ...

    def solve(self, expressions: str | Iterable[str]) -> Solution | list[Solution]:
        """Solve one expression, or many in batches.

        Raises:
            ExpressionError: A ValueError. If one cannot be read, is a number alone, might leave 64 bits, or needs more
                operators or memory than there may be.
        """
        if isinstance(expressions, str):
            return self.solve([expressions])[0]
        texts = list(expressions)
        with without_collecting():
            return [Solution.of(text, episode) for text, episode in zip(texts, self.episodes(texts), strict=True)]

    def episodes(self, expressions: Sequence[str]) -> list[Episode]:
        """The same with all that is known of each episode, for drawing: the prompt and the places looked at, too.

        Raises:
            ExpressionError: As in ``solve``.
        """
        found = []
        for result in self.attempt(expressions):
            if isinstance(result, ExpressionError):
                raise result
            found.append(result)
        return found

    def attempt(self, expressions: Sequence[str]) -> list[Episode | ExpressionError]:
        """An episode for each expression, and the error in place of each that is refused."""
        with without_collecting():  # there are many objects, and none of them in a cycle
            return self._attempt(expressions)

    def _attempt(self, expressions: Sequence[str]) -> list[Episode | ExpressionError]:
        results: dict[int, Episode | ExpressionError] = {}
        tasks = []
        for position, text in enumerate(expressions):
            try:
                tasks.append(self._read(position, text))
            except ExpressionError as error:
                results[position] = error
        tasks.sort(key=lambda task: (len(task.expression.leaves), len(task.prompt)))
        for start in range(0, len(tasks), BATCH):
            batch = tasks[start : start + BATCH]
            prompts, expressions_read = [task.prompt for task in batch], [task.expression for task in batch]
            problems = Problems._of(prompts, expressions_read, self.env.vocabulary)
            enough = getattr(self.env, "memory_depth", MOST_OPERATORS)
            needed = problems.memory_needed
            fits = needed.le(enough)
            for task, values in zip(batch, needed.tolist(), strict=True):
                if values > enough:
                    results[task.position] = ExpressionError(
                        f"expression {quoted(expressions[task.position])}: the textbook's plan has {values} values in "
                        f"memory at a time, expected at most {enough}; raise memory_depth of the agent's env"
                    )
            if not fits.any():
                continue
            rollout = collect(self.agent, self.env, problems.select(fits))
            solved = [task for task in batch if task.position not in results]
            found = zip(solved, episodes(rollout, self.env), stays_in_int64(self.env, rollout), strict=True)
            for task, episode, fits_int64 in found:
                results[task.position] = episode
                if not fits_int64:
                    results[task.position] = ExpressionError(
                        f"expression {quoted(expressions[task.position])}: a value on the way of the agent's plan "
                        "might not fit into 64 bits"
                    )
        return [results[position] for position in range(len(expressions))]

    def _read(self, position: int, text: str) -> _Task:
        """Parse an expression into the prompt that agents are trained on: brackets only where they say something.

        Raises:
            ExpressionError: If it is refused.
        """
        if text.lstrip().startswith("-"):
            raise ExpressionError(f"expression {quoted(text)}: begins with '-'; numbers have no sign, write 0-3 for -3")
        leaves, tree = parse(text, self.env.vocabulary)
        if not tree:  # no agent is trained on a number alone
            raise ExpressionError(f"expression {quoted(text)}: is a number alone, expected at least one operator")
        if len(tree) > MOST_OPERATORS:
            raise ExpressionError(
                f"expression {quoted(text)}: has {len(tree)} operators, expected at most {MOST_OPERATORS}"
            )
        operands = [int(leaf) for leaf in leaves]
        if value_bound(operands, tree) > INT64_MAX:
            raise ExpressionError(f"expression {quoted(text)}: a value on the way might not fit into 64 bits")
        expression = Expression(tuple(map(str, operands)), tree)  # without leading zeros
        return _Task(position, minimal_tokens(expression, self.env.vocabulary), expression)


def stays_in_int64(env: Env, rollout: Rollout) -> list[bool]:
    """Whether no value on the way of each plan can have left int64: a wrong plan might wrap round to the answer."""
    problems = rollout.problems
    there = torch.arange(problems.operands.shape[1]) < problems.length[:, None]
    most = torch.where(there, problems.operands.double().clamp(min=2), 1.0).prod(1)  # as in ``magnitude_bound``
    safe = most.lt(BEYOND)
    if safe.all() or not isinstance(env, RegisterEnv):
        return safe.tolist()

    def bound(tool: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Of the magnitude of a result, from those of what it is made of; see ``value_bound``."""
        one, other = left.double(), right.double()
        most = one.clamp(min=2) * other.clamp(min=2)
        most = torch.where(tool.eq(Token.MUL), one * other, most)
        most = torch.where(tool.eq(Token.ADD) | tool.eq(Token.SUB), one + other, most)
        return torch.where(tool.eq(COPY), left, most.clamp(max=BEYOND).long())

    state = env.reset(problems)
    fits = torch.ones_like(safe)
    for token in visible_actions(rollout).T:
        state = env.step(state, token, combine=bound)
        fits &= state.value.lt(BEYOND)
    return (safe | fits).tolist()
