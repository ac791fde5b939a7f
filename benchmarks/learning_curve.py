"""What an agent could do after how much training, as a file and as a figure; and an end to it after so many tokens."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.statistics import Interval
from toolagent_pl.training.module import ToolAgent


class LearningCurve(Callback):
    """Writes down what validation says against tokens and time, so that ways to learn can be compared fairly.

    The file is one JSON object: ``curve`` has a row for each validation, with the tokens (actions) and the CPU seconds
    that training took so far, validation left out, and the accuracy of each stage; ``batches`` is how many there were.

    Args:
        path: File to write when training ends.
        tokens: Budget, after which training ends; null for none.
        solved: Training ends, too, when all stages had this accuracy at three validations in a row; null for never.
    """

    IN_A_ROW = 3

    def __init__(self, path: str, tokens: int | None = None, solved: float | None = None) -> None:
        self.path, self.budget, self.solved = path, tokens, solved
        self.seconds, self._new = 0.0, 0  # the actions of this rank since the last validation
        self.curve: list[list[float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time counts from here, until validation."""
        self._since = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count."""
        assert isinstance(pl_module, ToolAgent)
        self._new += int(pl_module.actions_taken)

    on_train_start = on_train_epoch_start  # a run that goes on in the middle of an epoch does not begin it

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if not trainer.sanity_checking:
            self.seconds += time.process_time() - self._since

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the agent can do, and stop if it is time."""
        assert isinstance(pl_module, ToolAgent)
        if not pl_module.epoch_is_whole:
            return
        metrics = trainer.callback_metrics
        right = [float(metrics[f"val/{name}_accuracy"]) for name in pl_module.env.stages]
        before = self.curve[-1][0] if self.curve else 0
        new = trainer.strategy.reduce(torch.tensor(self._new, device=pl_module.device), reduce_op="sum")
        tokens, self._new = before + int(new), 0
        self.curve.append([tokens, round(self.seconds, 3), *(round(one, 5) for one in right)])
        last = self.curve[-self.IN_A_ROW :]
        if self.solved is not None and len(last) == self.IN_A_ROW:
            trainer.should_stop |= all(min(point[2:]) >= self.solved for point in last)
        trainer.should_stop |= self.budget is not None and tokens >= self.budget

    def state_dict(self) -> dict[str, Any]:
        """The curve so far."""
        return {"seconds": self.seconds, "new": self._new, "curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.seconds, self._new, self.curve = (state_dict[name] for name in ("seconds", "new", "curve"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it down."""
        assert isinstance(pl_module, ToolAgent)
        if trainer.is_global_zero:
            Path(self.path).write_text(json.dumps({"curve": self.curve, "batches": pl_module.batches_seen}))


def learning_curves(
    panels: Mapping[str, Mapping[str, Sequence[Interval]]], x: Sequence[float], xlabel: str, ylabel: str
) -> Figure:
    """A panel for each title, with a line and its interval for each name.

    Args:
        panels: By title and name, an interval for each of ``x``.
    """
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 4 * rows), layout="constrained")
    positions = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes in positions[len(panels) :]:
        axes.remove()
    for (title, lines), axes in zip(panels.items(), positions, strict=False):
        for name, points in lines.items():
            (line,) = axes.plot(x, [point.value for point in points], label=name)
            low, high = ([point[end] for point in points] for end in (1, 2))
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.legend(fontsize=7)
    return figure
