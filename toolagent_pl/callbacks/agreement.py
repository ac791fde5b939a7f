"""Proves, now and then, that all ranks hold the same weights."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class RanksDisagreeError(RuntimeError):
    """Ranks that should be equal are not."""


def checksum(module: torch.nn.Module) -> Tensor:
    """Sum of the bit patterns of all parameters, int64: equal weights have equal sums, in every order."""
    bits = [p.detach().float().contiguous().view(torch.int32).sum(dtype=torch.int64) for p in module.parameters()]
    return torch.stack(bits).sum()


class RanksAgree(Callback):
    """Compares checksums of the weights and the number of the step over all ranks after each validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare.

        Raises:
            RanksDisagreeError: If a rank differs from rank 0; names it.
        """
        if trainer.world_size == 1:
            return
        mine = torch.stack([checksum(pl_module), torch.tensor(trainer.global_step, device=pl_module.device)])
        all_ranks = trainer.strategy.all_gather(mine)  # [ranks, 2]
        wrong = (all_ranks != all_ranks[0]).any(1).nonzero().view(-1).tolist()
        if wrong:
            raise RanksDisagreeError(
                f"step {trainer.global_step}: weights or step of rank {', '.join(map(str, wrong))} differ from rank 0; "
                "the run is stopped, since its ranks no longer train one model"
            )
