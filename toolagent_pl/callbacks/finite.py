"""Stops a run whose numbers are no longer numbers."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import Optimizer


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite."""


class StopOnNonFinite(Callback):
    """Stops before an update with a NaN or infinite gradient reaches the weights.

    A loss that is not finite gives such gradients, so one look at them is enough.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients.

        Raises:
            NonFiniteError: If one of them is not finite; names the step and the last good checkpoint.
        """
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            return
        saved = [c.last_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        last = next((path for path in saved if path), "none was written yet")
        raise NonFiniteError(
            f"step {trainer.global_step}: loss or gradient is not finite (gradient norm {float(norm)}); "
            f"the weights of the steps before are good, last checkpoint: {last}"
        )
