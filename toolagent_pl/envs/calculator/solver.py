"""A trained agent at work: from written expressions to plans, answers and what the tools computed on the way."""

import copy
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.episodes import ArithmeticEpisode
from toolagent_pl.envs.calculator.expression import (
    INT64_MAX,
    Expression,
    ExpressionError,
    minimal_tokens,
    parse,
    refused,
    value_bound,
)
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import COPY
from toolagent_pl.envs.calculator.stages import MAX_OPERATORS
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl import saved
from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.rollout import Rollout, collect
from toolagent_pl.rl.solver import ProblemSolver

PRETRAINED = Path(__file__).parent / "pretrained"
BEYOND = 2**63 - 2**24  # rounding in float64 lets no bound below it stand for a value that leaves int64
BATCH = 4096  # expressions that are solved at a time
USAGE = """\
from toolagent_pl import Solver

solver = Solver.from_pretrained("this folder, or its name on the Hub")
print(solver.solve("2*(3+4)").plan)
"""


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
        textbook_length: Calls of the reference plan.
    """

    expression: str
    plan: tuple[str, ...]
    values: tuple[int | None, ...]
    answer: int | None
    target: int
    correct: bool
    textbook_length: int

    @classmethod
    def of(cls, expression: str, episode: ArithmeticEpisode) -> "Solution":
        """The solution that an episode is, of the expression as it was given."""
        plan, values, answer = tuple(episode.plan), tuple(episode.values), episode.answer
        return cls(expression, plan, values, answer, episode.target, episode.solved, episode.reference_length)

    def as_dict(self) -> dict[str, Any]:
        """All attributes, ready for JSON."""
        return dict(vars(self))  # dataclasses.asdict would copy each number, which takes as long as to solve


class _Task(NamedTuple):
    """An expression to be solved, and where it stands among those given."""

    position: int
    text: str
    prompt: list[int]
    expression: Expression


class Solver:
    """Solves written expressions with a trained agent, greedily, on the CPU.

    ``Solver.from_checkpoint()`` loads the agent that comes with the package. One that was trained in Python needs no
    file: ``Solver(module.agent, module.env)`` with its ``ToolAgent``.

    Args:
        agent: One that reads expressions; a copy of it is kept.
        env: The environment that it was trained in; a copy with a step limit that follows from the expression is kept.
        description: Of both, as in ``config.json``: ``{"env": {"class_path": ..., "init_args": {...}}, "agent":
            {...}}``, and facts about the training. ``save_pretrained`` and ``push_to_hub`` need it.

    Raises:
        ValueError: If the agent is told the stage of a problem, or the environment is no calculator.
    """

    def __init__(self, agent: Agent, env: Env, description: Mapping[str, Any] | None = None) -> None:
        if not isinstance(env, CalculatorEnv):
            raise ValueError(f"env: got {type(env).__name__}, expected a CalculatorEnv")
        if agent.stage_conditioned:
            given = f"{type(agent).__name__}, which is told the stage"
            raise ValueError(f"agent: got {given}; expected one that reads expressions")
        self.agent, self.env, self.description = copy.deepcopy(agent).cpu().eval(), copy.copy(env), description
        self.env.max_steps = "auto"

    @classmethod
    def from_checkpoint(cls, path: str | Path | None = None, allow_custom: bool = False) -> "Solver":
        """Load an agent. Nothing but tensors and plain values is read; classes are found by their names.

        Args:
            path: A checkpoint of a run, with the ``config.yaml`` of the run one folder above it or beside it; or a
                folder that ``save_pretrained`` has written; or the name of an agent that comes with the package; None
                for ``calculator``.
            allow_custom: Run code from outside of this package, if the agent, its environment or a tool is made of it.

        Returns:
            A solver of expressions; of an agent for another environment that reads problems, its ``ProblemSolver``.

        Raises:
            ValueError: If there is no such agent, or it cannot be built.
            OSError: If a file cannot be read.
        """
        found = saved.read(PRETRAINED if path is None else path)
        agent, env = saved.build(found, allow_custom)
        if type(env).read is not Env.read:  # it solves what its environment can read
            solver: Any = ProblemSolver(agent, env)
            return solver
        return cls(agent, env, found.description)

    @classmethod
    def from_pretrained(cls, name: str | Path, allow_custom: bool = False, **options: Any) -> "Solver":
        """Load an agent that ``save_pretrained`` has written, from a folder or from the Hugging Face Hub.

        Args:
            name: The folder; or a name on the Hub, ``owner/name``, for which the package ``huggingface_hub`` is needed.
            allow_custom: As for ``from_checkpoint``, and so are the errors.
            options: For the Hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.
        """
        folder = Path(name).expanduser()
        return cls.from_checkpoint(folder if folder.is_dir() else saved.download(str(name), **options), allow_custom)

    def save_pretrained(self, directory: str | Path, overwrite: bool = False, **facts: Any) -> None:
        """Write the agent as ``model.safetensors``, ``config.json`` and a model card, ``README.md``.

        Args:
            directory: Made if it is not there.
            overwrite: Replace these files where they are there already.
            facts: About the training, for the description and the card: ``command``, ``seed``, ``license``, ``figures``
                (by stage, as in ``{"E5": {"right": 9998, "tried": 10000}}``), or any others; those known already
                are kept.

        Raises:
            ValueError: If the solver has no description, a fact has a name that the format uses otherwise, or a file is
                there already.
        """
        saved.write(directory, self.agent, self.env, self._described(), facts, overwrite, USAGE)

    def push_to_hub(self, name: str, private: bool | None = None, token: str | None = None, **facts: Any) -> None:
        """Write the agent to the Hugging Face Hub, for which the package ``huggingface_hub`` is needed.

        Args:
            name: ``owner/name``; the repository is made if it is not there.
            private: Whether a new repository is; None for what the owner's default is.
            token: To be known by; None for that of ``hf auth login``.
            facts: As for ``save_pretrained``, and so are the errors.
        """
        saved.push(name, self.agent, self.env, self._described(), facts, USAGE, private, token)

    def _described(self) -> Mapping[str, Any]:
        if self.description is None:
            raise ValueError("description: got none, expected Solver(agent, env, description), to write an agent")
        return self.description

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
        texts, found = list(expressions), []
        for text, result in zip(texts, self.attempt(texts), strict=True):
            if isinstance(result, ExpressionError):
                raise result
            found.append(Solution.of(text, result))
        return found

    def attempt(self, expressions: Sequence[str]) -> list[ArithmeticEpisode | ExpressionError]:
        """An episode for each expression, with the positions looked at; the error in place of each that is refused."""
        found: dict[int, ArithmeticEpisode | ExpressionError] = {}
        tasks, collects = [], gc.isenabled()
        gc.disable()  # to look for garbage among so many objects takes as long as to make them
        try:
            for position, text in enumerate(expressions):
                try:
                    tasks.append(self._read(position, text))
                except ExpressionError as error:
                    found[position] = error
            tasks.sort(key=lambda task: (len(task.expression.leaves), len(task.prompt)))
            for start in range(0, len(tasks), BATCH):
                found.update(self._act(tasks[start : start + BATCH]))
        finally:
            if collects:
                gc.enable()
        return [found[position] for position in range(len(expressions))]

    def _act(self, tasks: Sequence[_Task]) -> Iterator[tuple[int, ArithmeticEpisode | ExpressionError]]:
        """What becomes of the expressions of a batch, by their positions among those given."""
        prompts, trees = [task.prompt for task in tasks], [task.expression for task in tasks]
        problems, enough = Problems.from_trees(prompts, trees, self.env.vocabulary), self.env.memory_depth
        rollout = collect(self.agent, self.env, problems)
        columns = (self.env.episodes(rollout), problems.memory_needed.tolist(), stays_in_int64(self.env, rollout))
        for task, episode, values, safe in zip(tasks, *columns, strict=True):
            reason = ""
            if values > enough:
                reason = f"the reference plan has {values} values in memory at a time, expected at most {enough}; "
                reason += "raise memory_depth of the agent's env"
            elif not safe:
                reason = "a value on the way of the agent's plan might not fit into 64 bits"
            yield task.position, refused(task.text, reason) if reason else episode

    def _read(self, position: int, text: str) -> _Task:
        """Parse an expression into the prompt that agents are trained on: brackets only where they say something."""
        if text.lstrip().startswith("-"):
            raise refused(text, "begins with '-'; numbers have no sign, write 0-3 for -3")
        leaves, tree = parse(text, self.env.vocabulary)
        if not tree:  # no agent is trained on a number alone
            raise refused(text, "is a number alone, expected at least one operator")
        if len(tree) > MAX_OPERATORS:
            raise refused(text, f"has {len(tree)} operators, expected at most {MAX_OPERATORS}")
        operands = [int(leaf) for leaf in leaves]
        if value_bound(operands, tree) > INT64_MAX:
            raise refused(text, "a value on the way might not fit into 64 bits")
        expression = Expression(tuple(map(str, operands)), tree)  # without leading zeros
        return _Task(position, text, minimal_tokens(expression, self.env.vocabulary), expression)


def stays_in_int64(env: CalculatorEnv, rollout: Rollout) -> list[bool]:
    """Whether no value on the way of each plan can have left int64: a wrong plan might wrap round to the answer."""

    def bound(tool: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Of the magnitude of a result, from those of what it is made of; see ``value_bound``."""
        one, other = left.double(), right.double()
        most = one.clamp(min=2) * other.clamp(min=2)
        most = torch.where(tool.eq(Token.MUL), one * other, most)
        most = torch.where(tool.eq(Token.ADD) | tool.eq(Token.SUB), one + other, most)
        return torch.where(tool.eq(COPY), left, most.clamp(max=BEYOND).long())

    state = env.reset(rollout.problems)
    fits = torch.ones_like(rollout.solved)
    for action in rollout.visible_actions.T:
        state = env.step(state, action, combine=bound)
        fits &= state.value.lt(BEYOND)
    return fits.tolist()
