"""Throughput of one training update of the default run, beside the same update in JAX and its matrix products alone.

Run ``python -m benchmarks.throughput``. ``benchmarks/contestants/__init__.py`` says what one update is. Tokens are the
actions taken. Measurements run one after the other on one CPU, each in a fresh process, and count the CPU's time: what
else a machine does then changes little.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import LABELS, make, reason_to_skip
from benchmarks.environment import arguments_of, run_python, started, warn_of_others, write_json

OURS, LIMIT = "reader", "products"
SLICES = 8  # of a measurement; whoever may compute ahead is waited for after each


def measure(name: str, batch: int, stage: str, width: int, seconds: float) -> dict[str, float]:
    """CPU seconds of an update, and tokens in a CPU second, in this process."""
    if hasattr(os, "sched_setaffinity"):  # else XLA takes as many threads as there are CPUs, whatever it is told
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    contestant = make(name, batch, stage, width)
    float(contestant.update())  # compiles, or allocates
    start = time.process_time()
    float(contestant.update())
    each = max(1, int(seconds / SLICES / (time.process_time() - start)))
    before, updates, start = float(contestant.actions), 0, time.process_time()
    while not updates or time.process_time() - start < seconds:
        for _ in range(each):
            result = contestant.update()
        float(result)
        updates += each
    elapsed = time.process_time() - start
    tokens = float(contestant.actions) - before
    return {"seconds": elapsed / updates, "tokens": tokens / updates, "tokens_per_second": tokens / elapsed}


def side_by_side(console: Console, options: Namespace, batch: int) -> list[dict[str, Any]]:
    """Measure all contestants in turns."""
    results: dict[str, list[dict[str, float]]] = {}
    for repetition in range(options.repetitions):
        for name in options.contestants:
            if reason := reason_to_skip(name):
                if not repetition:
                    console.print(f"skipped {name} at batch {batch}: {reason}")
                continue
            work = json.dumps([name, batch, options.stage, options.width, options.seconds])
            with tempfile.TemporaryDirectory() as directory:
                arguments = ["-m", "benchmarks.throughput", "--only", work]
                done = run_python(arguments, Path(directory), options.patience, threads=1)
            if done.error:
                console.print(f"{name} failed at batch {batch}: {done.error}", markup=False)
                continue
            result = json.loads(done.printed.splitlines()[-1]) | {"peak_mb": done.peak_mb, "others": done.others}
            results.setdefault(name, []).append(result)
    rows = []
    for name, found in results.items():
        medians = {key: statistics.median(result[key] for result in found) for key in found[0]}
        rows.append({"contestant": name, "batch": batch, **medians, "repetitions": found})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.only:
        print(json.dumps(measure(*json.loads(options.only))))
        return 0
    console, facts = started()
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "only")}
    rows: list[dict[str, Any]] = []
    for batch in options.batch:
        rows += side_by_side(console, options, batch)
        write_json(console, options.output, {**facts, "settings": settings, "results": rows}, last=False)
    console.print(_table(rows, options.stage))
    warn_of_others(console, [result["others"] for row in rows for result in row["repetitions"]])
    console.print(f"written to {options.output}")
    return 0 if rows else 1


def _table(rows: list[dict[str, Any]], stage: str) -> Table:
    table = Table("batch", "", box=box.SIMPLE_HEAD, title=f"One training update on {stage}", title_justify="left")
    for column in ("tokens a CPU second", "slowest-fastest", "ms/update", "tokens/update", "peak MB", "of the limit"):
        table.add_column(column, justify="right")
    limits = {row["batch"]: row["tokens_per_second"] for row in rows if row["contestant"] == LIMIT}
    for row in rows:
        tokens = [result["tokens_per_second"] for result in row["repetitions"]]
        limit = limits.get(row["batch"])
        table.add_row(
            f"{row['batch']:,}",
            LABELS[row["contestant"]],
            f"{row['tokens_per_second']:,.0f}",
            f"{min(tokens):,.0f}-{max(tokens):,.0f}",
            f"{row['seconds'] * 1e3:,.1f}",
            f"{row['tokens']:,.0f}",
            f"{row['peak_mb']:,.0f}",
            f"{row['tokens_per_second'] / limit:.0%}" if limit else "",
        )
    return table


def _parser() -> Any:
    parser = arguments_of(__doc__, "throughput.json")
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[256, 1024, 4096, 16384], help="problems in an update")
    add("--stage", default="E5", help="stage to draw them from")
    add("--width", type=int, default=64, help="of the decoder")
    add("--repetitions", type=int, default=5, help="of each measurement")
    add("--seconds", type=float, default=2.0, help="of each repetition, at least one update")
    add("--contestants", choices=LABELS, nargs="+", default=list(LABELS), metavar="NAME", help="who takes part")
    add("--only", help="what to measure in this process, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
