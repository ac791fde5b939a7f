"""What is printed at the end of a run."""

import os
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from toolagent_pl.callbacks.samples import sample_episodes
from toolagent_pl.episodes import Episode
from toolagent_pl.learning import OutcomeReward
from toolagent_pl.metrics import StageResult
from toolagent_pl.module import ToolAgent

SAMPLES = 5  # of each stage
WIDTH = 160  # where there is no terminal, so that lines of tables stay whole


def print_report(module: ToolAgent, results: Sequence[StageResult]) -> None:
    """Print accuracies and plan lengths of each stage, and sample episodes.

    Args:
        results: Of the test.
    """
    for sample in sample_episodes(module, SAMPLES):
        if sample[0].stage in module.stages.names[: module.trained_stages]:
            _console().print(_samples(sample))
    print_table(module, results, "Final greedy agent")


def print_table(
    module: ToolAgent,
    results: Sequence[StageResult],
    title: str = "Greedy agent",
    trained: Sequence[str] | None = None,
) -> None:
    """Print accuracies and plan lengths of each stage.

    Args:
        results: Of a test or a validation.
        title: Above the table.
        trained: Names of the stages that the agent was trained on; None for those of the module.
    """
    if trained is None:
        trained = module.stages.names[: module.trained_stages]
    shaped = type(module.reward) is not OutcomeReward
    table = Table("stage", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    # Headings of two lines, and short notes: a row is one line of a terminal of 80 columns.
    for column in ("tried", "right", "accuracy", "plan /\ntextbook", *(["mean shaped\nreward"] if shaped else [])):
        table.add_column(column, justify="right")
    table.add_column("")
    for i, name in enumerate(module.stages.names):
        result = next((one for one in results if one.name == name), None)
        if result is None:
            table.add_row(name, "0", *["-"] * (4 if shaped else 3), "not tried")
            continue
        # Rounded down: 100.0% means all of them.
        percent = f"{result.correct * 1000 // result.tried / 10:.1f}%"
        size = module.stages.size(i)
        notes = ["all there are" if size == result.tried else "held out"]
        if name not in trained:
            notes.append("unseen")
        length = "-" if result.plan_length != result.plan_length else f"{result.plan_length:.2f}"
        reward = [f"{result.reward:.3f}"] if shaped else []
        table.add_row(name, f"{result.tried:,}", f"{result.correct:,}", percent, length, *reward, ", ".join(notes))
    _console().print(table)


def _console() -> Console:
    terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, soft_wrap=True, width=None if terminal else WIDTH)


def _samples(sample: list[Episode]) -> Table:
    """Episodes of one stage as a table."""
    table = Table(box=box.SIMPLE_HEAD, title=sample[0].stage, title_justify="left")
    table.add_column("problem")
    table.add_column("target", justify="right")
    table.add_column("calls = accumulator")
    table.add_column("answer", justify="right")
    table.add_column("")
    for one in sample:
        answer = "none" if one.answer is None else str(one.answer)
        verdict = "[green]right[/]" if one.correct else "[red]wrong[/]"
        table.add_row(one.expression, str(one.target), one.calls, answer, verdict)
    return table
