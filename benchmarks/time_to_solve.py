"""How long the command line takes, from its start to its end, to solve all problems of a configuration.

Run ``python -m benchmarks.time_to_solve --config configs/stages.yaml``. It runs ``python -m toolagent_pl fit
--seed_everything k`` for each seed, one after the other, each in an empty directory, and reads what TensorBoard got.
What follows ``--`` is handed on to ``fit``.
"""

import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from benchmarks.environment import arguments_of, run_python, started, warn_of_others, write_json

SOLVED = "hp/solved"
SUMMARIZED = ("seconds", "cpu_seconds", "peak_mb", "batches", "tokens")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write; returns the exit status, 0 if all runs solved all problems."""
    options = _parser().parse_args(arguments)
    console, facts = started()
    fit_options = [f"--config={options.config.resolve()}"] if options.config else []
    fit_options += options.fit_options
    runs: list[dict[str, Any]] = []
    document: dict[str, Any] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as directory:
            command = ["-m", "toolagent_pl", "fit", *fit_options, f"--seed_everything={seed}"]
            done = run_python(command, Path(directory), options.patience)
            spent = {key: value for key, value in done._asdict().items() if key != "printed"}
            runs.append({"seed": seed, **spent, **read_run(Path(directory) / "lightning_logs")})
        failed = f", failed: {done.error}" if done.error else ""
        console.print(f"seed {seed}: {done.seconds:.1f} s, solved {runs[-1]['solved']:.3%}{failed}", markup=False)
        document = {**facts, "fit_options": fit_options, **summary(runs), "runs": runs}
        write_json(console, options.output, document, last=False)
    console.print(_table(runs))
    warn_of_others(console, [run["others"] for run in runs])
    console.print(f"written to {options.output}")
    return 0 if document["solved_runs"] == len(runs) else 1


def read_run(logs: Path) -> dict[str, Any]:
    """What a run came to, from the points in its event files.

    ``tokens`` are the actions that training took, from the lengths of episodes where they were logged; ``solved`` is
    the share of the problems of those stages that are trained on; accuracy and plan length, over that of the reference
    plan, are those of the test, by stage.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result: dict[str, Any] = {"batches": None, "tokens": None, "solved": 0.0}
    run = next(logs.glob("version_*"), None)
    if run is None:
        return result
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    for name in names:
        if name.startswith("test/") and name.endswith(("_accuracy", "_plan_length")):
            value = events.Scalars(name)[-1].value
            result[name.removeprefix("test/")] = None if math.isnan(value) else value
    if SOLVED in names and any(name.startswith("test/") for name in names):
        solved = events.Scalars(SOLVED)[-1]
        result |= {"batches": solved.step, "solved": solved.value}
        config = yaml.safe_load((run / "config.yaml").read_text())
        samples = config["model"]["algorithm"].get("init_args", {}).get("samples_per_problem", 1)
        if "train/episode_length" in names:
            length = statistics.mean(point.value for point in events.Scalars("train/episode_length"))
            result["tokens"] = round(length * samples * config["data"]["batch_size"] * solved.step)
    return result


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst of what was measured; of accuracies the least, of all else the most."""
    found: dict[str, Any] = {"solved_runs": sum(run["solved"] == 1 for run in runs)}
    stages = {key for run in runs for key in run if key.endswith(("_accuracy", "_plan_length"))}
    for key in (*SUMMARIZED, *sorted(stages)):
        values = [run[key] for run in runs if run.get(key) is not None]
        worst = min if key.endswith("_accuracy") else max
        found[key] = {"median": statistics.median(values), "worst": worst(values)} if values else None
    return found


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    title = "From the start of the process to its end; accuracy and plan length, over the reference plan's, at the test"
    everything = summary(runs)
    table = Table("", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for head in (*(f"seed {run['seed']}" for run in runs), "median", "worst"):
        table.add_column(head, justify="right")
    del everything["solved_runs"]
    for key, ends in everything.items():
        ends = ends or {}
        values = [*(run.get(key) for run in runs), ends.get("median"), ends.get("worst")]
        if key.endswith("_accuracy"):  # rounded down: 100% means all of them
            values = [None if value is None else math.floor(value * 1e5) / 1e5 for value in values]
        form = "{:.3%}" if key.endswith("_accuracy") else "{:,.3f}" if key.endswith("_length") else "{:,.1f}"
        table.add_row(key, *("?" if value is None else form.format(value) for value in values))
    return table


def _parser() -> Any:
    parser = arguments_of(__doc__, "time_to_solve.json")
    parser.add_argument("--config", type=Path, help="configuration; the default run without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="seeds to run with")
    parser.add_argument("fit_options", nargs="*", metavar="-- options of fit", help="handed on to fit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
