"""Pictures of what an agent does: accuracies, tools by step, one episode as a drawing, and curves of learning."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import Tensor

from toolagent_pl.agents import Rollout
from toolagent_pl.envs import Env, execute
from toolagent_pl.envs.env import PLACES
from toolagent_pl.learning.rollout import visible_actions
from toolagent_pl.shapes import by_shape
from toolagent_pl.statistics import Interval

COLORS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a")
MOST_SHAPES = 24
LEAST_TOKENS = 17  # that a picture of an episode is wide


def learning_curves(
    panels: Mapping[str, Mapping[str, Sequence[Interval]]], x: Sequence[float], xlabel: str, ylabel: str
) -> Figure:
    """A panel for each title, with a line and its interval for each name.

    Args:
        panels: By title and name, an interval for each of ``x``.
    """
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 4 * rows), layout="constrained")
    places = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes in places[len(panels) :]:
        axes.remove()
    for (title, lines), axes in zip(panels.items(), places, strict=False):
        for name, points in lines.items():
            (line,) = axes.plot(x, [point.value for point in points], label=name)
            low, high = ([point[end] for point in points] for end in (1, 2))
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.legend(fontsize=7)
    return figure


def accuracy_by_operators(rollouts: Sequence[Rollout]) -> Figure:
    """Share of right answers by number of operators."""
    operators = torch.cat([rollout.problems.length - 1 for rollout in rollouts])
    correct = torch.cat([rollout.outcome.correct for rollout in rollouts])
    return _bars(*_shares(operators, correct), "operators", "right answers by number of operators")


def accuracy_by_shape(rollouts: Sequence[Rollout]) -> Figure:
    """Share of right answers by shape of tree: the worst shapes, written with dots as operands."""
    worst = by_shape((rollout.problems, rollout.outcome.correct) for rollout in rollouts)[:MOST_SHAPES]
    figure = Figure(figsize=(8, 0.28 * len(worst) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(worst)), [one.right / one.tried for one in worst], color=COLORS[0])
    axes.set_yticks(range(len(worst)), [f"{one.shape}  ({one.tried})" for one in worst], fontfamily="monospace")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("right answers by shape of tree, worst first (problems tried)")
    return figure


def tools_by_step(rollouts: Sequence[Rollout], env: Env) -> Figure:
    """Which share of the episodes calls each tool in each step."""
    steps = max(len(rollout.mask) for rollout in rollouts)
    actions = env.vocabulary.actions
    counts, episodes = torch.zeros(len(actions), steps), 0
    for rollout in rollouts:
        episodes += len(rollout.idle)
        for i, token in enumerate(actions):
            counts[i, : len(rollout.mask)] += (rollout.tokens.eq(token) & rollout.mask).sum(1).cpu()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bottom = torch.zeros(steps)
    for token, row in zip(actions, counts / episodes, strict=True):
        axes.bar(range(1, steps + 1), row.tolist(), bottom=bottom.tolist(), label=env.vocabulary.name(token))
        bottom += row
    axes.set_xlabel("step")
    axes.set_ylabel("share of episodes")
    axes.set_title("tools called by step")
    axes.legend(ncols=len(actions), fontsize="small")
    return figure


def episode(rollout: Rollout, env: Env, row: int = 0, room: tuple[int, int] | None = None) -> Figure:
    """One episode as a drawing: each call with the accumulator after it, and below it the prompt and places reported.

    An episode that goes on ends with what there is before its next call. Narrow and tall, since TensorBoard shows
    pictures in columns some 300 pixels wide.

    Args:
        room: For how many tokens and lines there is room, for pictures of one size; just enough without it.
    """
    one = rollout.select(torch.tensor([row], device=rollout.idle.device))
    problems, vocabulary = one.problems, env.vocabulary
    prompt = [vocabulary.symbol(token) for token in problems.prompt[0, : int(problems.prompt_length) - 1].tolist()]
    calls = visible_actions(one)
    states = execute(env, problems, calls)
    names = [vocabulary.name(token) for token in calls[0].tolist() if token >= 0]
    places = one.observations.places[:, 0]  # [T, P]
    goes_on = len(names) < len(places) and not bool(one.terminated | one.truncated)
    tokens, lines = room or (len(prompt), len(names) + goes_on)
    width = max(tokens, LEAST_TOKENS)
    figure = Figure(figsize=(0.17 * width, 0.58 * lines + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(-0.7, width - 0.3)
    axes.set_ylim(lines - 0.4, -0.6)
    axes.axis("off")
    for step in range(len(names) + goes_on):
        for x, symbol in enumerate(prompt):
            axes.text(x, step + 0.02, symbol, family="monospace", ha="center", va="center", fontsize=11)
        for i, place in enumerate(places[step].tolist()):
            if place >= 0:
                axes.plot([place - 0.4, place + 0.4], [step + 0.21 + 0.05 * i] * 2, color=COLORS[i], linewidth=2)
        if step == len(names):
            break
        after = states[step + 1]
        value = str(int(after.value[0])) if bool(after.valued[0]) else "-"
        said = f"{names[step]}  {value}"
        axes.text(-0.4, step - 0.34, said, family="monospace", va="center", weight="bold", fontsize=11)
    for i in range(places.shape[1]):
        axes.plot([], [], color=COLORS[i], linewidth=2, label=PLACES[i])
    if places.shape[1]:
        figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False, handlelength=1, columnspacing=1)
    return figure


def _shares(group: Tensor, correct: Tensor) -> tuple[list[int], list[float], list[int]]:
    groups = group.unique().tolist()
    chosen = [correct[group == one] for one in groups]
    return groups, [float(one.float().mean()) for one in chosen], [len(one) for one in chosen]


def _bars(groups: list[int], shares: list[float], counts: list[int], label: str, title: str) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(groups)), shares, color=COLORS[0])
    ticks = [f"{group}\n({count:,})" for group, count in zip(groups, counts, strict=True)]
    axes.set_xticks(range(len(groups)), ticks)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"{label} (problems tried)")
    axes.set_title(title)
    return figure
