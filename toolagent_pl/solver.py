"""A trained agent at work: from written expressions to plans, answers and what the tools computed on the way."""

import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from toolagent_pl import __version__
from toolagent_pl.agents import Agent
from toolagent_pl.envs import CalculatorEnv, Env
from toolagent_pl.episodes import Episode, episodes
from toolagent_pl.learning.rollout import collect
from toolagent_pl.problems import Problems
from toolagent_pl.problems.expression import (
    INT64_MAX,
    Expression,
    ExpressionError,
    magnitude_bound,
    minimal_tokens,
    parse,
    quoted,
)
from toolagent_pl.tools import TOOLS, find_tools

PRETRAINED = Path(__file__).parent / "pretrained"
DESCRIPTION, WEIGHTS = "agent.json", "agent.safetensors"
LARGEST_DESCRIPTION = 1_000_000  # bytes
MOST_OPERATORS = 60  # of an expression; more operands than that would leave 64 bits whatever they are
BATCH = 4096  # expressions that are solved at a time
_OWN_FIELDS = ("agent", "env", "tools", "trained_stages", "toolagent_pl")


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
        return asdict(self)


class _Task(NamedTuple):
    """An expression to be solved, and where it stands among those given."""

    position: int
    prompt: list[int]
    expression: Expression


class Solver:
    """Solves written expressions with a trained agent, greedily, on the CPU.

    ``Solver.from_checkpoint()`` loads the agent that comes with the package.

    Args:
        description: What ``agent.json`` holds: classes and arguments of ``agent`` and ``env``, names of ``tools`` and
            ``trained_stages``, and any facts about the training.
        weights: Of the agent, by name.

    Attributes:
        description: As given.
        agent: The agent.
        env: Its environment, with a step limit that follows from the expression.

    Raises:
        ValueError: If the description is not one of an agent that can be built here, or the weights do not fit it.
    """

    def __init__(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.description = dict(description)
        kinds = [_class_and_arguments(self.description, part) for part in ("agent", "env")]
        tools, stages = (_names(self.description, part) for part in ("tools", "trained_stages"))
        (agent_path, agent_arguments), (env_path, env_arguments) = kinds
        _allow_own([agent_path, env_path, *tools])
        make_env, make_agent = _found(env_path, Env), _found(agent_path, Agent)
        try:
            self.env: Env[Any] = make_env(**env_arguments).with_tools(find_tools(tools))
            if isinstance(self.env, CalculatorEnv):
                self.env.max_steps = "auto"
            with torch.random.fork_rng(devices=[]):  # to draw weights that are replaced is nobody's business
                self.agent: Agent = make_agent(self.env.spec(len(stages)), **agent_arguments).eval()
            self.agent.load_state_dict(dict(weights))
        except Exception as error:  # classes and arguments may come from anyone
            raise ValueError(f"agent: got {agent_path}, which cannot be built ({_line(error)})") from error
        if self.agent.told_stage:
            raise ValueError(f"agent: got {agent_path}, which is told the stage; expected one that reads expressions")

    @classmethod
    def from_checkpoint(cls, path: str | Path | None = None) -> "Solver":
        """Load an agent. Nothing but tensors and plain values is read; classes are found by their names.

        Args:
            path: A checkpoint of a run, with the ``config.yaml`` of the run one folder above it or beside it; or a
                folder that ``save`` has written; None for the agent that comes with the package.

        Raises:
            ValueError: If there is no such agent, or it cannot be built.
            OSError: If a file cannot be read.
        """
        if path is None:
            if not (PRETRAINED / DESCRIPTION).is_file():
                raise ValueError("ckpt_path: got none, expected one: no agent comes with this installation")
            path = PRETRAINED
        path = Path(path).expanduser()
        if path.is_dir():
            return cls(*_read_folder(path))
        if not path.is_file():
            raise ValueError(f"ckpt_path: got {path}, expected a checkpoint, or a folder with {DESCRIPTION}")
        return cls(*_read_checkpoint(path))

    def save(self, directory: str | Path, **facts: Any) -> None:
        """Write the agent as ``agent.safetensors`` and ``agent.json``.

        Args:
            directory: Made if it is not there.
            facts: About the training, as ``command``, ``seed`` and ``figures``; those known already are kept.

        Raises:
            ValueError: If a fact has a name that the format uses otherwise.
            OSError: If it cannot be written.
        """
        from safetensors.torch import save_file

        if reserved := [name for name in facts if name in _OWN_FIELDS]:
            raise ValueError(f"facts: got {', '.join(reserved)}, expected names other than {', '.join(_OWN_FIELDS)}")
        own = {name: self.description[name] for name in _OWN_FIELDS[:-1]}
        known = {name: value for name, value in self.description.items() if name not in _OWN_FIELDS}
        known = {"command": "", "seed": None, "figures": {}, **known, **facts}
        text = json.dumps({**own, **known, "toolagent_pl": __version__}, indent=2)
        directory = Path(directory).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().clone().contiguous() for name, tensor in self.agent.state_dict().items()}
        save_file(weights, directory / WEIGHTS)
        (directory / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @overload
    def solve(self, expressions: str) -> Solution: ...  # type: ignore[overload-overlap]

    @overload
    def solve(self, expressions: Iterable[str]) -> list[Solution]: ...

    def solve(self, expressions: str | Iterable[str]) -> Solution | list[Solution]:
        """Solve one expression, or many in batches.

        Raises:
            ExpressionError: If one cannot be read, might leave 64 bits, or needs more operators or memory than there
                may be.
        """
        if isinstance(expressions, str):
            return self.solve([expressions])[0]
        texts = list(expressions)
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
                        f"memory at a time, expected at most {enough}"
                    )
            if not fits.any():
                continue
            rollout = collect(self.agent, self.env, problems.select(fits))
            solved = [task for task in batch if task.position not in results]
            for task, episode in zip(solved, episodes(rollout, self.env), strict=True):
                results[task.position] = episode
        return [results[position] for position in range(len(expressions))]

    def _read(self, position: int, text: str) -> _Task:
        """Parse an expression into the prompt that agents are trained on: brackets only where they say something.

        Raises:
            ExpressionError: If it is refused.
        """
        if text.lstrip().startswith("-"):
            raise ExpressionError(f"expression {quoted(text)}: begins with '-'; numbers have no sign, write 0-3 for -3")
        leaves, tree = parse(text, self.env.vocabulary)
        if len(tree) > MOST_OPERATORS:
            raise ExpressionError(
                f"expression {quoted(text)}: has {len(tree)} operators, expected at most {MOST_OPERATORS}"
            )
        operands = [int(leaf) for leaf in leaves]
        if magnitude_bound(operands) > INT64_MAX:
            raise ExpressionError(f"expression {quoted(text)}: a value on the way might not fit into 64 bits")
        expression = Expression(tuple(map(str, operands)), tree)  # without leading zeros
        return _Task(position, minimal_tokens(expression, self.env.vocabulary), expression)


