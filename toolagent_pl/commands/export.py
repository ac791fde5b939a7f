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
from toolagent_pl.saved import FILES, SavedAgent, build, check_new, read, write
from toolagent_pl.shapes import by_shape

BATCH = 4096
TRIED = 10_000  # problems of each stage
ENOUGH = 100  # problems of a shape of tree, for its share to say something
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
    parser.add_overwrite()
    parser.add_argument(
        "--test_problems",
        metavar="N",
        type=int,
        help="most problems of each trained stage that the model card tells the results of: all of a stage that has no "
        "more, else held-out ones (with safetensors; default: 10000 where no results are known)",
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
    most = options.test_problems
    if most is not None and most < 0:
        raise ValueError(f"test_problems: got {most}, expected at least 0")
    directory = Path(options.output).expanduser()
    if not options.overwrite:
        check_new("output", (directory / name for name in export.FILES.get(options.format, FILES)))
    saved = read(agent_path(options))
    agent, env = build(*saved)
    stages = len(saved.description["trained_stages"])
    if options.format == "safetensors":
        known = saved.description.get("figures") or {}
        if not known or most is not None:
            tried = _figures(saved, agent, env, TRIED if most is None else most)
            known = {**known, **tried} if isinstance(known, dict) else tried
        write(directory, saved, {"figures": known})
        return f"{directory}: weights, config.json and README.md of {type(agent).__name__}"
    export.check_installed(options.format)
    graphs = export.trace(agent, env, stages)
    export.write(graphs, agent, env, directory, options.format)
    compared = export.compare(agent, env, stages, directory, options.format)
    return f"{directory}: prefill and decode of {type(agent).__name__}, with the same plans for {compared:,} problems"


def _figures(saved: SavedAgent, agent: Agent, env: Env[Any], most: int) -> dict[str, dict[str, Any]]:
    """How many problems of each stage the agent answers correctly; stages of one's own are left out.

    All of a stage that has no more than ``most`` are tried, else so many that are held out. Of the shapes of trees with
    enough problems the worst is named.
    """
    figures: dict[str, dict[str, Any]] = {}
    for position, name in enumerate(saved.description["trained_stages"] if most else ()):
        try:
            stages = Stages([name], env.vocabulary.tools)
        except ValueError:  # its pattern is not known here
            continue
        batches = FixedProblems(stages, Purpose.TEST, most, BATCH, whole=True, most=most)
        told = (problems._replace(stage=torch.full_like(problems.stage, position)) for problems in batches)
        counts = by_shape((problems, collect(agent, env, problems).outcome.correct) for problems in told)
        figures[name] = {"right": sum(one.right for one in counts), "tried": sum(one.tried for one in counts)}
        if enough := [one for one in counts if one.tried >= ENOUGH]:
            figures[name] |= {"shapes": len(enough), "worst": enough[0]._asdict()}
    return figures
