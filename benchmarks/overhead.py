"""What Lightning and logging cost: ``fit`` beside a bare loop of the same updates.

Run ``python -m benchmarks.overhead``. ``fit`` runs as it does from the command line, with its callbacks, TensorBoard
every 10 updates and a checkpoint every 50, unless told otherwise; validation and test come after what is timed. The
loop has nothing but the problems, the rollout, the reward, the loss, its gradient, clipping and Adam. They take turns
in one process, and end with the same weights.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich import box
from rich.table import Table

from benchmarks.environment import available_cpus, environment, headline, warn_of_others, write_json
from benchmarks.environment import console as wide_console
from benchmarks.measure import MeasurementError, in_process, undisturbed, use_cpus
from benchmarks.throughput import positive

WARMUP = 20
TURN = 10
WANTED = 0.1
LABELS = {"fit": "fit, with logs and checkpoints", "bare": "a bare loop"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status, 1 if the two did not do the same work."""
    options = _parser().parse_args(arguments)
    if options.only:
        use_cpus(options.threads)
        print(json.dumps(_in_turns(options)))
        return 0
    console = wide_console()
    facts = environment()
    console.print(headline(facts))
    console.print(
        f"{options.threads} threads; {options.repetitions} processes, in each of them {options.updates} updates of "
        f"{options.batch:,} problems, {TURN} of the one and {TURN} of the other in turns"
    )
    results: list[dict[str, Any]] = []
    for _ in range(options.repetitions):
        try:
            results.append(undisturbed(lambda: _measured(options), options.patience))
        except MeasurementError as failure:
            console.print(f"failed: {failure}", markup=False)
            return 1
    seconds = {name: [sum(result[name]) / options.updates for result in results] for name in LABELS}
    overheads = [fit / bare - 1 for fit, bare in zip(seconds["fit"], seconds["bare"], strict=True)]
    overhead = statistics.median(overheads)
    same = all(result["same_weights"] for result in results)
    console.print(_table(seconds))
    each = ", ".join(f"{100 * one:.1f}%" for one in sorted(overheads))
    console.print(f"Lightning, logs and checkpoints cost {100 * overhead:.1f}%, the median of {each}")
    console.print(f"(wanted: less than {100 * WANTED:.0f}%)")
    if not same:
        console.print("[red]The two ended with different weights: they did not do the same work.[/]")
    warn_of_others(console, [result["others"] for result in results])
    settings = {key: value for key, value in vars(options).items() if key not in ("only", "output")}
    document = {**facts, "settings": settings, "overhead": overhead, "overheads": overheads, "results": results}
    write_json(options.output, document)
    console.print(f"written to {options.output}")
    return 0 if same else 1


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """Both, in a process and a directory of their own."""
    arguments = ["-m", "benchmarks.overhead", "--only"]
    for option in ("batch", "updates", "threads", "log_every", "checkpoint_every"):
        arguments += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    with tempfile.TemporaryDirectory() as directory:
        return in_process(arguments, options.threads, Path(directory))


def _in_turns(options: argparse.Namespace) -> dict[str, Any]:
    """``fit``, with its defaults but for one long epoch of larger batches, and the other in between."""
    from benchmarks.stopwatch import InTurns
    from toolagent_pl.cli import main as command_line

    command_line(
        [
            "fit",
            "--trainer.accelerator=cpu",
            "--trainer.max_epochs=1",
            f"--data.batches_per_epoch={WARMUP + options.updates + 1}",
            f"--data.batch_size={options.batch}",
            f"--trainer.log_every_n_steps={options.log_every}",
            f"--checkpoint.every_n_train_steps={options.checkpoint_every}",
            "--trainer.callbacks=benchmarks.stopwatch.InTurns",
            f"--trainer.callbacks.batch={options.batch}",
            f"--trainer.callbacks.warmup={WARMUP}",
            f"--trainer.callbacks.updates={options.updates}",
            f"--trainer.callbacks.turn={TURN}",
        ]
    )
    return InTurns.results[-1]


def _table(seconds: dict[str, list[float]]) -> Table:
    table = Table("", box=box.SIMPLE_HEAD, title="One training update", title_justify="left")
    for column in ("ms/update", "fastest-slowest"):
        table.add_column(column, justify="right")
    for name, label in LABELS.items():
        each = [one * 1e3 for one in seconds[name]]
        table.add_row(label, f"{statistics.median(each):.2f}", f"{min(each):.2f}-{max(each):.2f}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--batch", type=positive, default=1024, help="problems in an update")
    add("--updates", type=_turns, default=200, help=f"updates that are timed, a multiple of {TURN}")
    add("--log-every", type=positive, default=10, help="updates from one point of the curves to the next")
    add("--checkpoint-every", type=positive, default=50, help="updates from one checkpoint to the next")
    add("--repetitions", type=positive, default=5, help="processes")
    add("--patience", type=float, default=60.0, help="seconds to wait for an undisturbed repetition")
    add("--threads", type=positive, default=available_cpus(), help="CPUs to use")
    add("--output", type=Path, default=Path("overhead.json"), help="JSON to write")
    add("--only", action="store_true", help=argparse.SUPPRESS)  # the process that measures, and prints JSON
    return parser


def _turns(text: str) -> int:
    number = positive(text)
    if number % TURN:
        raise argparse.ArgumentTypeError(f"got {text}, expected a multiple of {TURN}")
    return number


if __name__ == "__main__":
    sys.exit(main())
