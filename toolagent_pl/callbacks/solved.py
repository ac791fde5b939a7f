"""Stops a run whose problems are all solved."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule


class StopWhenSolved(Callback):
    """Stops training once the greedy agent answers every problem of every stage correctly.

    When validation finds no mistake, all problems are tried: a sample cannot show that none is left.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try all problems if validation found no mistake. All ranks see the same numbers and decide alike."""
        assert isinstance(pl_module, ToolAgent)
        accuracies = [trainer.callback_metrics.get(f"val/{name}_accuracy") for name in pl_module.ladder.names]
        if any(accuracy is None or accuracy < 1 for accuracy in accuracies):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, not declared
        assert isinstance(data, ProblemDataModule)
        with torch.no_grad():
            pl_module.eval()
            for problems in data.test_dataloader():
                outcome = pl_module.machine.outcome(pl_module.act(problems).final)
                pl_module.accuracy.update(outcome.correct, problems.stage)
            solved = bool((pl_module.accuracy.compute() == 1).all())
            pl_module.accuracy.reset()
            pl_module.train()
        if solved:
            rank_zero_info(f"Every problem of every stage is solved after {trainer.global_step} updates.")
            trainer.should_stop = True
