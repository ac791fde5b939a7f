"""Tokens/s of this project against the size of the batch and the width of the network, on each stage.

Run ``python -m benchmarks.scaling``. It writes JSON and, where matplotlib is installed, a plot.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.contestants.contestant import flop_per_token
from benchmarks.environment import available_cpus, environment, headline, warn_of_others, write_json
from benchmarks.environment import console as wide_console
from benchmarks.measure import GEMMS, MeasurementError, Work, fastest_gemm, measured
from benchmarks.throughput import OURS, STAGES, Row, positive, summary

Point = tuple[int, int, str]  # batch, d, stage


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = wide_console()
    facts = environment()
    console.print(headline(facts))
    console.print(f"{options.threads} threads; medians of {options.repetitions} repetitions of {options.seconds:g} s")
    base_d, base_batch = options.base_d, options.base_batch
    points = [(batch, base_d, stage) for stage in options.stage for batch in options.batch]
    points += [(base_batch, d, stage) for stage in options.stage for d in options.d]
    rows, gflops = _measure(console, options, list(dict.fromkeys(points)))
    for row in rows:
        row["share_of_limit"] = row["tokens_per_second"] * flop_per_token(row["d"]) / 1e9 / gflops
    console.print(_table(rows, gflops))
    warn_of_others(console, [share for row in rows for share in row["others"]])
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "plot")}
    document = {**facts, "settings": settings, "gemm_gflops": gflops, "results": rows}
    write_json(options.output, document)
    console.print(f"written to {options.output}")
    if options.plot:
        _plot(console, options, document)
    return 0


def _measure(
    console: Console, options: argparse.Namespace, points: list[tuple[int, int, str]]
) -> tuple[list[Row], float]:
    """All points once, then all of them again, so that a slow minute does not hit one of them alone."""
    results: dict[Point, list[dict[str, float]]] = {point: [] for point in points}
    products: dict[str, list[dict[str, float]]] = {name: [] for name in GEMMS}
    for repetition in range(options.repetitions):
        for name in [*products]:
            try:
                work = Work(name, 0, 0, 0, options.threads, options.seconds)
                products[name].append(measured(work, options.patience))
            except MeasurementError as failure:
                console.print(f"skipped {name}: {failure}", markup=False)
                del products[name]
        for batch, d, stage in list(results):
            work = Work(OURS, batch, STAGES.index(stage), d, options.threads, options.seconds, seed=repetition)
            try:
                results[batch, d, stage].append(measured(work, options.patience))
            except MeasurementError as failure:
                console.print(f"skipped batch {batch}, d {d}, {stage}: {failure}", markup=False)
                del results[batch, d, stage]
    rows = [
        {**summary(OURS, STAGES.index(stage), batch, repetitions), "d": d}
        for (batch, d, stage), repetitions in results.items()
    ]
    return rows, fastest_gemm(products)["gflops"]


def _table(rows: list[Row], gflops: float) -> Table:
    title = f"This project beside {gflops:.1f} GFLOP/s of a large matrix product"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("stage")
    for column in ("batch", "d", "tokens/s", "slowest-fastest", "ms/update", "peak MB", "of the limit"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["stage"],
            f"{row['batch']:,}",
            f"{row['d']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{min(row['repetitions']):,.0f}-{max(row['repetitions']):,.0f}",
            f"{row['ms_per_update']:,.2f}",
            f"{row['peak_mb']:,.0f}",
            f"{100 * row['share_of_limit']:.1f}%",
        )
    return table


def _plot(console: Console, options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Two panels: against the batch, and against the width, each with the limit."""
    try:
        import matplotlib
    except ImportError:
        console.print("no plot: matplotlib is not installed (it comes with the extra 'bench')")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    rows, gflops, settings = document["results"], document["gemm_gflops"], document["settings"]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    panels = (("batch", "d", settings["base_d"]), ("d", "batch", settings["base_batch"]))
    for axis, (swept, fixed, value) in zip(axes, panels, strict=True):
        for marker, stage in zip("osD", settings["stage"], strict=False):
            shown = [
                row for row in rows if row["stage"] == stage and row[fixed] == value and row[swept] in settings[swept]
            ]
            shown.sort(key=lambda row: row[swept])
            sizes = [row[swept] for row in shown]
            axis.plot(sizes, [row["tokens_per_second"] for row in shown], marker=marker, markersize=4, label=stage)
        widths = [row if swept == "d" else value for row in sorted(settings[swept])]
        limits = [gflops * 1e9 / flop_per_token(width) for width in widths]
        axis.plot(sorted(settings[swept]), limits, color="grey", linestyle="--", label="matrix product")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(settings[swept], [f"{size:,}" for size in settings[swept]], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel({"batch": "problems in an update", "d": "width d"}[swept] + f" ({fixed} = {value})")
        axis.grid(alpha=0.3, which="both")
    axes[0].yaxis.set_major_formatter("{x:,.0f}")
    axes[0].set_ylabel("tokens/s")
    axes[1].legend()
    machine = document["machine"]
    figure.suptitle(f"{machine['cpu']}, {settings['threads']} threads", fontsize=10)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plot, dpi=120)
    console.print(f"plotted to {options.plot}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--batch", type=positive, nargs="+", default=[4**i for i in range(3, 8)], help="sizes of the batch")
    add("--d", type=positive, nargs="+", default=[64, 96, 128, 256, 512, 1024], help="widths of the network")
    add("--base-batch", type=positive, default=1024, help="batch while the width varies")
    add("--base-d", type=positive, default=96, help="width while the batch varies")
    add("--stage", choices=STAGES, nargs="+", default=list(STAGES), help="stages")
    add("--repetitions", type=positive, default=3, help="of each measurement")
    add("--seconds", type=float, default=2.0, help="of each repetition, at least one update")
    add("--patience", type=float, default=60.0, help="seconds to wait for an undisturbed repetition")
    add("--threads", type=positive, default=available_cpus(), help="CPUs to use")
    add("--output", type=Path, default=Path("scaling.json"), help="JSON to write")
    add("--plot", type=Path, help="PNG to write, for example docs/scaling.png")
    return parser


if __name__ == "__main__":
    sys.exit(main())
