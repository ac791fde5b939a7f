"""``python -m toolagent_pl sweep``: a search for good options of ``fit``."""

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from toolagent_pl.commands.parser import INTERRUPTED, failed

if TYPE_CHECKING:
    from toolagent_pl.sweep import Sweep

SHOWN = 10  # trials in the table
EPILOG = "Start the command several times to run several trials at once; start it again to go on with a sweep."


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status.

    Args:
        arguments: The words after ``sweep``.
    """
    try:
        import optuna
    except ImportError:
        return failed("sweep: got no optuna, expected it to be installed: pip install 'toolagent_pl[sweep]'")
    from jsonargparse import ActionConfigFile

    from toolagent_pl.cli import ArgumentParser
    from toolagent_pl.sweep import Sweep

    parser = ArgumentParser(
        prog="python -m toolagent_pl sweep", description="Search for good options of fit.", epilog=EPILOG
    )
    parser.add_argument("--config", action=ActionConfigFile, help="file with any of these options")
    parser.add_class_arguments(Sweep)
    options = parser.parse_args(list(arguments))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
            return _run(Sweep(**{key: value for key, value in options.as_dict().items() if key != "config"}))
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        return failed(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _run(sweep: "Sweep") -> int:
    from optuna.trial import FrozenTrial, TrialState

    from toolagent_pl.sweep import BEST, ERROR, ranked, run_trials

    as_it_is = sweep.check()
    study = sweep.open()
    if as_it_is and not study.get_trials(deepcopy=False):
        study.enqueue_trial(as_it_is, skip_if_exists=True)
    console = Console(highlight=False, soft_wrap=True)
    if not as_it_is:
        console.print("The settings without the sweep are not in its space: they are no trial.")

    def seconds(trial: FrozenTrial) -> float:
        return trial.duration.total_seconds() if trial.duration else 0.0

    def shown(trial: FrozenTrial) -> list[str]:
        """Number, score, state, seconds, and parameters of a trial."""
        score = trial.value if trial.value is not None else trial.intermediate_values.get(trial.last_step or 0)
        state = trial.user_attrs.get(ERROR) or trial.state.name.lower()
        numbers = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in map(trial.params.get, names)]
        plain = " (as it is)" if trial.params == as_it_is else ""
        return [
            f"{trial.number}{plain}",
            "-" if score is None else f"{score:.4f}",
            state,
            f"{seconds(trial):.0f}",
            *numbers,
        ]

    names = list(sweep.options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("sweep", total=sweep.trials)

        def progress(number: int, step: int, score: float) -> None:
            bar.update(task, description=f"trial {number}, validation {step}: {score:.4f}")

        bar.update(task, completed=len(ranked(study)))
        for trial in run_trials(sweep, study, progress):
            number, score, state, took, *numbers = shown(trial)
            values = ", ".join(f"{name} {value}" for name, value in zip(names, numbers, strict=True))
            bar.console.print(f"trial {number}: {score}, {state} after {took} s: {values}", markup=False)
            bar.update(task, completed=len(ranked(study)))
    trials = ranked(study)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        console.print(f"{len(running)} more run elsewhere; the last process to end knows all.")
    if not trials or trials[0].state != TrialState.COMPLETE:
        raise ValueError(f"trials: got {len(trials)}, none of which came to its end, expected one that does")
    title = f"{len(trials)} trials, {sum(map(seconds, trials)):.0f} s: {sweep.score} of {sweep.metric}"
    table = Table("trial", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    short = [name.rpartition(".")[2] for name in names]
    for column in ("score", "state", "seconds", *(short if len(set(short)) == len(short) else names)):
        table.add_column(column, justify="right", overflow="fold")
    for trial in trials[:SHOWN]:
        table.add_row(*shown(trial))
    console.print(table)
    best = sweep.root / BEST
    console.print(f"The best of them: python -m toolagent_pl fit --config {best}", markup=False)
    console.print(f"All of them: tensorboard --logdir {sweep.root}", markup=False)
    return 0
