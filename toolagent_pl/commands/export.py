"""``python -m toolagent_pl export``: a trained agent as graphs that need nothing of this package, or as a folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from toolagent_pl import export
from toolagent_pl.agents import Agent
from toolagent_pl.commands.parser import CommandParser, agent_path, failed
from toolagent_pl.envs import Env
from toolagent_pl.learning.rollout import collect
from toolagent_pl.problems import Stages
from toolagent_pl.problems.stream import FixedProblems
from toolagent_pl.randomness import Purpose
from toolagent_pl.saved import SavedAgent, build, read, write

BATCH = 4096
FORMATS = (*export.FORMATS, "safetensors")
EXAMPLES = """\
examples:
  python -m toolagent_pl export --format onnx
  python -m toolagent_pl export --format safetensors --ckpt_path last --output my-agent
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("export", description="Write a trained agent for other programs.", epilog=EXAMPLES)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="onnx: graphs of prefill and decode; torch: the same as torch.export programs; safetensors: a folder "
        "with weights, config.json and a model card, which solve and Solver.from_pretrained load",
    )
    parser.add_ckpt_path()
    parser.add_argument("--output", metavar="DIR", default="exported", help="where to write (default: exported)")
    parser.add_argument(
        "--test_problems",
        metavar="N",
        type=int,
        default=10_000,
        help="most problems of each trained stage that the model card tells the results of: all of a stage that has no "
        "more, else held-out ones (default: 10000; with safetensors, where no results are known)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status.

    Args:
        arguments: The words after ``export``.
    """
    options = _parser().parse_args(arguments)
    try:
        print(_export(options))
    except (ValueError, OSError) as error:
        return failed(error)
    return 0


def _export(options: argparse.Namespace) -> str:
    """Export, and say what came of it."""
    if options.test_problems < 0:
        raise ValueError(f"test_problems: got {options.test_problems}, expected at least 0")
    saved = read(agent_path(options))
    agent, env = build(*saved)
    directory, stages = Path(options.output).expanduser(), len(saved.description["trained_stages"])
    if options.format == "safetensors":
        figures = saved.description.get("figures") or _figures(saved, agent, env, options.test_problems)
        write(directory, saved, {"figures": figures})
        return f"{directory}: weights, config.json and README.md of {type(agent).__name__}"
    export.check_installed(options.format)
    graphs = export.trace(agent, env, stages)
    export.write(graphs, agent, env, directory, options.format)
    tried = export.compare(agent, env, stages, directory, options.format)
    return f"{directory}: prefill and decode of {type(agent).__name__}, with the same plans for {tried:,} problems"


def _figures(saved: SavedAgent, agent: Agent, env: Env[Any], most: int) -> dict[str, dict[str, int]]:
    """How many problems of each stage the agent answers correctly; stages of one's own are left out.

    All of a stage that has no more than ``most`` are tried, else so many that are held out.
    """
    figures: dict[str, dict[str, int]] = {}
    for position, name in enumerate(saved.description["trained_stages"] if most else ()):
        try:
            stages = Stages([name], env.vocabulary.tools)
        except ValueError:  # its pattern is not known here
            continue
        right = tried = 0
        for problems in FixedProblems(stages, Purpose.TEST, most, BATCH, whole=True, most=most):
            rollout = collect(agent, env, problems._replace(stage=torch.full_like(problems.stage, position)))
            right, tried = right + int(rollout.outcome.correct.sum()), tried + problems.size
        figures[name] = {"right": right, "tried": tried}
    return figures
