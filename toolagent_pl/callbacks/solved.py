"""Stops a run whose problems are all solved."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule
from toolagent_pl.process import threads_for


class StopWhenSolved(Callback):
    """Stops training once the greedy agent answers every problem of every stage correctly.

    When validation finds no mistake, all problems are tried: a sample cannot show that none is left.

    Attributes:
        results: Those of a test over all problems, once they are solved; the weights do not change any more.
    """

    def __init__(self) -> None:
        self.results: dict[str, Tensor] | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try all problems if validation found no mistake. All ranks see the same numbers and decide alike."""
        assert isinstance(pl_module, ToolAgent)
        names = pl_module.ladder.names
        accuracies = [trainer.callback_metrics.get(f"val/{name}_accuracy") for name in names]
        if any(accuracy is None or accuracy < 1 for accuracy in accuracies):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, not declared
        assert isinstance(data, ProblemDataModule)
        with torch.no_grad(), threads_for(data.eval_batch_size):
            pl_module.eval()
            for problems in data.test_dataloader():
                if not bool(pl_module.evaluate(problems).correct.all()):
                    break  # one mistake is enough
            results = pl_module.results("test")
            pl_module.train()
        # A stage that was not reached has no accuracy, which is not 1 either.
        if all(bool(results[f"test/{name}_accuracy"] == 1) for name in names):
            rank_zero_info(f"Every problem of every stage is solved after {trainer.global_step} updates.")
            self.results = results
            trainer.should_stop = True
