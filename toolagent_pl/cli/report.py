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

from toolagent_pl.rl.env import Episode
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
    right, tried = (
        sum(getattr(one, name) for one in results if one.name in module.env.stages) for name in ("correct", "tried")
    )
    logged[SOLVED] = right / tried if tried else 0.0
    for logger in trainer.loggers:
        logger.log_metrics(logged, module.batches_seen)
        logger.save()  # Lightning has finished with it
    if trainer.is_global_zero:
        print_report(module, results)


def print_how_to_go_on(checkpoint: Checkpoint, config: LogConfig) -> None:
    """Print what a run that was told to stop has saved, and where."""
    assert config.folder is not None
    words = shlex.join(["fit", f"--config={config.folder / 'config.yaml'}", f"--ckpt_path={checkpoint.last_path}"])
    print(f"Stopped; all is saved in {checkpoint.last_path}. To go on: python -m toolagent_pl {words}", flush=True)


def print_report(module: ToolAgent, results: Sequence[StageResult]) -> None:
    """Print accuracies and plan lengths of each stage, and sample episodes.

    Args:
        results: Of the test.
    """
    for sample in sample_episodes(module, SAMPLES):
        _console().print(_samples(sample))
    print_table(module, results, module.env.stages, "Final greedy agent")


def print_table(
    module: ToolAgent, results: Sequence[StageResult], trained: Sequence[str], title: str = "Greedy agent"
) -> None:
    """Print accuracies and plan lengths of each stage; a row is one line of a terminal of 80 columns.

    Args:
        results: Of a test or a validation.
        trained: Names of the stages that the agent was trained on.
        title: Above the table.
    """
    shaped = type(module.reward) is not OutcomeReward
    length = "plan\nlength" if module.has_reference else "mean\nsteps"
    table = Table("stage", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("tried", "right", "accuracy", length, *(["mean shaped\nreward"] if shaped else [])):
        table.add_column(column, justify="right")
    table.add_column("")
    known = {result.name: result for result in results}
    for i, name in enumerate(module.env.all_stages):
        if name not in known:
            table.add_row(name, "0", *["-"] * (4 if shaped else 3), "not tried")
            continue
        result = known[name]
        percent = f"{result.correct * 1000 // result.tried / 10:.1f}%"  # rounded down: 100.0% means all of them
        notes = ["all" if module.env.size(i) == result.tried else "held out"]
        notes += ["unseen"] if name not in trained else []
        steps = "-" if math.isnan(result.plan_length) else f"{result.plan_length:.2f}"
        reward = [f"{result.reward:.3f}"] if shaped else []
        table.add_row(name, f"{result.tried:,}", f"{result.correct:,}", percent, steps, *reward, ", ".join(notes))
    _console().print(table)


def _console() -> Console:
    terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, soft_wrap=True, width=None if terminal else WIDTH)


def _samples(sample: Sequence[Episode]) -> Table:
    """Episodes of one stage as a table."""
    table = Table("problem", "what the agent did", "", box=box.SIMPLE_HEAD, title=sample[0].stage, title_justify="left")
    for one in sample:
        table.add_row(one.problem, one.story, "[green]right[/]" if one.solved else "[red]wrong[/]")
    return table
