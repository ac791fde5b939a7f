"""Stops a run whose problems are all solved."""

from typing import Any

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
        solved: Whether all problems are; the weights do not change any more.
        results: Those of the test over all problems that showed it, if it was made in this process.
    """

    def __init__(self) -> None:
        self.solved = False
        self.results: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Whether all is solved."""
        return {"solved": self.solved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over.

        Raises:
            ValueError: If it is not known.
        """
        if type(state_dict["solved"]) is not bool:
            raise ValueError(f"solved is {state_dict['solved']!r}")
        self.solved = state_dict["solved"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed when all was done has nothing left to do."""
        if self.solved:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        rank_zero_info(f"Every problem of every stage is solved after {trainer.global_step} updates.")
        trainer.should_stop = True

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
            self.solved, self.results = True, results
            self._stop(trainer)
