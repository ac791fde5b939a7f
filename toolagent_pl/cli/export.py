"""``python -m toolagent_pl export``: a trained agent as graphs that need nothing of this package, or as a folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from toolagent_pl.cli.parser import CommandParser, agent_path, failed
from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.registers import RegisterEnv
from toolagent_pl.envs.calculator.shapes import by_shape
from toolagent_pl.envs.calculator.solver import PRETRAINED, USAGE
from toolagent_pl.interop import graphs
from toolagent_pl.rl import saved
from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.files import check_new
from toolagent_pl.rl.rollout import Rollout, collect

BATCH = 4096
TRIED = 10_000  # problems of each stage
ENOUGH = 100  # problems of a shape of tree, for its share to say something
EXAMPLES = """\
examples:
  python -m toolagent_pl export --format onnx
  python -m toolagent_pl export --format safetensors --ckpt_path last --output my-agent
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("export", "Write a trained agent for other programs.", EXAMPLES)
    parser.add_argument(
        "--format",
        choices=(*graphs.FORMATS, "safetensors"),
        required=True,
        help="onnx: graphs of prefill and decode; torch: the same as torch.export programs; safetensors: a folder "
        "with weights, config.json and a model card, which solve and Solver.from_pretrained load",
    )
    parser.add_ckpt_path()
    parser.add_argument("--output", metavar="DIR", default="exported", help="where to write (default: exported)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "float8_e4m3fn"),
        default="float32",
        help="of the matrices in a folder; the results that the model card tells are of what is written",
    )
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
    """Run the command with these words, and return its exit status."""
    try:
        print(_export(_parser().parse_args(arguments)))
    except (ValueError, OSError) as error:
        return failed(error)
    return 0


def _export(options: argparse.Namespace) -> str:
    """Export, and say what came of it."""
    most = options.test_problems
    check_range(at_least=0, test_problems=most)
    directory = Path(options.output).expanduser()
    if not options.overwrite:
        check_new("output", (directory / name for name in graphs.FILES.get(options.format, saved.FILES)))
    found = saved.read(agent_path(options.ckpt_path) or PRETRAINED)
    agent, env = saved.build(found, options.allow_custom)
    if options.dtype != "float32" and options.format != "safetensors":
        raise ValueError(f"dtype: got {options.dtype}, expected float32 with format {options.format}")
    if options.format == "safetensors":
        dtype = getattr(torch, options.dtype)
        with torch.no_grad():
            for matrix in (weight for weight in agent.parameters() if weight.ndim > 1):
                matrix.copy_(matrix.to(dtype))
        figures = found.description.get("figures") or {}
        if not figures or most is not None:
            figures = {**figures, **_figures(agent, env, TRIED if most is None else most)}
        usage = USAGE if isinstance(env, CalculatorEnv) and not agent.stage_conditioned else saved.USAGE
        saved.write(directory, agent, env, found.description, {"figures": figures}, True, usage, dtype)
        return f"{directory}: weights, config.json and README.md of {type(agent).__name__}"
    if not isinstance(env, RegisterEnv):
        raise ValueError(f"format: got {options.format}, expected safetensors for agents of {type(env).__name__}")
    graphs.check_installed(options.format)
    graphs.write(graphs.trace(agent, env), agent, env, directory, options.format)
    compared = graphs.compare(agent, env, directory, options.format)
    return f"{directory}: prefill and decode of {type(agent).__name__}, with the same plans for {compared:,} problems"


def _figures(agent: Agent, env: Env, most: int) -> dict[str, dict[str, Any]]:
    """How many problems of each stage the agent solves: of all, if they are at most ``most``, else of held-out ones."""
    from toolagent_pl.training.stream import FixedProblems, Sample

    problems = FixedProblems(env, len(env.stages), Sample.TEST, most, BATCH, whole=True, most=most) if most else ()
    rollouts: dict[str, list[Rollout]] = {}
    for batch in problems:
        rollouts.setdefault(env.stages[int(batch.stage[0])], []).append(collect(agent, env, batch))
    figures: dict[str, dict[str, Any]] = {}
    for stage, tried in rollouts.items():
        solved = torch.cat([one.solved for one in tried])
        figures[stage] = {"right": int(solved.sum()), "tried": len(solved)}
        if isinstance(env, RegisterEnv) and (note := _worst_shape(tried)):
            figures[stage]["note"] = note
    return figures


def _worst_shape(rollouts: Sequence[Rollout]) -> str:
    """What to say of the shapes of trees that enough problems have, if there are several."""
    counts = [one for one in by_shape((one.problems, one.solved) for one in rollouts) if one.tried >= ENOUGH]
    if not counts:
        return ""
    shape, right, tried = counts[0]
    if right < tried:
        return f"worst shape of tree `{shape}`: {right * 10_000 // tried / 100:.2f}% of {tried:,}"
    return f"all of {len(counts)} shapes right, {tried:,} or more of each" if len(counts) > 1 else ""
