"""The test at the end of a run, and what is printed of it."""

import math
import os
import shlex
import sys
from collections.abc import Sequence

from lightning.pytorch import Trainer
from rich import box
from rich.console import Console
from rich.table import Table

from toolagent_pl.rl.rewards import OutcomeReward
from toolagent_pl.training.checkpoint_callback import Checkpoint
from toolagent_pl.training.data import ProblemDataModule
from toolagent_pl.training.media import sample_episodes
from toolagent_pl.training.metrics import StageResult, result_metrics
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.runs import SOLVED, LogConfig, callback_of
from toolagent_pl.training.schedule import StopWhenSolved

LEARNED, SAMPLE = 0.9, 1000  # validation accuracy of a stage below which so many problems of each are tested after fit
SAMPLES = 5  # of each stage
WIDTH = 160  # where there is no terminal, so that lines of tables stay whole


def finish(trainer: Trainer, module: ToolAgent, data: ProblemDataModule, trained: bool) -> None:
    """Test the agent that ``fit`` has trained, unless that was done to end the run; log and print what comes of it.

    Where it has not learned its stages it is tried on a sample: all problems would take longer than training did.

    Args:
        trained: Whether anything was trained; a run that is over is tested whole when it is gone on with.
    """
    results = callback_of(trainer, StopWhenSolved).results
    logged = result_metrics("test", results)
    if not results:
        validated = [trainer.callback_metrics.get(f"val/{name}_accuracy", 0) for name in module.env.stages]
        if trained and any(float(one) < LEARNED for one in validated):
            data.most_tested = SAMPLE
            if trainer.is_global_zero:
                print(
                    f"Not all stages are known to be learned: the test that follows tries at most {SAMPLE:,} problems "
                    "of each; `test --ckpt_path last` tries all.",
                    flush=True,
                )
        trainer.test(module, datamodule=data, verbose=False)  # logs its results itself
        results, logged = module.last_results, {}
    trained_on = [one for one in results if one.name in module.env.stages]
    logged[SOLVED] = sum(one.correct for one in trained_on) / max(1, sum(one.tried for one in trained_on))
    for logger in trainer.loggers:
        logger.log_metrics(logged, module.batches_seen)
        logger.save()  # Lightning has finished with it
    if trainer.is_global_zero:
        for sample in sample_episodes(module, SAMPLES):
            table = _table(sample[0].stage, "problem", "what the agent did", "")
            for one in sample:
                table.add_row(one.problem, one.story, "[green]right[/]" if one.solved else "[red]wrong[/]")
            _print(table)
        print_table(module, results, module.env.stages, "Final greedy agent")


def print_how_to_go_on(trainer: Trainer) -> None:
    """Print what a run that was told to stop has saved, and where."""
    saved, run = callback_of(trainer, Checkpoint).last_path, callback_of(trainer, LogConfig).folder
    words = shlex.join(["fit", f"--config={run / 'config.yaml'}", f"--ckpt_path={saved}"])
    print(f"Stopped; all is saved in {saved}. To go on: python -m toolagent_pl {words}", flush=True)


def print_table(
    module: ToolAgent, results: Sequence[StageResult], trained: Sequence[str], title: str = "Greedy agent"
) -> None:
    """Print accuracies and plan lengths of each stage; a row is one line of a terminal of 80 columns.

    Args:
        results: Of a test or a validation.
        trained: Names of the stages that the agent was trained on.
        title: Above the table.
    """
    columns = ["tried", "right", "accuracy", "plan\nlength" if module.has_reference else "mean\nsteps"]
    columns += [] if type(module.reward) is OutcomeReward else ["mean shaped\nreward"]
    table = _table(title, "stage")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("")
    known = {result.name: result for result in results}
    for i, name in enumerate(module.env.all_stages):
        if (result := known.get(name)) is None:
            table.add_row(name, "0", *["-"] * (len(columns) - 1), "not tried")
            continue
        percent = f"{result.correct * 1000 // result.tried / 10:.1f}%"  # rounded down: 100.0% means all of them
        notes = "all" if module.env.size(i) == result.tried else "held out"
        notes += "" if name in trained else ", unseen"
        steps = "-" if math.isnan(result.plan_length) else f"{result.plan_length:.2f}"
        cells = [f"{result.tried:,}", f"{result.correct:,}", percent, steps, f"{result.reward:.3f}"][: len(columns)]
        table.add_row(name, *cells, notes)
    _print(table)


def _table(title: str | None, *columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left")


def _print(table: Table) -> None:
    terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(highlight=False, soft_wrap=True, width=None if terminal else WIDTH).print(table)
