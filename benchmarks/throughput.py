"""Throughput of one training update of this project beside other implementations of the same update.

Run ``python -m benchmarks.throughput``. ``benchmarks/contestants/contestant.py`` says what one update is. Tokens are
the actions chosen, 6 for each problem. Measurements run one after the other, each in a fresh process. With ``--check``
losses, gradients and rewards of the contestants are compared instead.
"""

import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import LABELS, make, reason_to_skip
from benchmarks.environment import arguments_of, available_cpus, run_python, started, warn_of_others, write_json

STAGES = ("T0", "T1", "T2")
OURS = "this_project"
REFERENCE = "two_pass"
SLICES = 8  # of a measurement; whoever may compute ahead is waited for after each
TOLERANCE = 1e-4
EPISODES = 256  # that losses are compared on
SAMPLES = 16  # of so many episodes, whose mean rewards are compared
TOOL_BIAS = 2.5  # added to the logits of tools, so that untrained agents get rewards now and then


def measure(name: str, batch: int, stage: int, d: int, seconds: float) -> dict[str, float]:
    """Seconds of an update, and tokens a second, in this process."""
    contestant = make(name, batch, stage, 0, d)
    float(contestant.update())  # compiles, or allocates
    start = time.perf_counter()
    float(contestant.update())
    each = max(1, int(seconds / SLICES / (time.perf_counter() - start)))
    before, updates, start = float(contestant.actions), 0, time.perf_counter()
    while not updates or time.perf_counter() - start < seconds:
        for _ in range(each):
            loss = contestant.update()
        float(loss)
        updates += each
    elapsed = time.perf_counter() - start
    return {"seconds": elapsed / updates, "tokens_per_second": (float(contestant.actions) - before) / elapsed}


def check(console: Console, names: Sequence[str], stages: Sequence[int], d: int) -> bool:
    """Print for each stage and contestant how far it is from plain PyTorch; whether all are near enough.

    Losses and gradients are compared on given actions, and the mean rewards of actions that they draw themselves.
    """
    from benchmarks.contestants.contestant import ACTIONS, MUL, OPERANDS, RCL, VOCABULARY, initial_weights

    good, random = True, np.random.default_rng(0)
    weights = initial_weights(d, 0)
    weights["policy_bias"][MUL : RCL + 1] += TOOL_BIAS
    for stage in stages:
        operands = random.integers(0, 10, (EPISODES, OPERANDS))
        actions = random.integers(0, VOCABULARY, (EPISODES, ACTIONS))
        actions = np.where(random.random(actions.shape) < 0.8, random.integers(MUL, RCL + 1, actions.shape), actions)
        compared: dict[str, tuple[Any, ...]] = {}
        for name in [REFERENCE, *(name for name in names if name not in (REFERENCE, "reader"))]:
            if reason := reason_to_skip(name):
                console.print(f"{name}: not checked, {reason}")
                continue
            contestant = make(name, EPISODES, stage, len(compared), d)
            contestant.load(weights)
            loss, gradients = contestant.loss_and_gradients(operands, actions)
            draws = random.integers(0, 10, (SAMPLES, EPISODES, OPERANDS))
            rewards = [contestant.mean_reward(draw) for draw in draws]
            compared[name] = loss, gradients, np.mean(rewards), np.std(rewards, ddof=1) / SAMPLES**0.5
            expected = compared[REFERENCE]
            off = max(float(np.abs(gradients[part] - expected[1][part]).max()) for part in weights)
            reward_off = abs(compared[name][2] - expected[2]) / np.hypot(compared[name][3], expected[3])
            agrees = abs(loss - expected[0]) <= TOLERANCE and off <= TOLERANCE and reward_off <= 5
            good &= bool(agrees)
            console.print(
                f"{STAGES[stage]} {name:13} loss {loss:8.5f} (off by {abs(loss - expected[0]):.0e}), gradient off by "
                f"{off:.0e}, reward {compared[name][2]:.4f} ({reward_off:.1f} standard errors off): "
                f"{'agrees' if agrees else 'DIFFERS'}"
            )
    return good


