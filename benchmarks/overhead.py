"""What Lightning and logging cost: ``fit`` beside a bare loop of the same updates.

Run ``python -m benchmarks.overhead``. ``fit`` runs as it does from the command line, with its callbacks, TensorBoard
every 10 updates and a checkpoint every 50; validation and test come after what is timed. The loop has nothing but
the problems, the rollout, the reward, the loss, its gradient, clipping and Adam. Both end with the same weights.
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
CHECKPOINT_EVERY = 50
WANTED = 0.1
FIT, BARE = LOOPS = ("fit", "bare")
LABELS = {FIT: "fit, with logs and checkpoints", BARE: "a bare loop"}

Result = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status, 1 if the two did not do the same work."""
    options = _parser().parse_args(arguments)
    if options.only:
        use_cpus(options.threads)
        result = (_fit if options.only == FIT else _bare)(options.batch, options.updates)
        print(json.dumps(result))
        return 0
    console = wide_console()
    facts = environment()
    console.print(headline(facts))
    console.print(
        f"{options.threads} threads; medians of {options.repetitions} repetitions in turns, {options.updates} updates "
        f"of {options.batch:,} problems each"
    )
    results: dict[str, list[Result]] = {name: [] for name in LOOPS}
    for repetition in range(options.repetitions):
        for name in LOOPS if repetition % 2 else reversed(LOOPS):
            try:
                results[name].append(undisturbed(lambda name=name: _measured(name, options), options.patience))
            except MeasurementError as failure:
                console.print(f"{name} failed: {failure}", markup=False)
                return 1
    seconds = {name: statistics.median(one["seconds"] for one in results[name]) for name in LOOPS}
    overhead = seconds[FIT] / seconds[BARE] - 1
    same = len({one["weights"] for repetitions in results.values() for one in repetitions}) == 1
    console.print(_table(results, seconds))
    console.print(f"Lightning, logs and checkpoints cost {100 * overhead:.1f}% (wanted: less than {100 * WANTED:.0f}%)")
    if not same:
        console.print("[red]The two ended with different weights: they did not do the same work.[/]")
    warn_of_others(console, [one["others"] for repetitions in results.values() for one in repetitions])
    settings = {key: value for key, value in vars(options).items() if key not in ("only", "output")}
    document: dict[str, Any] = {**facts, "settings": settings, "overhead": overhead, "same_weights": same}
    document["results"] = {
        name: {
            "ms_per_update": seconds[name] * 1e3,
            "repetitions_ms": [one["seconds"] * 1e3 for one in results[name]],
            "others": [one["others"] for one in results[name]],
        }
        for name in LOOPS
    }
    write_json(options.output, document)
    console.print(f"written to {options.output}")
    return 0 if same else 1


def _measured(name: str, options: argparse.Namespace) -> Result:
    """One loop, in a process and a directory of its own."""
    arguments = ["-m", "benchmarks.overhead", "--only", name]
    for option in ("batch", "updates", "threads"):
        arguments += [f"--{option}", str(getattr(options, option))]
    with tempfile.TemporaryDirectory() as directory:
        return in_process(arguments, options.threads, Path(directory))


def _fit(batch: int, updates: int) -> Result:
    """``fit``, with its defaults but for one long epoch of larger batches."""
    from benchmarks.stopwatch import Stopwatch
    from toolagent_pl.cli import main as command_line

    command_line(
        [
            "fit",
            "--trainer.accelerator=cpu",
            "--trainer.max_epochs=1",
            f"--data.batches_per_epoch={WARMUP + updates + 1}",
            f"--data.batch_size={batch}",
            f"--checkpoint.every_n_train_steps={CHECKPOINT_EVERY}",
            "--trainer.callbacks=benchmarks.stopwatch.Stopwatch",
            f"--trainer.callbacks.warmup={WARMUP}",
            f"--trainer.callbacks.updates={updates}",
        ]
    )
    return Stopwatch.results[-1]


def _bare(batch: int, updates: int) -> Result:
    """The same updates on the same problems."""
    from benchmarks.bare import BareLoop
    from benchmarks.stopwatch import Reading
    from toolagent_pl.callbacks.agreement import checksum
    from toolagent_pl.process import keep_freed_memory

    keep_freed_memory()  # as the command line does
    loop = BareLoop(batch)
    for _ in range(WARMUP):
        loop.update()
    start = Reading.now()
    for _ in range(updates):
        loop.update()
    return start.until(Reading.now(), updates) | {"weights": int(checksum(loop.module))}


def _table(results: dict[str, list[Result]], seconds: dict[str, float]) -> Table:
    table = Table("", box=box.SIMPLE_HEAD, title="One training update", title_justify="left")
    for column in ("ms/update", "fastest-slowest", "overhead"):
        table.add_column(column, justify="right")
    for name in LOOPS:
        each = [one["seconds"] * 1e3 for one in results[name]]
        overhead = "" if name == BARE else f"{100 * (seconds[name] / seconds[BARE] - 1):.1f}%"
        table.add_row(LABELS[name], f"{seconds[name] * 1e3:.2f}", f"{min(each):.2f}-{max(each):.2f}", overhead)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--batch", type=positive, default=1024, help="problems in an update")
    add("--updates", type=positive, default=200, help="updates that are timed, in each repetition")
    add("--repetitions", type=positive, default=5, help="of each measurement")
    add("--patience", type=float, default=60.0, help="seconds to wait for an undisturbed repetition")
    add("--threads", type=positive, default=available_cpus(), help="CPUs to use")
    add("--output", type=Path, default=Path("overhead.json"), help="JSON to write")
    add("--only", choices=LOOPS, help=argparse.SUPPRESS)  # in a process of its own: measures, and prints JSON
    return parser


if __name__ == "__main__":
    sys.exit(main())
