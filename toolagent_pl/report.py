"""What is printed at the end of a run."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from toolagent_pl.callbacks.samples import sample_trajectories
from toolagent_pl.machines.rewards import OutcomeReward
from toolagent_pl.module import ToolAgent
from toolagent_pl.trajectories import Trajectory

SAMPLES = 5  # of each stage


def print_report(module: ToolAgent, metrics: Mapping[str, Tensor]) -> None:
    """Print accuracies over all problems, and sample episodes of each stage.

    Args:
        metrics: Results of the test over all problems.
    """
    console = Console(highlight=False, soft_wrap=True)
    for stage, sample in zip(module.ladder.stages, sample_trajectories(module, SAMPLES), strict=True):
        console.print(_samples(f"{stage.name}: {stage.template}", sample))
    shaped = type(module.reward) is not OutcomeReward
    table = Table("stage", box=box.SIMPLE_HEAD, title="Final greedy agent, all problems", title_justify="left")
    for column in ("problems", "right", "accuracy", *(["mean shaped reward"] if shaped else [])):
        table.add_column(column, justify="right")
    for stage in module.ladder.stages:
        accuracy = float(metrics[f"test/{stage.name}_accuracy"])
        reward = [f"{float(metrics[f'test/{stage.name}_reward']):.3f}"] if shaped else []
        right = round(accuracy * stage.size)
        # Rounded down: 100.0% means all of them.
        percent = f"{right * 1000 // stage.size / 10:.1f}%"
        table.add_row(stage.name, f"{stage.size:,}", f"{right:,}", percent, *reward)
    console.print(table)


def _samples(title: str, sample: list[Trajectory]) -> Table:
    """Episodes of one stage as a table."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("problem")
    table.add_column("target", justify="right")
    table.add_column("tools called = accumulator")
    table.add_column("answer", justify="right")
    table.add_column("")
    for one in sample:
        answer = "none" if one.answer is None else str(one.answer)
        verdict = "[green]right[/]" if one.correct else "[red]wrong[/]"
        table.add_row(one.problem, str(one.target), one.calls, answer, verdict)
    return table
