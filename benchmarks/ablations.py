"""What the parts are good for: short runs of a configuration without memory, with less feedback, and blind.

Run ``python -m benchmarks.ablations --config configs/expressions.yaml --seeds 0 1 2 --seconds 120``. Each variant is
trained with each seed for so many seconds of training, or batches, or until it has solved all; then the greedy agent is
tried on held-out problems. Results are kept as they come in: what ``--output`` has already is not run again. What
follows ``--`` is handed on to ``fit``.
"""

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box
from rich.table import Table

from benchmarks.environment import arguments_of, run_python, started, write_json
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.learning.rollout import visible_actions
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Stages
from toolagent_pl.problems.stream import FixedProblems
from toolagent_pl.randomness import Purpose

JUDGED = "judged.json"
BATCH = 4096
PLANS_OF, PLANS_ON = "E5", 10_000  # stage and number of problems whose different plans are counted

FEEDBACK = "--model.env.init_args.feedback="
VARIANTS: dict[str, list[str]] = {
    "spans": [],  # the configuration as it is
    "position": [f"{FEEDBACK}position"],
    "flags": [f"{FEEDBACK}flags"],
    "none": [f"{FEEDBACK}none"],
    # Actions without STO and RCL.
    "no memory": ["--model.env=benchmarks.ablations.Unchecked", "--model.agent.init_args.actions=[MUL,ADD,SUB,ANS]"],
    # Told the stage and the digits, it reads no operators.
    "blind": [f"{FEEDBACK}none", "--model.agent=BlindAgent", "--data.unseen=[]"],
}


class Unchecked(CalculatorEnv):
    """A calculator that takes agents that cannot carry out the textbook's plans."""

    def check(self, stages: Stages, actions: Sequence[int]) -> None:
        """Refuse nothing."""


