"""Countdown: trains for a given CPU time, measures an agent, or draws the curves of runs.

    python -m benchmarks.countdown --config=configs/countdown_long.yaml --seconds=1800 --seed=0 --out=countdown.json
    python -m benchmarks.countdown --ckpt=countdown --out=alone.json
    python -m benchmarks.countdown --curves lightning_logs/version_0 lightning_logs/version_1 --out=countdown.png

While it trains, the learning rate falls to a fiftieth in the second half, the weight of the entropy bonus to a tenth
over all of it. An agent is a checkpoint, a folder or a name, as for ``solve``: it is measured on 2,000 held-out
problems a stage, and on reasoning-gym's ``countdown`` by that package's own scorer (pip install -e '.[bench]').
"""

import argparse
import json
import pkgutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.environment import environment
from toolagent_pl.envs.countdown import CountdownEnv, CountdownSolver
from toolagent_pl.envs.countdown.problems import solvable
from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.env import select
from toolagent_pl.rl.rollout import collect
from toolagent_pl.training import ProblemDataModule, ToolAgent

PROBLEMS, SEED = 2000, 2**40 + 2  # as the datamodule tests on
SAMPLES, SAMPLED, JUDGED = 16, 500, 500


def built(description: Any, *first: Any) -> Any:
    """An object from its class path and arguments."""
    return pkgutil.resolve_name(description["class_path"])(*first, **description.get("init_args", {}))


def measured(agent: Agent, env: CountdownEnv, sampled: bool, seed: int = SEED) -> dict[str, dict[str, float]]:
    """For each stage the share solved greedily, with 16 samples, and of first moves that keep a problem solvable."""
    number, cells = torch.arange(PROBLEMS), {}
    for stage, name in enumerate(env.all_stages):
        problems = env.problems(number, torch.full_like(number, stage), seed, held_out=True)
        rollout = collect(agent, env, problems)
        first = env.step(env.reset(problems), rollout.actions[0])
        left = int(first.numbers[0].ge(0).sum())
        kept = share(solvable(first.numbers[:, :left], first.target))
        cells[name] = {"solved": share(rollout.solved), "first_move_kept": kept}
        if sampled:
            some = collect(agent, env, select(problems, slice(SAMPLED)), samples_per_problem=SAMPLES, seed=0)
            cells[name][f"pass@{SAMPLES}"] = share(some.solved.view(-1, SAMPLES).any(1))
    return cells


