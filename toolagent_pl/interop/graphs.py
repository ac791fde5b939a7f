"""Agents as graphs that need nothing of this package: ``prefill`` and ``decode``, for ONNX or as torch.export programs.

Sizes of the batch, the prompt, the tape of operands, and of what a cache grows by, are free. Exporters have written
graphs that compute something else without a word, so a graph is read again and acts beside the agent before it is kept.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from toolagent_pl import __version__
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import Observation, RegisterEnv
from toolagent_pl.envs.calculator.stages import Stages
from toolagent_pl.envs.calculator.tools import FLAGS, POSITIONS
from toolagent_pl.rl.agent import Agent, Policy
from toolagent_pl.rl.env import PADDING
from toolagent_pl.rl.rollout import collect

GraphFormat = Literal["onnx", "torch"]
FORMATS = get_args(GraphFormat)
SUFFIX = {"onnx": "onnx", "torch": "pt2"}
DESCRIPTION = "graphs.json"
FILES = {kind: [DESCRIPTION, f"prefill.{suffix}", f"decode.{suffix}"] for kind, suffix in SUFFIX.items()}
MIN_PROMPT = 2  # tokens: a digit, and CTX
MIN_OPERANDS = 2  # columns of the tape: the exporters know no tensor of no columns
COMPARED = 500  # problems of each stage that a graph is tried on
STAGES = ["E1", "E2", "E3", "E5", "E8"]
OPERANDS = {0: "batch", 1: "operands"}
PREFILL = {  # what an agent may know of problems, and the names of their free sizes
    "stage": {0: "batch"},
    "prompt": {0: "batch", 1: "prompt"},
    "prompt_length": {0: "batch"},
    "operands": OPERANDS,
    "positions": OPERANDS,
    "length": {0: "batch"},
}
DECODE = {"previous": {0: "batch"}, "flags": {0: "batch"}, "positions": {0: "batch"}}


class Graphs(NamedTuple):
    """The two programs, and what is known of their inputs and outputs.

    Attributes:
        prefill, decode: Programs of tensors, in the order of ``signature``.
        signature: For each of them ``inputs`` and ``outputs``, as ``name``, ``dtype``, ``shape``; free sizes are names.
    """

    prefill: ExportedProgram
    decode: ExportedProgram
    signature: dict[str, dict[str, list[dict[str, Any]]]]


class _Flat(nn.Module):
    """What a function computes with an agent, from tensors to tensors."""

    def __init__(self, agent: Agent, function: Callable[..., Any]) -> None:
        super().__init__()
        self.agent, self.function = agent, function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.function(*inputs)))


def check_installed(kind: GraphFormat) -> None:
    """Refuse a format that needs packages which are not there: a ValueError names one, and how to install it."""
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"format: got onnx, which needs {package}; expected pip install 'toolagent_pl[export]'")


def trace(agent: Agent, env: RegisterEnv) -> Graphs:
    """Trace ``prefill`` and ``decode``; a ValueError says what in the agent cannot be traced with free sizes."""

    def prefill(*told: Tensor) -> Any:
        fields: dict[str, Any] = dict.fromkeys(Problems._fields)  # who reads number, target or tree does not read
        return agent.prefill(Problems(**{**fields, **dict(zip(PREFILL, told, strict=True))}))

    def decode(previous: Tensor, flags: Tensor, positions: Tensor, *cache: Tensor) -> Any:
        policy, following = agent.decode(tree_unflatten(cache, structure), previous, Observation(flags, positions))
        return policy.logits, following

    shorter, longer = (_problems(env, stage, 3 + i) for i, stage in enumerate(("E3", "E5")))
    try:
        with torch.no_grad(), _free_sizes():
            told = {name: getattr(shorter, name) for name in PREFILL}
            cache, structure = tree_flatten(agent.prefill(shorter))
            observation, previous = env.observe(env.reset(shorter)), torch.full_like(shorter.length, PADDING)
            logits, *following = tree_leaves(decode(previous, *observation, *cache))
            # What differs between caches of other problems, or of other steps, is a free size.
            free: dict[str, dict[int, str]] = {}
            for i, like in enumerate(zip(cache, following, tree_leaves(agent.prefill(longer)), strict=True)):
                grows = [d for d in range(1, like[0].ndim) if len({x.shape[d] for x in like}) > 1]
                free[f"cache_{i}"] = {0: "batch", **{d: f"cache_{i}_{d}" for d in grows}}
            held = dict(zip(free, cache, strict=True))
            heard = dict(zip(DECODE, (previous, *observation), strict=True)) | held
            known = DECODE | free | {"logits": {0: "batch"}}
            programs = _traced(agent, prefill, told, PREFILL), _traced(agent, decode, heard, known)
    except Exception as error:  # an agent may do anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"agent: got {type(agent).__name__}, which cannot be exported ({reason})") from error
    decided = _described({"logits": logits}, known) + _described(held, known, "next_")
    signature = {
        "prefill": {"inputs": _described(told, PREFILL), "outputs": _described(held, known)},
        "decode": {"inputs": _described(heard, known), "outputs": decided},
    }
    return Graphs(*programs, signature)


def write(graphs: Graphs, agent: Agent, env: RegisterEnv, directory: Path, kind: GraphFormat) -> None:
    """Write both graphs, and ``graphs.json`` with what a program that runs them has to know."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("prefill", "decode"):
        program, path = getattr(graphs, name), directory / f"{name}.{SUFFIX[kind]}"
        if kind == "torch":
            torch.export.save(program, path)
            continue
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells which packages of other people are missing
        names: Any = {f"{side[:-1]}_names": [one["name"] for one in of] for side, of in graphs.signature[name].items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the exporter finds to say about itself
            torch.onnx.export(program, (), path, **names, dynamo=True, external_data=False, verbose=False)
    vocabulary = env.vocabulary
    description = {
        "toolagent_pl": __version__,
        "agent": type(agent).__name__,
        "stage_conditioned": agent.stage_conditioned,
        "actions": list(env.actions),
        "tokens": list(vocabulary.names),
        "operators": [
            {"symbol": tool.symbol, "name": tool.name, "token": token, "precedence": tool.precedence}
            for token, tool in vocabulary.by_token.items()
        ],
        "env": {
            "name": type(env).__name__,
            "memory_depth": env.memory_depth,
            "flags": list(FLAGS[: env.flags]),
            "positions": list(POSITIONS[: env.positions]),
            "least_operands": MIN_OPERANDS,
        },
        "graphs": graphs.signature,
    }
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


class GraphAgent(Agent):
    """Graphs of a format that were written into a directory, as an agent: to compare them with the original."""

    def __init__(self, env: RegisterEnv, directory: Path, kind: GraphFormat) -> None:
        super().__init__(env)
        self._prefill, self._decode = (_loaded(directory / f"{name}.{SUFFIX[kind]}") for name in ("prefill", "decode"))

    def prefill(self, problems: Problems) -> tuple[Tensor, ...]:
        """Run the graph."""
        short = max(0, MIN_OPERANDS - problems.operands.shape[1])
        operands = nn.functional.pad(problems.operands, (0, short))
        positions = nn.functional.pad(problems.positions, (0, short), value=-1)
        told = problems._replace(operands=operands, positions=positions)
        return tuple(self._prefill(*(getattr(told, name) for name in PREFILL)))

    def decode(
        self, cache: tuple[Tensor, ...], previous: Tensor, observation: Observation
    ) -> tuple[Policy, tuple[Tensor, ...]]:
        """Run the graph."""
        logits, *following = self._decode(previous, *observation, *cache)
        return Policy(logits, None), tuple(following)


def different(agent: Agent, other: Agent, env: RegisterEnv, problems: Problems) -> int:
    """How many of these problems two agents solve by different plans, or one of them not."""
    plans = [collect(one, env, problems).visible_actions for one in (agent, other)]
    longest = max(plan.shape[1] for plan in plans)
    mine, theirs = (nn.functional.pad(plan, (0, longest - plan.shape[1]), value=PADDING) for plan in plans)
    return int(mine.ne(theirs).any(1).sum())


def compare(agent: Agent, env: RegisterEnv, directory: Path, kind: GraphFormat) -> int:
    """Let written graphs act beside the agent on problems that they were not traced with, and count these.

    Raises:
        ValueError: If a plan differs.
    """
    other = GraphAgent(env, directory, kind)
    for stage in STAGES:
        if wrong := different(agent, other, env, _problems(env, stage, COMPARED)):
            raise ValueError(
                f"agent: got {type(agent).__name__}, whose {kind} graphs give other plans for {wrong} of {COMPARED} "
                f"problems of {stage}; they are not to be used"
            )
    return COMPARED * len(STAGES)


def _problems(env: RegisterEnv, stage: str, count: int) -> Problems:
    """Random problems, as if they were of all the stages that an agent knows."""
    number = torch.arange(count)
    drawn = Stages([stage], env.vocabulary.tools).draw(number, torch.zeros_like(number), 1, held_out=True)
    return drawn._replace(stage=number % len(env.stages))


@contextlib.contextmanager
def _free_sizes() -> Iterator[None]:
    """Within it, no graph is traced for sizes other than 1 only, nor with fused layers, which exporters do not know."""
    from torch.fx.experimental import _config  # there is no public name

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _traced(
    agent: Agent, function: Callable[..., Any], inputs: dict[str, Tensor], free: dict[str, dict[int, str]]
) -> ExportedProgram:
    least = {"batch": None, "prompt": MIN_PROMPT, "operands": MIN_OPERANDS}
    sizes = {name: Dim(name, min=size) for name, size in least.items()}
    shapes = tuple({d: sizes.get(name, Dim.AUTO) for d, name in free[one].items()} for one in inputs)
    module = _Flat(agent, function).eval()
    with contextlib.redirect_stderr(io.StringIO()):  # where it prints the graph so far, if it cannot go on
        return torch.export.export(module, tuple(inputs.values()), dynamic_shapes=(shapes,), strict=False)


def _described(tensors: dict[str, Tensor], free: dict[str, dict[int, str]], prefix: str = "") -> list[dict[str, Any]]:
    return [
        {
            "name": prefix + name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [free[name].get(d, size) for d, size in enumerate(tensor.shape)],
        }
        for name, tensor in tensors.items()
    ]


def _loaded(path: Path) -> Callable[..., Sequence[Tensor]]:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        found = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        return [torch.from_numpy(x) for x in found]

    return run