class Judge(Callback):
    """Ends training when the budget is spent, and tries the agent.

    Args:
        problems: Held-out problems of each stage.
        seconds: Of training; None for any number.
        batches: To train on; None for any number.
    """

    def __init__(self, problems: int, seconds: float | None = None, batches: int | None = None) -> None:
        self.problems, self.seconds, self.batches = problems, seconds, batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time counts from here."""
        self.start = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop if it is time."""
        assert isinstance(pl_module, ToolAgent)
        late = self.seconds is not None and time.monotonic() - self.start >= self.seconds
        if late or (self.batches is not None and pl_module.batches_seen >= self.batches):
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down what the agent can do."""
        assert isinstance(pl_module, ToolAgent)
        spent = {"seconds": time.monotonic() - self.start, "batches": pl_module.batches_seen}
        Path(JUDGED).write_text(json.dumps(spent | judge(pl_module, self.problems)))


@torch.no_grad()
def judge(module: ToolAgent, per_stage: int) -> dict[str, Any]:
    """What the greedy agent can do on held-out problems.

    Returns:
        ``stages``: by name, the ``accuracy``, and the share of problems whose textbook's plan needs ``no_memory``;
        ``memory``: by the most values that the textbook's plan has in memory, the accuracy, over all stages that are
        trained on; ``plans``: how many different plans the agent has for 10,000 problems of E5.
    """
    module.eval()
    right: dict[str, list[bool]] = {}
    needed: dict[str, list[int]] = {}
    stages = module.stages
    for problems in FixedProblems(stages, Purpose.TEST, per_stage, BATCH, device=module.device):
        name = stages.names[int(problems.stage[0])]
        right[name] = right.get(name, []) + module.act(problems).outcome.correct.tolist()
        needed[name] = needed.get(name, []) + problems.memory_needed.tolist()
    found: dict[str, Any] = {"stages": {}, "memory": {}, "plans": _plans(module)}
    for name in right:
        found["stages"][name] = {
            "accuracy": statistics.mean(right[name]),
            "no_memory": statistics.mean(depth == 0 for depth in needed[name]),
        }
    trained = stages.names[: module.trained_stages]
    pairs = [pair for name in trained for pair in zip(needed[name], right[name], strict=True)]
    for depth in sorted({depth for depth, _ in pairs}):
        results = [correct for one, correct in pairs if one == depth]
        found["memory"][str(depth)] = {"accuracy": statistics.mean(results), "problems": len(results)}
    return found


def _plans(module: ToolAgent) -> int | None:
    """How many different plans the agent has; None for one that is told the stage, and was not trained on it."""
    stages, place = module.stages, 0
    if module.agent.told_stage:
        if PLANS_OF not in stages.names[: module.trained_stages]:
            return None
        place = stages.names.index(PLANS_OF)
    plans: set[tuple[int, ...]] = set()
    one = Stages([PLANS_OF], stages.vocabulary.tools)
    for problems in FixedProblems(one, Purpose.TEST, PLANS_ON, BATCH, device=module.device):
        rollout = module.act(problems._replace(stage=torch.full_like(problems.stage, place)))
        plans.update(map(tuple, visible_actions(rollout).unique(dim=0).tolist()))
    return len({tuple(token for token in plan if token >= 0) for plan in plans})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, print, and write; returns the exit status, 0 if no run failed."""
    options = _parser().parse_args(arguments)
    if options.seconds is None and options.batches is None:
        _parser().error("got neither --seconds nor --batches, expected at least one of them")
    console, facts = started()
    fit_options = [f"--config={options.config.resolve()}", *options.fit_options]
    settings = {"fit_options": [f"--config={options.config}", *options.fit_options]}
    settings |= {key: getattr(options, key) for key in ("seconds", "batches", "problems")}
    runs: list[dict[str, Any]] = []
    if options.output.exists():
        earlier = json.loads(options.output.read_text())
        if earlier["settings"] != settings:
            console.print(f"{options.output} has runs with other settings, {earlier['settings']}", markup=False)
            return 2
        runs = earlier["runs"]
    failed = False
    for seed in options.seeds:
        for variant in options.variants:
            if any((run["variant"], run["seed"]) == (variant, seed) for run in runs):
                continue
            callback = ["--trainer.callbacks+=benchmarks.ablations.Judge", "--trainer.max_epochs=-1"]
            for key in ("problems", "seconds", "batches"):
                callback.append(f"--trainer.callbacks.{key}={json.dumps(settings[key])}")
            command = ["-m", "toolagent_pl", "fit", *fit_options, *VARIANTS[variant], f"--seed_everything={seed}"]
            with tempfile.TemporaryDirectory() as directory:
                done = run_python([*command, *callback], Path(directory), options.patience)
                if done.error:
                    console.print(f"{variant}, seed {seed}, failed: {done.error}", markup=False)
                    failed = True
                    continue
                judged = json.loads((Path(directory) / JUDGED).read_text())
            runs.append({"variant": variant, "seed": seed, "others": done.others, **judged})
            shown = ", ".join(f"{name} {stage['accuracy']:.3f}" for name, stage in judged["stages"].items())
            console.print(f"{variant}, seed {seed}: {judged['batches']} batches, {judged['seconds']:.0f} s: {shown}")
            write_json(console, options.output, {**facts, "settings": settings, "runs": runs}, last=False)
    console.print(table(runs))
    return 1 if failed else 0


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean, by bootstrap over seeds; None for a single one."""
    if len(values) < 2:
        return None
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that are all the same
        found = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return float(found.low), float(found.high)


def figures(run: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of a run, by their names in the table."""
    found: dict[str, float | None] = {"batches": run["batches"]}
    for name, stage in run["stages"].items():
        found[f"accuracy on {name}"] = stage["accuracy"]
    for name, stage in run["stages"].items():
        found[f"needs no memory: {name}"] = stage["no_memory"]
    for depth, one in run["memory"].items():
        found[f"accuracy where {depth} in memory"] = one["accuracy"]
    found[f"plans on {PLANS_ON:,} of {PLANS_OF}"] = run["plans"]
    return found


def table(runs: Sequence[dict[str, Any]]) -> Table:
    """A column for each variant, mean and 95% interval over its seeds."""
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    shown = Table("mean [95% interval]", box=box.SIMPLE_HEAD, title="Ablations", title_justify="left")
    for variant in variants:
        count = sum(run["variant"] == variant for run in runs)
        shown.add_column(f"{variant} ({count})", justify="right")
    found = {variant: [figures(run) for run in runs if run["variant"] == variant] for variant in variants}
    for row in {key: None for several in found.values() for one in several for key in one}:
        cells = []
        form = "{:,.0f}" if row.startswith(("batches", "plans")) else "{:.3f}"
        for variant in variants:
            values = [float(one[row]) for one in found[variant] if one.get(row) is not None]  # type: ignore[arg-type]
            ends = interval(values)
            cell = form.format(statistics.mean(values)) if values else "-"
            cells.append(cell + (f" \\[{form.format(ends[0])}, {form.format(ends[1])}]" if ends else ""))
        shown.add_row(row, *cells)
    return shown


def _parser() -> Any:
    parser = arguments_of(__doc__, "ablations.json")
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/expressions.yaml"), help="of a reader on expressions")
    add("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run with")
    add("--seconds", type=float, help="most seconds of training of a run")
    add("--batches", type=int, help="most batches of a run")
    add("--problems", type=int, default=2000, help="held-out problems of each stage")
    add("fit_options", nargs="*", metavar="-- options of fit", help="handed on to fit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
