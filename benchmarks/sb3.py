"""How long this project and Stable-Baselines3 take to learn the same tasks, on one CPU.

Run ``python -m benchmarks.sb3`` (needs ``pip install -e '.[sb3]'``). PPO and sb3-contrib's MaskablePPO learn with the
settings of ``examples/sb3.py``, this project with those of its default run and no curriculum. Each is done once it
answers 99% of held-out problems, on which all are tried after every rollout. What counts is the CPU time of training,
without trying the agent and without loading libraries.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table

from benchmarks.environment import DOCUMENT, arguments_of, run_fit, started, warn_of_others, write_json

TASKS = {"T0": ["T0"], "T0 to T2": ["T0", "T1", "T2"], "E2": ["E2"]}
OURS, PPO, MASKABLE_PPO = "this project", "PPO", "MaskablePPO"
SOLVED, HELD_OUT = 0.99, 1000
OPTIONS = ["--env.unseen=[]", "--curriculum.stages=null", "--curriculum.ent_targets=null", "--annealing.at=null"]
OPTIONS += ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_epochs=-1", "--data.test_problems=1"]
OPTIONS += ["--data.batches_per_epoch=1", f"--data.val_problems={HELD_OUT}"]


def stable_baselines(name: str, stages: Sequence[str], tokens: int, seed: int) -> dict[str, Any]:
    """Tokens, CPU seconds and accuracy when an algorithm is done, or has had so many tokens."""
    import sb3_contrib
    import stable_baselines3

    from examples.sb3 import accuracy, untrained

    task = {"stages": stages}
    algorithm = stable_baselines3.PPO if name == PPO else sb3_contrib.MaskablePPO
    model = untrained(task, seed, algorithm)
    spent, right = 0.0, 0.0
    while right < SOLVED and model.num_timesteps < tokens:
        start = time.process_time()
        model.learn(1, reset_num_timesteps=False)  # one rollout
        spent += time.process_time() - start
        right = accuracy(model, task, HELD_OUT * len(stages))
    return {"tokens": model.num_timesteps, "seconds": spent, "accuracy": right}


def fit(stages: Sequence[str], tokens: int, seed: int, patience: float) -> dict[str, Any]:
    """The same of this project, by its validation, in a process of its own."""
    words = [*OPTIONS, f"--env.stages=[{','.join(stages)}]", f"--seed_everything={seed}"]
    curve = {"path": DOCUMENT, "solved": SOLVED, "tokens": tokens}
    done, document = run_fit(words, "benchmarks.learning_curve.LearningCurve", curve, patience, threads=1)
    if document is None:
        raise RuntimeError(done.error)
    points = [(tokens, spent, sum(right) / len(right)) for tokens, spent, *right in document["curve"]]
    used, spent, right = next((point for point in points if point[2] >= SOLVED), points[-1])
    return {"tokens": used, "seconds": spent, "accuracy": right, "others": done.others}


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn, print, and write."""
    options = _parser().parse_args(arguments)
    console, facts = started()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    table = Table("task", "", "seed", box=box.SIMPLE_HEAD, title="To 99% of held-out problems", title_justify="left")
    for column in ("tokens", "CPU seconds", "right answers"):
        table.add_column(column, justify="right")
    for task in options.tasks:
        for name in options.names:
            for seed in options.seeds:
                if name == OURS:
                    found = fit(TASKS[task], options.most_tokens[0], seed, options.patience)
                else:
                    found = stable_baselines(name, TASKS[task], options.most_tokens[1], seed)
                rows.append({"task": task, "name": name, "seed": seed, **found})
                reached = found["accuracy"] >= SOLVED
                seconds = f"{found['seconds']:,.1f}" if reached else f"not in {found['seconds']:,.0f}"
                shown = f"{found['tokens']:,.0f}", seconds, f"{found['accuracy']:.1%}"
                table.add_row(task, name, str(seed), *shown)
                console.print(task, name, seed, *shown)
                settings = {key: value for key, value in vars(options).items() if key != "output"}
                write_json(console, options.output, {**facts, "settings": settings, "results": rows}, last=False)
    console.print(table)
    warn_of_others(console, [row["others"] for row in rows if "others" in row])
    console.print(f"written to {options.output}")
    return 0


def _parser() -> Any:
    parser = arguments_of(__doc__, "sb3.json")
    names = (OURS, PPO, MASKABLE_PPO)
    parser.add_argument(
        "--tasks", choices=TASKS, nargs="+", default=list(TASKS), metavar="NAME", help="what is learned"
    )
    parser.add_argument("--names", choices=names, nargs="+", default=names, metavar="NAME", help="what learns")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to learn with")
    most = "tokens after which this project, and Stable-Baselines3, give up"
    parser.add_argument("--most_tokens", type=int, nargs=2, default=[5_000_000, 400_000], help=most)
    return parser


if __name__ == "__main__":
    sys.exit(main())
