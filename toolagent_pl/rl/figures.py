"""Pictures of what an agent does that every environment has: accuracy by stage, actions by step."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

COLORS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a")


def general_figures(stages: Sequence[str], actions: Sequence[str], rollouts: Sequence[Any]) -> dict[str, Figure]:
    """Both by name.

    Args:
        stages: Names, one for each rollout.
        actions: Names of the environment's actions.
        rollouts: One ``Rollout`` for each stage.
    """
    shares = [float(rollout.solved.float().mean()) for rollout in rollouts]
    counts = [len(rollout.solved) for rollout in rollouts]
    return {
        "pictures/accuracy_by_stage": accuracy_bars(stages, shares, counts, "stage"),
        "pictures/actions_by_step": actions_by_step(actions, rollouts),
    }


def accuracy_bars(groups: Sequence[object], shares: Sequence[float], counts: Sequence[int], label: str) -> Figure:
    """Share of problems solved, a bar for each group, and how many problems there were.

    Args:
        label: What the groups are.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(groups)), shares, color=COLORS[0])
    ticks = [f"{group}\n({count:,})" for group, count in zip(groups, counts, strict=True)]
    axes.set_xticks(range(len(groups)), ticks)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"{label} (problems tried)")
    axes.set_title(f"problems solved by {label}")
    return figure


def actions_by_step(actions: Sequence[str], rollouts: Sequence[Any]) -> Figure:
    """Which share of the episodes takes each action in each step."""
    steps = max(len(rollout.mask) for rollout in rollouts)
    counts, episodes = torch.zeros(len(actions), steps), 0
    for rollout in rollouts:
        episodes += len(rollout.solved)
        for action in range(len(actions)):
            counts[action, : len(rollout.mask)] += (rollout.actions.eq(action) & rollout.mask).sum(1).cpu()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bottom = torch.zeros(steps)
    for name, row in zip(actions, counts / episodes, strict=True):
        axes.bar(range(1, steps + 1), row.tolist(), bottom=bottom.tolist(), label=name)
        bottom += row
    axes.set_xlabel("step")
    axes.set_ylabel("share of episodes")
    axes.set_title("actions by step")
    axes.legend(ncols=8, fontsize="small")
    return figure
