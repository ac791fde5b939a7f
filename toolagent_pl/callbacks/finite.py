"""Stops a run whose numbers are no longer numbers."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import Optimizer

from toolagent_pl.problems import Problems


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite."""


class StopOnNonFinite(Callback):
    """Stops before an update with a NaN or infinite gradient reaches the weights, and keeps the batch.

    A loss that is not finite gives such gradients, so one look at them is enough.
    """

    def __init__(self) -> None:
        self._problems: Problems | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Problems, *args: Any) -> None:
        """Keep the batch until the update is made."""
        self._problems = batch

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients.

        Raises:
            NonFiniteError: If one of them is not finite; names the step, the saved batch and the last checkpoint.
        """
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            return
        saved = [c.last_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        last = next((path for path in saved if path), "none was written yet")
        batch = Path(trainer.log_dir or ".") / f"not_finite_step{trainer.global_step}.rank{trainer.global_rank}.pt"
        assert self._problems is not None
        torch.save({"step": trainer.global_step, "problems": tuple(self._problems)}, batch)
        raise NonFiniteError(
            f"step {trainer.global_step}: loss or gradient is not finite (gradient norm {float(norm)}); the weights "
            f"of the steps before are good, last checkpoint: {last}; the batch is in {batch}"
        )
