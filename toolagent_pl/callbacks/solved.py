"""Stops a run whose problems are all solved."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from toolagent_pl.metrics import StageResult
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule
from toolagent_pl.process import threads_for

ROUNDING = 1e-7  # metrics of Lightning are float32


class StopWhenSolved(Callback):
    """Stops training once the greedy agent is good enough on every stage that it is trained on.

    When validation says so, the problems of the test are tried: all of those stages that can be enumerated.

    Args:
        accuracy: Share of right answers that every stage needs; null to go on to the end.
        plan_length: Most actions, as a multiple of the textbook's plans, of every stage; null for any number.

    Raises:
        ValueError: If a number is out of range.

    Attributes:
        solved: Whether all stages are; the weights do not change any more.
        results: Those of the test that showed it, if it was made in this process.
    """

    def __init__(self, accuracy: float | None = 1.0, plan_length: float | None = None) -> None:
        if accuracy is not None and not 0 < accuracy <= 1:
            raise ValueError(f"solved.accuracy: got {accuracy}, expected more than 0 and at most 1, or null")
        if plan_length is not None and not 0 < plan_length < float("inf"):
            raise ValueError(f"solved.plan_length: got {plan_length}, expected a number of more than 0, or null")
        self.accuracy, self.plan_length = accuracy, plan_length
        self.solved = False
        self.results: list[StageResult] = []

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
            self._stop(trainer, pl_module)

    def _stop(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, ToolAgent)
        rank_zero_info(f"Every stage is solved after {module.batches_seen} batches.")
        trainer.should_stop = True

    def _enough(self, result: StageResult) -> bool:
        assert self.accuracy is not None
        short = self.plan_length is None or result.plan_length <= self.plan_length * (1 + ROUNDING)
        return result.accuracy >= self.accuracy - ROUNDING and short

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the test if validation is good enough. All ranks see the same numbers and decide alike."""
        assert isinstance(pl_module, ToolAgent)
        if self.accuracy is None or not pl_module.epoch_is_whole:
            return
        names = pl_module.stages.names[: pl_module.trained_stages]
        for name in names:
            accuracy = trainer.callback_metrics.get(f"val/{name}_accuracy")
            length = trainer.callback_metrics.get(f"val/{name}_plan_length")
            if accuracy is None or length is None:
                return
            if not self._enough(StageResult(name, 1, float(accuracy), float(length), 0.0)):  # type: ignore[arg-type]
                return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, not declared
        assert isinstance(data, ProblemDataModule)
        with torch.no_grad(), threads_for(data.eval_batch_size):
            pl_module.eval()
            for problems in data.test_dataloader():
                pl_module.evaluate(problems)
            results = pl_module.results()
            pl_module.train()
        if all(self._enough(result) for result in results if result.name in names):
            self.solved, self.results = True, results
            self._stop(trainer, pl_module)
