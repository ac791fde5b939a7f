"""Metrics of agents, synchronised over ranks by torchmetrics."""

import torch
from torch import Tensor
from torchmetrics import Metric


class StageMean(Metric):
    """Mean of a number that each problem gets, for each stage: of answers being right, or of rewards.

    Args:
        stages: How many stages there are.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(stages), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(stages, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, value: Tensor, stage: Tensor) -> None:
        """Count a batch.

        Args:
            value: ``[B]``, numbers or bool.
            stage: int64 ``[B]``, from 0.
        """
        self.total.index_add_(0, stage, value.to(self.total.dtype))
        self.count.index_add_(0, stage, torch.ones_like(stage))

    def compute(self) -> Tensor:
        """Means, float32 ``[stages]``; not a number for a stage without problems.

        torchmetrics makes a scalar of it where there is one stage.
        """
        return self.total / self.count
