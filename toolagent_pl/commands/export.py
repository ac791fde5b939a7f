"""``python -m toolagent_pl export``: a trained agent as graphs that need nothing of this package, or as a folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from toolagent_pl import export
from toolagent_pl.agents import Agent
from toolagent_pl.envs import Env
from toolagent_pl.learning.rollout import collect
from toolagent_pl.problems import Stages
from toolagent_pl.randomness import Purpose
from toolagent_pl.saved import SavedAgent, build, newest_checkpoint, read, write

USAGE_ERROR = 2
FORMATS = (*export.FORMATS, "safetensors")
EXAMPLES = """\
examples:
  python -m toolagent_pl export --format onnx
  python -m toolagent_pl export --format safetensors --ckpt_path last --output my-agent
"""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"error: {message}; see export --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m toolagent_pl export",
        description="Write a trained agent for other programs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="onnx: graphs of prefill and decode; torch: the same as torch.export programs; safetensors: a folder "
        "with weights, config.json and a model card, which solve and Solver.from_pretrained load",
    )
    parser.add_argument(
        "--ckpt_path",
        metavar="PATH",
        help="a checkpoint, or last for that of the newest run here, or the folder of a saved agent "
        "(default: the agent that comes with the package)",
    )
    parser.add_argument("--output", metavar="DIR", default="exported", help="where to write (default: exported)")
    parser.add_argument(
        "--test_problems",
        metavar="N",
        type=int,
        default=10_000,
        help="held-out problems of each trained stage that the model card tells the results of (default: 10000; with "
        "safetensors, where no results are known)",
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
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return USAGE_ERROR
    return 0


def _export(options: argparse.Namespace) -> str:
    """Export, and say what came of it."""
    if options.test_problems < 0:
        raise ValueError(f"test_problems: got {options.test_problems}, expected at least 0")
    saved = read(newest_checkpoint() if options.ckpt_path == "last" else options.ckpt_path)
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


def _figures(saved: SavedAgent, agent: Agent, env: Env[Any], count: int) -> dict[str, dict[str, int]]:
    """How many held-out problems of each stage the agent answers correctly; stages of one's own are left out."""
    figures: dict[str, dict[str, int]] = {}
    seed = saved.description.get("seed")
    number = torch.arange(count)
    for position, name in enumerate(saved.description["trained_stages"] if count else ()):
        try:
            stages = Stages([name], env.vocabulary.tools)
        except ValueError:  # its pattern is not known here
            continue
        problems = stages.draw(
            number, torch.zeros_like(number), seed if isinstance(seed, int) else 0, Purpose.TEST, held_out=True
        )
        rollout = collect(agent, env, problems._replace(stage=torch.full_like(number, position)))
        figures[name] = {"right": int(rollout.outcome.correct.sum()), "tried": count}
    return figures