def side_by_side(console: Console, options: Namespace, stage: int, batch: int) -> list[dict[str, Any]]:
    """Measure all contestants in turns."""
    results: dict[str, list[dict[str, float]]] = {}
    for repetition in range(options.repetitions):
        for name in options.contestants:
            if reason := reason_to_skip(name):
                if not repetition:
                    console.print(f"skipped {name} at batch {batch}: {reason}")
                continue
            work = json.dumps([name, batch, stage, options.d, options.seconds])
            with tempfile.TemporaryDirectory() as directory:
                arguments = ["-m", "benchmarks.throughput", "--only", work]
                done = run_python(arguments, Path(directory), options.patience, options.threads)
            if done.error:
                console.print(f"{name} failed at batch {batch}: {done.error}", markup=False)
                continue
            result = json.loads(done.printed.splitlines()[-1]) | {"peak_mb": done.peak_mb, "others": done.others}
            results.setdefault(name, []).append(result)
    rows = []
    for name, found in results.items():
        medians = {key: statistics.median(result[key] for result in found) for key in found[0]}
        rows.append({"contestant": name, "stage": STAGES[stage], "batch": batch, **medians, "repetitions": found})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.only:
        print(json.dumps(measure(*json.loads(options.only))))
        return 0
    console, facts = started()
    stages = [STAGES.index(stage) for stage in options.stage]
    if options.check:
        return 0 if check(console, options.contestants, stages, options.d) else 1
    settings = {key: value for key, value in vars(options).items() if key not in ("check", "output", "only")}
    rows: list[dict[str, Any]] = []
    for stage in stages:
        for batch in options.batch:
            rows += side_by_side(console, options, stage, batch)
            write_json(console, options.output, {**facts, "settings": settings, "results": rows}, last=False)
        console.print(_table([row for row in rows if row["stage"] == STAGES[stage]], STAGES[stage]))
    warn_of_others(console, [result["others"] for row in rows for result in row["repetitions"]])
    console.print(f"written to {options.output}")
    return 0 if rows else 1


def _table(rows: list[dict[str, Any]], stage: str) -> Table:
    table = Table("batch", "", box=box.SIMPLE_HEAD, title=f"One training update on {stage}", title_justify="left")
    for column in ("tokens/s", "slowest-fastest", "problems/s", "ms/update", "peak MB", "blind agent is faster"):
        table.add_column(column, justify="right")
    ours = {row["batch"]: row["tokens_per_second"] for row in rows if row["contestant"] == OURS}
    for row in rows:
        batch, tokens = row["batch"], [result["tokens_per_second"] for result in row["repetitions"]]
        compared = batch in ours and row["contestant"] not in (OURS, "reader")
        table.add_row(
            f"{batch:,}",
            LABELS[row["contestant"]],
            f"{row['tokens_per_second']:,.0f}",
            f"{min(tokens):,.0f}-{max(tokens):,.0f}",
            f"{batch / row['seconds']:,.0f}",
            f"{row['seconds'] * 1e3:,.2f}",
            f"{row['peak_mb']:,.0f}",
            f"{ours[batch] / row['tokens_per_second']:.2f} x" if compared else "",
        )
    return table


def _parser() -> Any:
    parser = arguments_of(__doc__, "throughput.json")
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[192, 1024, 4096, 16384], help="problems in an update")
    add("--stage", choices=STAGES, nargs="+", default=["T2"], help="stages to draw them from, one after the other")
    add("--d", type=int, default=96, help="width of the network")
    add("--repetitions", type=int, default=5, help="of each measurement")
    add("--seconds", type=float, default=2.0, help="of each repetition, at least one update")
    add("--threads", type=int, default=available_cpus(), help="CPUs that a contestant may use")
    add("--contestants", choices=LABELS, nargs="+", default=list(LABELS), metavar="NAME", help="who takes part")
    add("--check", action="store_true", help="only check that all do the same work")
    add("--only", help="what to measure in this process, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
