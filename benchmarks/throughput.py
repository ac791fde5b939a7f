"""Throughput of one training update of this project beside other implementations of the same update.

Run ``python -m benchmarks.throughput``. ``benchmarks/contestants/contestant.py`` says what one update is. Tokens are
the actions chosen, 6 for each problem.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import LABELS, reason_to_skip
from benchmarks.contestants.contestant import ACTIONS, FLOP_FORMULA, flop_per_token
from benchmarks.environment import available_cpus, environment, headline, warn_of_others, write_json
from benchmarks.environment import console as wide_console
from benchmarks.measure import GEMM_SIZE, GEMMS, MeasurementError, Work, fastest_gemm, measured

STAGES = ("T0", "T1", "T2")
OURS = "this_project"
LIMIT = "limit"

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = wide_console()
    stages = [STAGES.index(stage) for stage in options.stage]
    if options.check:
        from benchmarks.check import check  # loads all libraries, which measurements do in processes of their own

        return 0 if check(console, options.contestants, stages, options.d) else 1
    facts = environment()
    settings = {key: value for key, value in vars(options).items() if key not in ("check", "output")}
    console.print(headline(facts))
    console.print(
        f"{options.threads} threads; medians of {options.repetitions} interleaved repetitions of {options.seconds:g} s"
    )
    rows: list[Row] = []
    for stage in stages:
        for batch in options.batch:
            rows += side_by_side(console, options, stage, batch)
            _write(options.output, {**facts, "settings": settings, "flop_per_token": flop_per_token(options.d)}, rows)
        console.print(_table([row for row in rows if row["stage"] == STAGES[stage]], stage))
    console.print(FLOP_FORMULA)
    console.print(
        f"   = {flop_per_token(options.d):,} with d = {options.d}; the limit is the GFLOP/s of a product of two "
        f"float32 matrices\nof {GEMM_SIZE} x {GEMM_SIZE}, by the faster of PyTorch's two libraries, divided by that"
    )
    warn_of_others(console, [share for row in rows for share in row["others"]])
    if options.output:
        console.print(f"written to {options.output}")
    return 0


def side_by_side(console: Console, options: argparse.Namespace, stage: int, batch: int) -> list[Row]:
    """Measure all contestants, and the matrix product, in turns."""
    names = []
    for name in options.contestants:
        if reason := reason_to_skip(name, batch):
            console.print(f"skipped {name} at batch {batch}: {reason}")
        else:
            names.append(name)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in [*names, *GEMMS]}
    for repetition in range(options.repetitions):
        for name in [*results]:
            work = Work(name, batch, stage, options.d, options.threads, options.seconds, seed=repetition)
            try:
                results[name].append(measured(work, options.patience))
            except MeasurementError as failure:
                console.print(f"skipped {name} at batch {batch}: {failure}", markup=False)
                del results[name]
    products = {name: results.pop(name) for name in GEMMS if name in results}
    rows = [summary(name, stage, batch, repetitions) for name, repetitions in results.items()]
    limit = fastest_gemm(products)
    limit["tokens_per_second"] = limit["gflops"] * 1e9 / flop_per_token(options.d)
    for row in rows:
        row["share_of_limit"] = row["tokens_per_second"] / limit["tokens_per_second"]
    others = [result["others"] for repetitions in products.values() for result in repetitions]
    return [*rows, {"contestant": LIMIT, "stage": STAGES[stage], "batch": batch, **limit, "others": others}]


def summary(name: str, stage: int, batch: int, repetitions: list[dict[str, float]]) -> Row:
    """Medians of repetitions."""
    seconds = statistics.median(result["seconds"] for result in repetitions)
    return {
        "contestant": name,
        "stage": STAGES[stage],
        "batch": batch,
        "tokens_per_second": batch * ACTIONS / seconds,
        "problems_per_second": batch / seconds,
        "ms_per_update": seconds * 1e3,
        "peak_mb": statistics.median(result["peak_mb"] for result in repetitions),
        "repetitions": [batch * ACTIONS / result["seconds"] for result in repetitions],
        "others": [result["others"] for result in repetitions],
    }


def _table(rows: list[Row], stage: int) -> Table:
    table = Table(
        "batch", "", box=box.SIMPLE_HEAD, title=f"One training update on {STAGES[stage]}", title_justify="left"
    )
    table.columns[0].justify = "right"
    for column in ("tokens/s", "slowest-fastest", "problems/s", "ms/update", "peak MB", "of the limit", OURS):
        table.add_column(column.replace(OURS, "this project"), justify="right")
    ours = {row["batch"]: row["tokens_per_second"] for row in rows if row["contestant"] == OURS}
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        batch, tokens = row["batch"], row["tokens_per_second"]
        if row["contestant"] == LIMIT:
            cells = [f"{row['gflops']:,.0f} GFLOP/s", f"{tokens:,.0f}", "", f"{tokens / ACTIONS:,.0f}"]
            cells += ["", "", "100%", ""]
        else:
            cells = [
                LABELS[row["contestant"]],
                f"{tokens:,.0f}",
                f"{min(row['repetitions']):,.0f}-{max(row['repetitions']):,.0f}",
                f"{row['problems_per_second']:,.0f}",
                f"{row['ms_per_update']:,.2f}",
                f"{row['peak_mb']:,.0f}",
                f"{100 * row['share_of_limit']:.1f}%",
                f"{ours[batch] / tokens:.2f} x" if batch in ours and row["contestant"] != OURS else "",
            ]
        last = following is None or following["batch"] != batch
        table.add_row(f"{batch:,}", *cells, end_section=last)
    return table


def _write(path: Path | None, document: dict[str, Any], rows: list[Row]) -> None:
    """Write what there is; called again and again, so that an interrupted run leaves something."""
    if path:
        write_json(path, {**document, "results": rows})


def positive(text: str) -> int:
    """A positive whole number, for options."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--batch", type=positive, nargs="+", default=[192, 1024, 4096, 16384], help="problems in an update")
    add("--stage", choices=STAGES, nargs="+", default=["T2"], help="stages to draw them from, one after the other")
    add("--d", type=positive, default=96, help="width of the network")
    add("--repetitions", type=positive, default=5, help="of each measurement")
    add("--seconds", type=float, default=2.0, help="of each repetition, at least one update")
    add("--patience", type=float, default=60.0, help="seconds to wait for an undisturbed repetition")
    add("--threads", type=positive, default=available_cpus(), help="CPUs that a contestant may use")
    add("--contestants", choices=LABELS, nargs="+", default=list(LABELS), metavar="NAME", help="who takes part")
    add("--output", type=Path, default=Path("throughput.json"), help="JSON to write")
    add("--check", action="store_true", help="only check that losses and gradients agree")
    return parser


if __name__ == "__main__":
    sys.exit(main())
