"""How long the command line takes, from its start to its end, to solve all problems with its default settings.

Run ``python -m benchmarks.time_to_solve``. It runs ``python -m toolagent_pl fit --seed_everything k`` for each seed,
one after the other, each in an empty directory. What follows ``--`` is handed on to ``fit``.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich import box
from rich.table import Table

from benchmarks.environment import (
    busy_cpu_seconds,
    child_environment,
    environment,
    headline,
    wait_until_quiet,
    warn_of_others,
    write_json,
)
from benchmarks.environment import console as wide_console
from benchmarks.fit_options import seeds_parser

STAGES = ("T0", "T1", "T2")
LAST_LINES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write; returns the exit status, 0 if all runs solved all problems."""
    options = _parser().parse_args(arguments)
    console = wide_console()
    facts = environment()
    console.print(headline(facts))
    runs = []
    for seed in options.seeds:
        wait_until_quiet(time.monotonic() + options.patience)
        runs.append(_run(seed, options.fit_options))
        failed = f" failed: {runs[-1]['error']}" if runs[-1]["error"] else ""
        console.print(f"seed {seed}: {runs[-1]['seconds']:.2f} s{failed}", markup=False)
        document = {**facts, "fit_options": options.fit_options, **_summary(runs), "runs": runs}
        write_json(options.output, document)
    console.print(_table(runs))
    warn_of_others(console, [run["others"] for run in runs])
    console.print(f"written to {options.output}")
    return 0 if document["solved"] == len(runs) else 1


def _run(seed: int, fit_options: Sequence[str]) -> dict[str, Any]:
    """One run, in a process and a directory of its own."""
    command = [sys.executable, "-m", "toolagent_pl", "fit", "--seed_everything", str(seed), *fit_options]
    with tempfile.TemporaryDirectory() as directory, open(os.path.join(directory, "printed"), "w+") as printed:
        busy, start = busy_cpu_seconds(), time.perf_counter()
        process = subprocess.Popen(
            command, cwd=directory, env=child_environment(), stdout=printed, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds, busy_now = time.perf_counter() - start, busy_cpu_seconds()
        process.returncode = os.waitstatus_to_exitcode(status)  # it is gone: nothing is left for Popen to wait for
        printed.seek(0)
        text = printed.read()
    own = usage.ru_utime + usage.ru_stime
    others = 0.0 if busy is None or busy_now is None else max(0.0, (busy_now - busy - own) / seconds)
    accuracies = {stage: _accuracy(stage, text) for stage in STAGES}
    updates = re.search(r"solved after (\d+) updates", text)
    return {
        "seed": seed,
        "seconds": seconds,
        "cpu_seconds": own,
        "others": others,
        "peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        "updates": int(updates[1]) if updates else None,
        "accuracy": accuracies,
        "solved": all(accuracy == 1 for accuracy in accuracies.values()),
        "error": " | ".join(text.strip().splitlines()[-LAST_LINES:]) if process.returncode else None,
    }


def _accuracy(stage: str, text: str) -> float | None:
    """Share of right answers, from the counts in the table that ``fit`` prints at its end."""
    counts = re.findall(rf"^\s*{stage}\s+([\d,]+)\s+([\d,]+)\s+[\d.]+%", text, re.MULTILINE)
    if not counts:
        return None
    problems, right = (int(number.replace(",", "")) for number in counts[-1])
    return right / problems


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "median_seconds": statistics.median(run["seconds"] for run in runs),
        "median_peak_mb": statistics.median(run["peak_mb"] for run in runs),
        "solved": sum(run["solved"] for run in runs),
    }


def _table(runs: list[dict[str, Any]]) -> Table:
    title = "From the start of the process to its end"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", show_footer=True)
    summary = _summary(runs)
    table.add_column("seed", "median", justify="right")
    table.add_column("seconds", f"{summary['median_seconds']:.2f}", justify="right")
    table.add_column("CPU seconds", f"{statistics.median(run['cpu_seconds'] for run in runs):.2f}", justify="right")
    table.add_column("peak MB", f"{summary['median_peak_mb']:,.0f}", justify="right")
    updates = [run["updates"] for run in runs if run["updates"]]
    table.add_column("updates", f"{statistics.median(updates):g}" if updates else "", justify="right")
    for stage in STAGES:
        solved = sum(run["accuracy"][stage] == 1 for run in runs)
        table.add_column(stage, f"{solved} of {len(runs)} solved", justify="right")
    for run in runs:
        table.add_row(
            str(run["seed"]),
            f"{run['seconds']:.2f}",
            f"{run['cpu_seconds']:.2f}",
            f"{run['peak_mb']:,.0f}",
            str(run["updates"] or "not solved"),
            *("?" if accuracy is None else f"{100 * accuracy:.3f}%" for accuracy in run["accuracy"].values()),
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = seeds_parser(__doc__, 10)
    parser.add_argument("--output", type=Path, default=Path("time_to_solve.json"), help="JSON to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