def _line(error: Exception) -> str:
    """An error as part of a line."""
    text = " ".join(str(error).split())
    return text[:300] if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"[:300]


def _class_and_arguments(description: Mapping[str, Any], part: str) -> tuple[str, dict[str, Any]]:
    """Path and arguments of the class of a part.

    Raises:
        ValueError: If there is something else.
    """
    value = description.get(part)
    named = value if isinstance(value, dict) else {}
    path, arguments = named.get("class_path"), named.get("init_args") or {}
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", path):
        raise ValueError(f"{part}: got {str(value)[:100]}, expected class_path, the dotted path of a class")
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"{part}: got {str(arguments)[:100]} as init_args, expected arguments by name")
    return path, arguments


def _names(description: Mapping[str, Any], part: str) -> list[str]:
    """A list of names.

    Raises:
        ValueError: If there is something else.
    """
    names = description.get(part)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{part}: got {str(names)[:100]}, expected a list of names")
    return names


def _is_ours(path: str) -> bool:
    return path.startswith("toolagent_pl.") or path in {tool.name for tool in TOOLS}


def _allow_own(paths: Sequence[str]) -> None:
    """Allow the import of modules of the user's own, if they make what is named, as the command line does."""
    if own := [path for path in paths if not _is_ours(path)]:
        from toolagent_pl.configuration import allow_own_modules  # loads Lightning

        allow_own_modules(own)


def _found(path: str, base: type) -> Any:
    """The class of a dotted path.

    Raises:
        ValueError: If there is none, or it does not derive from ``base``.
    """
    try:
        if _is_ours(path):
            module, _, name = path.rpartition(".")
            found = getattr(importlib.import_module(module), name)
        else:
            from jsonargparse._util import import_object  # the one that obeys the list of what may be imported

            found = import_object(path)
    except Exception as error:  # a module of one's own may fail in any way
        raise ValueError(f"{base.__name__.lower()}: got {path}, which cannot be imported ({_line(error)})") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{base.__name__.lower()}: got {path}, expected a class derived from {base.__name__}")
    return found


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights that ``Solver.save`` has written.

    Raises:
        ValueError: If they are something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / DESCRIPTION
    for needed in (file, folder / WEIGHTS):
        if not needed.is_file():
            raise ValueError(f"ckpt_path: got {folder}, expected a folder with {DESCRIPTION} and {WEIGHTS}")
    if file.stat().st_size > LARGEST_DESCRIPTION:
        raise ValueError(f"ckpt_path: got {file}, expected at most {LARGEST_DESCRIPTION} bytes")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict):
        raise ValueError(f"ckpt_path: got {file}, expected the description of an agent in JSON")
    try:
        return description, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"ckpt_path: got {folder / WEIGHTS}, expected weights ({_line(error)})") from None


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights from a checkpoint and the configuration of its run.

    Raises:
        ValueError: If they are something else.
    """
    import yaml

    from toolagent_pl.checkpoint_io import AtomicCheckpointIO
    from toolagent_pl.configuration import load_yaml
    from toolagent_pl.module import check_origin

    places = [folder / "config.yaml" for folder in (path.parent.parent, path.parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"ckpt_path: got {path}, expected the config.yaml of its run in {places[0].parent}")
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    header = check_origin(checkpoint)
    try:
        config = load_yaml(file.read_text(encoding="utf-8"))
        agent, env, tools = config["model"]["agent"], dict(config["model"]["env"]), config["data"]["tools"]
        env["init_args"] = {name: value for name, value in (env.get("init_args") or {}).items() if name != "tools"}
        weights = checkpoint["state_dict"].items()
        own = {name.removeprefix("agent."): value for name, value in weights if name.startswith("agent.")}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"ckpt_path: got {path} with {file}, expected the configuration of its run") from None
    stages, seed = header.get("stages"), config.get("seed_everything")
    return {"agent": agent, "env": env, "tools": tools, "trained_stages": stages, "seed": seed}, own
