"""Pictures of what an agent does with arithmetic: accuracies by kind of problem, and one episode as a drawing."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from toolagent_pl.envs.calculator.shapes import by_shape
from toolagent_pl.envs.calculator.tools import POSITIONS
from toolagent_pl.rl.env import over
from toolagent_pl.rl.figures import COLORS, accuracy_bars, actions_by_step
from toolagent_pl.rl.rollout import Rollout

MAX_SHAPES = 24
MIN_TOKENS = 17  # that a picture of an episode is wide


def all_figures(env: Any, rollouts: Sequence[Rollout]) -> dict[str, Figure]:
    """Accuracy by number of operators and by shape of tree, tools by step, and the first episode of each stage.

    ``env`` is a ``RegisterEnv``, and there is a rollout for each stage.
    """
    drawn = {
        "pictures/accuracy_by_operators": accuracy_by_operators(rollouts),
        "pictures/accuracy_by_shape": accuracy_by_shape(rollouts),
        "pictures/tools_by_step": actions_by_step(env.actions, rollouts),
    }
    for rollout in rollouts:
        drawn[f"episodes/{env.stage_name(int(rollout.problems.stage[0]))}"] = episode(rollout, env)
    return drawn


def accuracy_by_operators(rollouts: Sequence[Rollout]) -> Figure:
    """Share of right answers by number of operators."""
    operators = torch.cat([rollout.problems.length - 1 for rollout in rollouts])
    solved = torch.cat([rollout.solved for rollout in rollouts])
    groups = operators.unique().tolist()
    chosen = [solved[operators == one] for one in groups]
    return accuracy_bars(groups, [float(one.float().mean()) for one in chosen], [*map(len, chosen)], "operators")


def accuracy_by_shape(rollouts: Sequence[Rollout]) -> Figure:
    """Share of right answers by shape of tree: the worst shapes, written with dots as operands."""
    worst = by_shape((rollout.problems, rollout.solved) for rollout in rollouts)[:MAX_SHAPES]
    figure = Figure(figsize=(8, 0.28 * len(worst) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(worst)), [one.right / one.tried for one in worst], color=COLORS[0])
    axes.set_yticks(range(len(worst)), [f"{one.shape}  ({one.tried})" for one in worst], fontfamily="monospace")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), title="right answers by shape of tree, worst first (problems tried)")
    return figure


def episode(rollout: Rollout, env: Any, row: int = 0, room: tuple[int, int] | None = None) -> Figure:
    """One episode as a drawing: each call with the accumulator after it, below it the prompt and reported positions.

    An episode that goes on ends with what there is before its next call. Narrow and tall, since TensorBoard shows
    pictures in columns some 300 pixels wide.

    Args:
        env: The environment that it ran in, a ``RegisterEnv``.
        room: For how many tokens and lines there is room, for pictures of one size; just enough without it.
    """
    one = rollout.select(torch.tensor([row], device=rollout.mask.device))
    tokens = one.problems.prompt[0, : int(one.problems.prompt_length) - 1].tolist()
    (told,) = env.episodes(one)
    said = [f"{call}  {'-' if value is None else value}" for call, value in zip(told.plan, told.values, strict=True)]
    positions = one.observations.positions[:, 0].tolist()
    if len(said) < len(positions) and not bool(over(one.final)):
        said.append("")
    across, lines = room or (len(tokens), len(said))
    width = max(across, MIN_TOKENS)
    figure = Figure(figsize=(0.17 * width, 0.58 * lines + 0.6))
    axes = figure.add_axes((0, 0, 1, 0.58 * lines / (0.58 * lines + 0.6)))  # the legend stands above
    axes.set(xlim=(-0.7, width - 0.3), ylim=(lines - 0.4, -0.6))
    axes.axis("off")
    for y, (text, looked_at) in enumerate(zip(said, positions, strict=False)):
        for x, token in enumerate(tokens):
            symbol = env.vocabulary.symbol(token)
            axes.text(x, y + 0.02, symbol, family="monospace", ha="center", va="center", fontsize=11)
        for i, place in enumerate(looked_at):
            if place >= 0:
                axes.plot([place - 0.4, place + 0.4], [y + 0.21 + 0.05 * i] * 2, color=COLORS[i], linewidth=2)
        axes.text(-0.4, y - 0.34, text, family="monospace", va="center", weight="bold", fontsize=11)
    if positions[0]:
        for name, color in zip(POSITIONS, COLORS, strict=False):
            axes.plot([], [], color=color, linewidth=2, label=name)
        figure.legend(loc="upper left", ncols=2, fontsize=9, frameon=False, handlelength=1, columnspacing=1)
    return figure
