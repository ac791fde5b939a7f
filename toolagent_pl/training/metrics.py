"""Metrics of agents, synchronised over ranks by torchmetrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import Metric


class StageResult(NamedTuple):
    """What the greedy agent achieved on the problems of a stage."""

    name: str
    tried: int
    correct: int
    plan_length: float  # actions over those of the reference plans, in problems answered correctly; NaN without any
    reward: float  # mean

    @property
    def accuracy(self) -> float:
        """Share of correct answers; not a number where no problem was tried."""
        return self.correct / self.tried if self.tried else float("nan")


def result_metrics(prefix: str, results: Sequence[StageResult]) -> dict[str, float]:
    """The results as metrics, ``val/E3_accuracy`` and so on."""
    names = ("accuracy", "plan_length", "reward")
    return {f"{prefix}/{result.name}_{name}": getattr(result, name) for result in results for name in names}


class StageSums(Metric):
    """Sums over the problems of each stage, of several numbers at a time: exact counts, and float64 for the rest.

    Args:
        stages: How many stages there are.
        counts: Names of what is counted in int64, whatever the precision of the weights.
        amounts: Names of what is added up in float64.
    """

    full_state_update = False
    integers: Tensor
    floats: Tensor

    def __init__(self, stages: int, counts: Sequence[str], amounts: Sequence[str]) -> None:
        super().__init__()
        self.counts, self.amounts = tuple(counts), tuple(amounts)
        self.add_state("integers", torch.zeros(stages, len(counts), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("floats", torch.zeros(stages, len(amounts), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, stage: Tensor, **values: Tensor) -> None:
        """Add up a batch: stages int64 ``[B]``, from 0, and values ``[B]`` for all names."""
        self.integers.index_add_(0, stage, torch.stack([values[name].long() for name in self.counts], 1))
        amounts = torch.stack([values[name].double() for name in self.amounts], 1)
        # Not in place: with bf16-true Lightning makes the empty sums bfloat16.
        self.floats = self.floats.double().index_add(0, stage, amounts)

    def compute(self) -> dict[str, Tensor]:
        """The sums by name, ``[stages]`` each; torchmetrics makes scalars of those of a single stage."""
        counts = dict(zip(self.counts, self.integers.view(-1, len(self.counts)).unbind(1), strict=True))
        amounts = self.floats.double().view(-1, len(self.amounts)).unbind(1)
        return counts | dict(zip(self.amounts, amounts, strict=True))


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Give every logger these numbers, and let callbacks know them.

    ``LightningModule.log`` takes 0.3 ms a name, and its steps are others after a run was resumed. Here the step is the
    number of the batch that they come with, from 0: of the last one at the end of an epoch. So those that a checkpoint
    knows of are the ones of the batches before it, and going on drops the others.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=step)
        logger.save()
