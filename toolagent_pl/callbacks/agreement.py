"""Proves, now and then, that all ranks train one model on one curriculum."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from toolagent_pl.callbacks.curriculum import CurriculumCallback
from toolagent_pl.callbacks.polish import Polish
from toolagent_pl.module import ToolAgent

# A name for each number that ``_state`` gives.
COMPARED = ("weights", "step", "weight of the entropy", "curriculum", "curriculum", "polishing")


class RanksDisagreeError(RuntimeError):
    """Ranks that should be equal are not."""


def checksum(module: torch.nn.Module) -> Tensor:
    """Sum of the bit patterns of all parameters, int64: equal weights have equal sums, in every order."""
    bits = [p.detach().float().contiguous().view(torch.int32).sum(dtype=torch.int64) for p in module.parameters()]
    return torch.stack(bits).sum()


def _state(trainer: Trainer, module: LightningModule) -> Tensor:
    """What must be equal on all ranks, ``[6]``."""
    assert isinstance(module, ToolAgent)
    place = [module.batches_seen, 0, 0, 0]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set where Lightning connects them
        if isinstance(callback, CurriculumCallback):
            place[1:3] = callback.entry, callback.epochs
        elif isinstance(callback, Polish) and callback.since is not None:
            place[3] = 1 + callback.since
    ent_coef = module.ent_coef.double().to(module.device).view(torch.int64)
    step, *places = torch.tensor(place, device=module.device)
    return torch.stack([checksum(module), step, ent_coef, *places])


class RanksAgree(Callback):
    """Compares weights, step and curriculum over all ranks, at the start and after each validation.

    A curriculum that differs would not show in the weights: the gradients are averaged.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare: ranks without a common file system could have resumed from different checkpoints."""
        self._compare(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare."""
        self._compare(trainer, pl_module)

    def _compare(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare.

        Raises:
            RanksDisagreeError: On all ranks, if one differs from rank 0; names it, and what differs.
        """
        if trainer.world_size == 1:
            return
        states = trainer.strategy.all_gather(_state(trainer, module))  # [ranks, 6]
        wrong = states != states[0]
        ranks = wrong.any(1).nonzero().view(-1).tolist()
        if ranks:
            differing = dict.fromkeys(name for name, bad in zip(COMPARED, wrong.any(0).tolist(), strict=True) if bad)
            raise RanksDisagreeError(
                f"step {module.batches_seen}: {' and '.join(differing)} of rank {', '.join(map(str, ranks))} differ "
                "from rank 0; the run is stopped, since its ranks no longer train one model"
            )
