"""What share of the default run goes into writing checkpoints.

Run ``python -m benchmarks.checkpoint_cost``. It runs ``python -m toolagent_pl fit`` for each seed with a callback that
measures each save within the run, from the moment at which it is asked for until the file is safe on the disk. What
follows ``--`` is handed on to ``fit``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box
from rich.table import Table

from benchmarks.environment import child_environment, console, environment, headline, wait_until_quiet, write_json
from benchmarks.fit_options import seeds_parser

RESULT = "saves.json"
LARGEST_SHARE = 0.03


class TimedSaves(Callback):
    """Measures how long training takes, and each save in it."""

    def __init__(self) -> None:
        self.saves: list[float] = []
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock before and after each save from here on."""
        save = trainer.save_checkpoint

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            save(*args, **kwargs)
            self.saves.append(time.perf_counter() - start)

        trainer.save_checkpoint = timed  # type: ignore[method-assign]
        self.start = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down what was measured."""
        training = time.perf_counter() - self.start
        updates = trainer.global_step
        Path(RESULT).write_text(json.dumps({"training": training, "updates": updates, "saves": self.saves}))


class Run(NamedTuple):
    """One run: seconds of the whole command, of training, and of each save; and the number of updates."""

    seed: int
    command: float
    training: float
    updates: int
    saves: list[float]

    @property
    def share(self) -> float:
        """Of the command's time that saves took."""
        return sum(self.saves) / self.command

    @property
    def share_of_training(self) -> float:
        """Of the time between the first update and the last."""
        return sum(self.saves) / self.training


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write; returns the exit status, 0 if the median share is small enough."""
    options = _parser().parse_args(arguments)
    shown = console()
    facts = environment()
    shown.print(headline(facts))
    runs = []
    for seed in options.seeds:
        wait_until_quiet(time.monotonic() + options.patience)
        runs.append(measure(seed, options.fit_options))
    share = statistics.median(run.share for run in runs)
    shown.print(_table(runs))
    shown.print(f"Checkpoints take {share:.2%} of the command, wanted less than {LARGEST_SHARE:.0%}.")
    if options.output:
        shares = {"share": share, "share_of_training": statistics.median(run.share_of_training for run in runs)}
        document = {**facts, "fit_options": options.fit_options, **shares, "runs": [run._asdict() for run in runs]}
        write_json(options.output, document)
        shown.print(f"written to {options.output}")
    return 0 if share < LARGEST_SHARE else 1


def measure(seed: int, fit_options: Sequence[str]) -> Run:
    """One run, in a process and a directory of its own.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    callback = "--trainer.callbacks+=benchmarks.checkpoint_cost.TimedSaves"
    command = [sys.executable, "-m", "toolagent_pl", "fit", f"--seed_everything={seed}", callback, *fit_options]
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        subprocess.run(command, cwd=directory, env=child_environment(), check=True, capture_output=True)
        seconds = time.perf_counter() - start
        measured = json.loads((Path(directory) / RESULT).read_text())
    return Run(seed, seconds, measured["training"], measured["updates"], measured["saves"])


def _table(runs: Sequence[Run]) -> Table:
    table = Table("seed", box=box.SIMPLE_HEAD, title="Time that checkpoints take", title_justify="left")
    for column in ("seconds", "of training", "updates", "saves", "ms a save", "share of all", "share of training"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            str(run.seed),
            f"{run.command:.2f}",
            f"{run.training:.2f}",
            str(run.updates),
            str(len(run.saves)),
            f"{1000 * statistics.mean(run.saves):.1f}",
            f"{run.share:.2%}",
            f"{run.share_of_training:.2%}",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = seeds_parser(__doc__, 5)
    parser.add_argument("--output", type=Path, help="JSON to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
