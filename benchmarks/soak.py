"""Whether a long run grows: memory, open files, threads and speed of ``fit`` over time.

Run ``python -m benchmarks.soak --minutes 20``. It is the default run with all that it writes, but trained on T0 alone:
it never solves all stages, and never stops by itself. What follows ``--`` is handed on to ``fit``.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich import box
from rich.table import Table

from benchmarks.environment import child_environment, console, environment, headline, write_json
from benchmarks.fit_options import fit_parser

ENDLESS = ["--curriculum.stages=[0]", "--trainer.max_epochs=-1"]
MOST_GROWTH = 0.05  # of memory
EDGE = 0.2  # share of the samples that the first and the last value are medians of


class Sample(NamedTuple):
    """What the process holds at one time."""

    seconds: float
    resident_mb: float
    handles: int
    threads: int
    step: int


class Summary(NamedTuple):
    """First and last of what counts, after the warm-up."""

    first_mb: float
    last_mb: float
    growth: float
    first_handles: int
    last_handles: int
    first_threads: int
    last_threads: int
    first_steps_per_second: float
    last_steps_per_second: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write; returns the exit status, 0 if nothing grew."""
    options = _parser().parse_args(arguments)
    if options.minutes * 60 < options.warm_up + 10 * options.every:
        _parser().error(f"--minutes: got {options.minutes:g}, expected more than the warm-up of {options.warm_up:g} s")
    shown = console()
    facts = environment()
    shown.print(headline(facts))
    with tempfile.TemporaryDirectory() as directory:
        samples, failure = _soak(Path(directory), [*ENDLESS, *options.fit_options], options.minutes * 60, options.every)
        written_mb = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file()) / 2**20
    print(file=sys.stderr)
    if failure:
        shown.print(f"the run ended by itself: {failure}", markup=False)
        return 1
    summary = summarize(samples, options.warm_up)
    shown.print(_table(summary, samples[-1], written_mb))
    faults = grown(summary)
    for fault in faults:
        shown.print(f"[red]{fault}[/]")
    if options.output:
        document = {**facts, "fit_options": options.fit_options, "warm_up": options.warm_up, "written_mb": written_mb}
        document |= {"summary": summary._asdict(), "faults": faults, "samples": [s._asdict() for s in samples]}
        write_json(options.output, document)
        shown.print(f"written to {options.output}")
    return 1 if faults else 0


def _soak(directory: Path, options: Sequence[str], seconds: float, every: float) -> tuple[list[Sample], str]:
    """Samples of a run that is told to stop after some time, and its last lines if it did not wait for that."""
    command = [sys.executable, "-m", "toolagent_pl", "fit", *options]
    printed = directory / "printed"
    samples = []
    with printed.open("w") as file:
        process = subprocess.Popen(
            command, cwd=directory, env=child_environment(), stdout=file, stderr=subprocess.STDOUT
        )
        start = time.monotonic()
        try:
            while (passed := time.monotonic() - start) < seconds:
                if process.poll() is not None:
                    break
                step = _last_step(printed)
                if step:  # before the first there are only imports
                    samples.append(observe(process.pid, passed, step))
                    now = samples[-1]
                    print(f"\r{passed:,.0f} s, step {step:,}, {now.resident_mb:.1f} MB", end="", file=sys.stderr)
                time.sleep(every)
        finally:
            ended = process.poll() is not None
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return samples, " | ".join(printed.read_text().splitlines()[-5:]) if ended or len(samples) < 2 else ""


def observe(pid: int, seconds: float, step: int) -> Sample:
    """What a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(seconds, int(status["VmRSS"].split()[0]) / 2**10, handles, int(status["Threads"]), step)


def _last_step(printed: Path) -> int:
    with printed.open("rb") as file:
        file.seek(max(0, printed.stat().st_size - 2000))
        steps = re.findall(r"step (\d+):", file.read().decode(errors="replace"))
    return int(steps[-1]) if steps else 0


def summarize(samples: Sequence[Sample], warm_up: float) -> Summary:
    """Compare the first and the last samples after the warm-up; medians, since memory breathes.

    Raises:
        ValueError: If fewer than 4 samples came after it.
    """
    warm = [sample for sample in samples if sample.seconds >= warm_up]
    if len(warm) < 4:
        raise ValueError(f"minutes: got {len(warm)} samples after {warm_up:g} s of warm-up, expected at least 4")
    edge = max(2, int(len(warm) * EDGE))
    first, last = warm[:edge], warm[-edge:]
    megabytes = [statistics.median(sample.resident_mb for sample in part) for part in (first, last)]
    speed = [(part[-1].step - part[0].step) / (part[-1].seconds - part[0].seconds) for part in (first, last)]
    return Summary(
        *megabytes, megabytes[1] / megabytes[0] - 1,
        # The fewest: a handle that is open for a moment is not leaked, one that is leaked is there in each sample.
        min(s.handles for s in first), min(s.handles for s in last),
        min(s.threads for s in first), min(s.threads for s in last), *speed,
    )  # fmt: skip


def grown(summary: Summary) -> list[str]:
    """What grew."""
    faults = []
    if summary.growth > MOST_GROWTH:
        faults.append(f"memory grew by {summary.growth:.1%}, wanted at most {MOST_GROWTH:.0%}")
    if summary.last_handles > summary.first_handles:
        faults.append(f"open handles grew from {summary.first_handles} to {summary.last_handles}")
    if summary.last_threads > summary.first_threads:
        faults.append(f"threads grew from {summary.first_threads} to {summary.last_threads}")
    return faults


def _table(summary: Summary, last: Sample, written_mb: float) -> Table:
    title = f"{last.seconds / 60:.1f} minutes, {last.step:,} updates, {written_mb:.1f} MB written"
    table = Table("after the warm-up", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("first", justify="right")
    table.add_column("last", justify="right")
    table.add_column("growth", justify="right")
    rows = [
        ("resident memory, MB", summary.first_mb, summary.last_mb),
        ("open handles", summary.first_handles, summary.last_handles),
        ("threads", summary.first_threads, summary.last_threads),
        ("updates a second", summary.first_steps_per_second, summary.last_steps_per_second),
    ]
    for name, before, after in rows:
        shown = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in (before, after)]
        table.add_row(name, *shown, f"{after / before - 1:+.2%}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = fit_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long")
    parser.add_argument("--warm-up", type=float, default=120.0, help="seconds at the start that do not count")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two samples")
    parser.add_argument("--output", type=Path, help="JSON to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
