"""Stops a run whose numbers are no longer numbers."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from toolagent_pl.callbacks.checkpoint import Checkpoint
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Problems


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite."""


class StopOnNonFinite(Callback):
    """Stops a run with a NaN or infinite gradient, and keeps the batch.

    A loss that is not finite gives such gradients, so one look at them is enough. On a CPU it comes before the
    gradient reaches the weights. A GPU would have to be waited for: there the look comes when metrics are logged,
    and before a checkpoint is written, so that every checkpoint is good. With 16-mixed, gradients overflow now and
    then by design; there the run is stopped when they still do after all scaling is taken back.
    """

    def __init__(self) -> None:
        self._batch: Problems | None = None  # the one under way
        self._updates: list[tuple[int, Problems, Tensor]] = []  # not looked at: batches seen before, batch, norm

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Problems, *args: Any) -> None:
        """Keep the batch until its gradients were looked at."""
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients, or note them.

        Raises:
            NonFiniteError: If one of them is not finite; names the step, the saved batch and the last checkpoint.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of the loss, in 16-mixed
        if scaler is not None and scaler.get_scale() > 1:
            return  # it leaves out updates whose gradients overflow, and halves its scale
        assert isinstance(pl_module, ToolAgent)
        norm = pl_module.gradient_norm(optimizer)
        assert self._batch is not None
        self._updates.append((pl_module.batches_seen, self._batch, norm))
        if norm.device.type == "cpu" or pl_module.is_logging_batch():
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not let bad weights be saved.

        Raises:
            NonFiniteError: As above.
        """
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        updates, self._updates = self._updates, []
        if not updates or bool(torch.isfinite(torch.stack([norm for _, _, norm in updates])).all()):
            return
        step, batch, norm = next(update for update in updates if not torch.isfinite(update[2]))
        saved = [c.last_path for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoint)]
        last = next((path for path in saved if path and path.exists()), "none was written yet")
        file = (
            last.parent.parent if isinstance(last, Path) else Path(trainer.log_dir or ".")
        ) / f"not_finite_step{step}.rank{trainer.global_rank}.pt"
        torch.save({"step": step, "batch": batch._asdict()}, file)
        raise NonFiniteError(
            f"step {step}: loss or gradient is not finite (gradient norm {float(norm)}); the weights "
            f"of the steps before are good, last checkpoint: {last}; the batch is in {file}"
        )
