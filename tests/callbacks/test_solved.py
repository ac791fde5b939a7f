"""Stopping when all is solved."""

import torch
from lightning.pytorch import Trainer

from toolagent_pl.callbacks import StopWhenSolved
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule


class LuckySample(ToolAgent):
    """Validates on problems that happen to come out right."""

    def results(self, prefix):
        results = super().results(prefix)
        return {name: torch.ones_like(value) for name, value in results.items()} if prefix == "val" else results


def test_a_sample_without_mistakes_does_not_end_a_run(tmp_path):
    solved = StopWhenSolved()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[solved], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(LuckySample(), ProblemDataModule(batch_size=8, batches_per_epoch=1, val_problems=1))
    assert trainer.global_step == 2
    assert solved.results is None
