"""Algorithms side by side, and what reward, feedback, curriculum and exploration do to each of them.

Run ``python -m benchmarks.compare`` (needs ``pip install -e '.[bench]'``). The reader learns all expressions of one to
three operators. Every algorithm is trained as it is and with one thing changed at a time, with each seed, for so many
tokens (actions), or until it has 99% of each stage at three validations in a row, which is then taken to last. All
algorithms learn from 512 episodes an update. Each finished run is a line of ``--output``: what is there is not run
again. What follows ``--`` is handed on to ``fit``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.environment import DOCUMENT, arguments_of, available_cpus, run_grid, started
from benchmarks.learning_curve import learning_curves
from benchmarks.statistics import Interval, Strata, bootstrap_interval, probability_of_improvement

SOLVED, CALLBACK = 0.99, "benchmarks.learning_curve.LearningCurve"
BASE, REFERENCE = "as it is", "PPO"
POINTS = 40  # of a curve in the figure
COMMON = [
    "--env.stages=[E1,E2,E3]", "--env.unseen=[]", "--data.val_problems=1000", "--data.test_problems=1",
    "--curriculum.stages=[E1,E2,E3]", "--curriculum.ent_targets=null", "--annealing.at=null", "--trainer.max_epochs=-1",
    "--trainer.accelerator=cpu", "--trainer.logger=false", "--checkpoint.every_n_batches=1000000",
]  # fmt: skip
UPDATE, EPOCH = 512, 10_240  # episodes


def _algorithm(name: str, samples: int, minibatches: int, *options: str) -> list[str]:
    batch = UPDATE * minibatches // samples
    parts = [f"--model.algorithm.{option}" for option in ("ent_coef=0.15", "ent_target=1.0", *options)]
    return [
        *(f"--model.algorithm={name}", *parts, f"--data.batch_size={batch}"),
        f"--data.batches_per_epoch={EPOCH // (batch * samples)}",
    ]


ALGORITHMS = {
    "PPO": _algorithm("PPO", 1, 2, "minibatches=2"),
    "A2C": _algorithm("A2C", 1, 1),
    "GRPO": _algorithm("GRPO", 8, 2, "samples_per_problem=8", "minibatches=2"),
    "RLOO": _algorithm("RLOO", 4, 1, "samples_per_problem=4"),
}
ALL_AT_ONCE = "--curriculum.stages=[[E3,E1,E2]]"
VARIANTS: dict[str, list[str]] = {
    BASE: [],  # outcome reward, feedback of spans, E1 to E3 by mastery with rehearsal, entropy steered
    "reward: progress": ["--model.reward=ProgressReward"],
    "reward: potential": ["--model.reward=ProgressReward", "--model.reward.potential=true"],
    "feedback: position": ["--env.feedback=position"],
    "curriculum: none": [ALL_AT_ONCE, "--curriculum.window=1"],
    "curriculum: priorities": [ALL_AT_ONCE, "--curriculum.prioritize=true"],
    "curriculum: window of 2": ["--curriculum.window=2"],
    "successes replayed": ["--model.replay=SuccessReplay"],
    "entropy: fixed weight": ["--model.algorithm.ent_target=null", "--model.algorithm.ent_coef=0.05"],
}


class Run(NamedTuple):
    """A finished run; ``curve`` as ``LearningCurve`` writes it: tokens, CPU seconds, and the accuracy of each stage."""

    algorithm: str
    variant: str
    seed: int
    curve: list[list[float]]

    def at(self, tokens: float) -> float:
        """Mean accuracy of the stages at the last validation before so many tokens, 0 before the first."""
        return next((float(np.mean(point[2:])) for point in reversed(self.curve) if point[0] <= tokens), 0.0)

    def solved(self) -> list[float]:
        """Tokens and seconds to 99% of each stage, both infinite for a run that had not."""
        return next((point[:2] for point in self.curve if min(point[2:]) >= SOLVED), [float("inf")] * 2)


def scores(runs: Sequence[Run], wanted: dict[str, str], tokens: float) -> dict[str, list[float]]:
    """Accuracies after so many tokens of the runs that have these levels, by the level of the other factor."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if all(getattr(run, factor) == level for factor, level in wanted.items()):
            other = run.variant if "algorithm" in wanted else run.algorithm
            found.setdefault(other, []).append(run.at(tokens))
    return found


