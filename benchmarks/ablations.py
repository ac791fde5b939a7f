"""What the parts are good for: short runs of a configuration without memory, with less feedback, and blind.

Run ``python -m benchmarks.ablations --config configs/expressions.yaml --seeds 0 1 2``. Each variant is trained with
each seed for so many tokens (actions), or until it has solved all; then the greedy agent is tried on held-out problems.
Each finished run is a line of ``--output``: what is there is not run again. What follows ``--`` goes to ``fit``.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from rich import box
from rich.table import Table

from benchmarks.environment import DOCUMENT, ROOT, arguments_of, run_grid, started
from benchmarks.learning_curve import LearningCurve
from benchmarks.statistics import bootstrap_interval
from toolagent_pl import CalculatorEnv, ToolAgent
from toolagent_pl.envs.calculator.stages import Stages
from toolagent_pl.training.stream import FixedProblems, Sample

JUDGE = "benchmarks.ablations.Judge"
BATCH = 4096
PLANS_OF, PLANS_ON = "E5", 10_000  # stage and number of problems whose different plans are counted

FEEDBACK = "--env.feedback="
VARIANTS: dict[str, list[str]] = {
    "spans": [],  # the configuration as it is
    "position": [f"{FEEDBACK}position"],
    "flags": [f"{FEEDBACK}flags"],
    "none": [f"{FEEDBACK}none"],
    "recurrent": ["--model.agent.recurrent=true"],  # a GRU that remembers earlier steps
    # Actions without STO and RCL.
    "no memory": ["--env=benchmarks.ablations.Unchecked", "--env.actions=[MUL,ADD,SUB,ANS]"],
    # Told the stage and the digits, it reads no operators.
    "blind": [f"{FEEDBACK}none", "--model.agent=BlindAgent", "--env.unseen=[]"],
}


class Unchecked(CalculatorEnv):
    """A calculator that takes agents that cannot carry out the reference plans."""

    def check(self) -> None:
        """Refuse nothing."""


class Judge(LearningCurve):
    """Ends training when the budget of tokens is spent, and tries the agent.

    Args:
        path: File to write.
        tokens: Budget.
        problems: Held-out problems of each stage.
    """

    def __init__(self, path: str, tokens: int, problems: int) -> None:
        super().__init__(path, tokens)
        self.problems = problems

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down what the agent can do, too."""
        super().on_train_end(trainer, pl_module)
        assert isinstance(pl_module, ToolAgent)
        found = json.loads(Path(self.path).read_text())
        Path(self.path).write_text(json.dumps(found | {"figures": judge(pl_module, self.problems)}))


@torch.no_grad()
def judge(module: ToolAgent, per_stage: int) -> dict[str, float]:
    """What the greedy agent can do on held-out problems: numbers by their names in the table.

    They are, for each stage, the accuracy, and the share of problems whose reference plan needs no memory; by the most
    values that this plan has in memory, the accuracy, over all stages that are trained on; and how many different plans
    the agent has.
    """
    module.eval()
    right: dict[str, list[bool]] = {}
    needed: dict[str, list[int]] = {}
    env: Any = module.env
    for problems in FixedProblems(env, len(env.all_stages), Sample.TEST, per_stage, BATCH, device=module.device):
        name = env.all_stages[int(problems.stage[0])]
        right[name] = right.get(name, []) + module.act(problems).solved.tolist()
        needed[name] = needed.get(name, []) + problems.memory_needed.tolist()
    found = {f"accuracy on {name}": statistics.mean(values) for name, values in right.items()}
    for name, depths in needed.items():
        found[f"needs no memory: {name}"] = statistics.mean(depth == 0 for depth in depths)
    pairs = [pair for name in env.stages for pair in zip(needed[name], right[name], strict=True)]
    for depth in sorted({depth for depth, _ in pairs}):
        found[f"accuracy where {depth} in memory"] = statistics.mean(correct for one, correct in pairs if one == depth)
    plans = _plans(module)
    return found if plans is None else {**found, f"plans on {PLANS_ON:,} of {PLANS_OF}": plans}


def _plans(module: ToolAgent) -> int | None:
    """How many different plans the agent has; None for one that is told the stage, and was not trained on it."""
    env: Any = module.env
    if module.agent.stage_conditioned and PLANS_OF not in env.stages:
        return None
    position = env.stages.index(PLANS_OF) if PLANS_OF in env.stages else 0
    plans: set[tuple[int, ...]] = set()
    one = Stages([PLANS_OF], env.vocabulary.tools).to(module.device)
    for number in torch.arange(PLANS_ON, device=module.device).split(BATCH):
        problems = one.draw(number, torch.zeros_like(number), Sample.TEST, held_out=True)
        rollout = module.act(problems._replace(stage=torch.full_like(number, position)))
        plans.update(map(tuple, rollout.visible_actions.unique(dim=0).tolist()))
    return len({tuple(action for action in plan if action >= 0) for plan in plans})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, print, and write; returns the exit status, 0 if no run failed."""
    options = _parser().parse_args(arguments)
    console, facts = started()
    configs = [ROOT / "configs/default.yaml", options.config.resolve()]  # another environment has no default run
    fit_options = [*(f"--config={path}" for path in configs), *options.fit_options]
    settings: dict[str, Any] = {"fit_options": [f"--config={options.config}", *options.fit_options]}
    judged_by = {key: getattr(options, key) for key in ("tokens", "problems")}
    wanted = {
        (variant, seed): [*fit_options, *VARIANTS[variant], f"--seed_everything={seed}", "--trainer.max_epochs=-1"]
        for seed in options.seeds
        for variant in options.variants
    }
    common = {"settings": settings | judged_by, "environment": facts}
    judged_by |= {"path": DOCUMENT}
    runs, good = run_grid(console, options.output, common, wanted, JUDGE, judged_by, options.patience)
    console.print(table(runs))
    return 0 if good else 1


def table(runs: Sequence[dict[str, Any]]) -> Table:
    """A column for each variant, mean and 95% interval over its seeds."""
    variants = list(dict.fromkeys(run["key"][0] for run in runs))
    shown = Table("mean [95% interval]", box=box.SIMPLE_HEAD, title="Ablations", title_justify="left")
    for variant in variants:
        count = sum(run["key"][0] == variant for run in runs)
        shown.add_column(f"{variant} ({count})", justify="right")
    found = {variant: [run["figures"] for run in runs if run["key"][0] == variant] for variant in variants}
    for row in {key: None for several in found.values() for one in several for key in one}:
        cells = []
        form = "{:,.0f}" if row.startswith("plans") else "{:.3f}"
        for variant in variants:
            values = [one[row] for one in found[variant] if row in one]
            mean, low, high = bootstrap_interval([values], np.mean) if values else (0.0,) * 3
            ends = f" \\[{form.format(low)}, {form.format(high)}]" if len(values) > 1 else ""
            cells.append(form.format(mean) + ends if values else "-")
        shown.add_row(row, *cells)
    return shown


def _parser() -> Any:
    parser = arguments_of(__doc__, "ablations.jsonl")
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/expressions.yaml"), help="of a reader on expressions")
    add("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run with")
    add("--tokens", type=int, default=4_000_000, help="budget of a run")
    add("--problems", type=int, default=2000, help="held-out problems of each stage")
    add("fit_options", nargs="*", metavar="-- options of fit", help="handed on to fit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