def judged(solver: CountdownSolver, seed: int) -> list[dict[str, Any]]:
    """What reasoning-gym's scorer says, of problems as it makes them and in the ranges that the agents learned."""
    import reasoning_gym

    rows = []
    for numbers in (3, 4, 5, 6):
        for ranges in ({}, {"max_value": 99, "min_target": 10, "max_target": 100}):
            options = {"min_numbers": numbers, "max_numbers": numbers, **ranges}
            dataset = reasoning_gym.create_dataset("countdown", size=JUDGED, seed=seed, **options)
            entries = list(dataset)
            facts = [entry["metadata"] for entry in entries]
            lines = [f"{' '.join(map(str, fact['numbers']))} = {fact['target']}" for fact in facts]
            found = [getattr(episode, "expression", None) for episode in solver.attempt(lines)]
            scores = [dataset.score_answer(answer, entry) for answer, entry in zip(found, entries, strict=True)]
            possible = solvable(*(torch.tensor([fact[name] for fact in facts]) for name in ("numbers", "target")))
            rows.append({
                **options,
                "right": share(torch.tensor(scores).eq(1)),
                "score": round(sum(scores) / JUDGED, 4),
                "refused": found.count(None),
                "solvable_by_the_rules_here": share(possible),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def curves(runs: list[Path]) -> Figure:
    """Accuracies in validation by batch, a panel for each run, from what it has written for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figure = Figure(figsize=(5 * len(runs), 3.5), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        events = EventAccumulator(str(run)).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("val/") and tag.endswith("_accuracy"):
                points = events.Scalars(tag)
                name = tag.removeprefix("val/").removesuffix("_accuracy")
                axes.plot([point.step + 1 for point in points], [100 * point.value for point in points], label=name)
        config = yaml.safe_load((run / "config.yaml").read_text())
        agent, size = config["model"]["agent"]["class_path"].rpartition(".")[2], config["data"]["batch_size"]
        axes.set(title=agent, xlabel=f"batches of {size} problems", ylabel="solved in validation, %", ylim=(0, 102))
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    return figure


def share(which: Tensor) -> float:
    """In percent."""
    return round(100 * float(which.float().mean()), 2)


class Clock(Callback):
    """Lets everything fall by CPU time, and stops; measuring is not counted."""

    def __init__(self, seconds: float, every: float, decay: float, ent_final: float) -> None:
        self.seconds, self.every, self.decay, self.ent_final = seconds, every, decay, ent_final
        self.start, self.measuring, self.curve = time.process_time(), 0.0, list[dict[str, Any]]()

    @property
    def used(self) -> float:
        """CPU seconds of training so far."""
        return time.process_time() - self.start - self.measuring

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start counting."""
        self.start = time.process_time()
        self.rate, self.ent_coef = pl_module.learning_rate, float(pl_module.ent_coef)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Set what follows from the time."""
        done = self.used / self.seconds
        warm = min(1.0, (pl_module.batches_seen + 1) / 20)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate * warm * min(1.0, max(0.02, (1 - done) / self.decay))
        if pl_module.ent_target is None:
            pl_module.ent_coef = torch.tensor(self.ent_coef * self.ent_final ** min(1.0, done), dtype=torch.float64)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Measure now and then, and stop."""
        if self.used >= self.every * (len(self.curve) + 1) or self.used >= self.seconds:
            used, begun = self.used, time.process_time()
            cells = measured(pl_module.agent, pl_module.env, sampled=used >= self.seconds)
            self.curve.append({"cpu_seconds": round(used, 1), "batches": pl_module.batches_seen, "cells": cells})
            print(json.dumps(self.curve[-1]), flush=True)
            self.measuring += time.process_time() - begun
            trainer.should_stop = used >= self.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure or draw, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config", type=Path, help="train by it")
    task.add_argument("--ckpt", help="measure this agent")
    task.add_argument("--curves", type=Path, nargs="+", metavar="RUN", help="draw what these runs have logged")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--every", type=float, default=60, help="CPU seconds between two measurements")
    parser.add_argument("--decay", type=float, default=0.5, help="share of the time in which the learning rate falls")
    parser.add_argument("--ent_final", type=float, default=0.1, help="of the weight of the entropy bonus, at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="options as in model.algorithm.init_args.ent_coef=0.1")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weights", type=Path, help="where to save the agent's weights")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.curves:
        curves(options.curves).savefig(options.out, dpi=110)
        return
    if options.ckpt:
        solver = CountdownSolver.from_checkpoint(options.ckpt)
        facts = {"ckpt": options.ckpt, "seed": options.seed, "environment": environment()}
        facts["cells"] = measured(solver.agent, solver.env, True, SEED + options.seed)
        print(json.dumps(facts["cells"]), flush=True)
        facts["reasoning_gym"] = judged(solver, options.seed)
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
        return
    config = yaml.safe_load(options.config.read_text())
    for option in options.set:
        path, value = option.split("=", 1)
        *parents, last = path.split(".")
        group = config
        for parent in parents:
            group = group[parent]
        group[last] = yaml.safe_load(value)
    torch.manual_seed(options.seed)
    env, model, data = built(config["env"]), dict(config["model"]), dict(config["data"])
    agent, algorithm = model.pop("agent"), built(model.pop("algorithm"))
    module = ToolAgent(env, lambda e: built(agent, e), algorithm=algorithm, seed=options.seed, **model)
    clock = Clock(options.seconds, options.every, options.decay, options.ent_final)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        callbacks=[clock],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=ProblemDataModule(env, seed=options.seed, **data | {"batches_per_epoch": 10}))
    weights = sum(p.numel() for p in module.agent.parameters())
    facts = {**vars(options), "settings": config, "weights_of_agent": weights, "curve": clock.curve}
    if options.out:
        options.out.write_text(json.dumps(facts, indent=1, default=str) + "\n")
    if options.weights:
        torch.save(module.agent.state_dict(), options.weights)


if __name__ == "__main__":
    main()