def _shown(interval: Interval) -> str:
    ends = "" if interval.low != interval.low else f" \\[{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.value:.3f}{ends}"


def table(runs: Sequence[Run], factor: str, base: str, tokens: int) -> Table:
    """A row for each level of a factor, taken over the levels of the other."""
    title = f"{factor}, over all that is crossed with it: mean accuracy on E1 to E3 after {tokens:,} tokens"
    result = Table(factor, box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("runs", "interquartile mean", "reach 99%", "tokens to it", "CPU seconds", f"better than {base}"):
        result.add_column(column, justify="right")
    compared = scores(runs, {factor: base}, tokens)
    for level in dict.fromkeys(getattr(run, factor) for run in runs):
        mine = [run for run in runs if getattr(run, factor) == level]
        points = [run.solved() for run in mine]
        spent = [float(np.median([point[i] for point in points])) for i in (0, 1)]
        found = scores(mine, {factor: level}, tokens)
        both: list[Strata] = [[side[key] for key in found if key in compared] for side in (found, compared)]
        better = "" if level == base or not both[0] else _shown(probability_of_improvement(*both))
        solved = f"{sum(point[0] < float('inf') for point in points)} of {len(mine)}"
        medians = ["not by half" if one == float("inf") else f"{one:,.0f}" for one in spent]
        row = [str(len(mine)), _shown(bootstrap_interval(list(found.values()))), solved, *medians, better]
        result.add_row(level, *row)
    return result


def draw(runs: Sequence[Run], tokens: int, path: Path) -> None:
    """Curves of the algorithms as they are, and of the variants of each of them."""
    panels: dict[str, dict[str, list[Run]]] = {"algorithms as they are": {}}
    for run in runs:
        if run.variant == BASE:
            panels["algorithms as they are"].setdefault(run.algorithm, []).append(run)
        panels.setdefault(f"{run.algorithm} with one thing changed", {}).setdefault(run.variant, []).append(run)
    grid = np.linspace(0, tokens, POINTS)
    lines = {
        title: {name: [bootstrap_interval([[run.at(x) for run in mine]]) for x in grid] for name, mine in panel.items()}
        for title, panel in panels.items()
    }
    learning_curves(lines, grid.tolist(), "tokens", "accuracy on E1 to E3").savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, print, and draw; returns the exit status, 0 if no run failed."""
    options = _parser().parse_args(arguments)
    console, facts = started()
    common = {"settings": {"tokens": options.tokens, "fit_options": options.fit_options}, "environment": facts}
    wanted = {
        (name, variant, seed): [
            *(*COMMON, *ALGORITHMS[name], *VARIANTS[variant], *options.fit_options, f"--seed_everything={seed}")
        ]
        for seed in range(options.seeds)  # all of a seed first, so that what is there early is balanced
        for variant in options.variants
        for name in options.algorithms
    }
    curve = {"path": DOCUMENT, "tokens": options.tokens, "solved": SOLVED}
    found, good = run_grid(console, options.output, common, wanted, CALLBACK, curve, jobs=options.jobs)
    runs = [Run(*run["key"], run["curve"]) for run in found]
    if runs:
        console.print(table(runs, "algorithm", REFERENCE, options.tokens))
        console.print(table(runs, "variant", BASE, options.tokens))
        for name in options.algorithms:
            if mine := [run for run in runs if run.algorithm == name]:
                console.print(name, table(mine, "variant", BASE, options.tokens))
        draw(runs, options.tokens, options.output.with_suffix(".png"))
    return 0 if good else 1


def _parser() -> Any:
    parser = arguments_of(__doc__, "comparison.jsonl")
    add = parser.add_argument
    add("--algorithms", choices=ALGORITHMS, nargs="+", default=list(ALGORITHMS), metavar="NAME", help="who learns")
    add("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS), metavar="NAME", help="what is changed")
    add("--seeds", type=int, default=5, help="how many, from 0")
    add("--tokens", type=int, default=3_000_000, help="budget of a run")
    add("--jobs", type=int, default=available_cpus(), help="runs at a time, one thread each")
    add("fit_options", nargs="*", metavar="-- options of fit", help="handed on to fit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
