"""The data module under a trainer."""

import pytest
from lightning.pytorch import Callback, Trainer

from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule


class Numbers(Callback):
    """Keeps the numbers of all problems trained on."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += batch.number.tolist()


@pytest.mark.parametrize("accumulated", [1, 3, 4, 7])
def test_each_problem_comes_once_however_batches_are_accumulated(tmp_path, accumulated):
    numbers = Numbers()
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, accumulate_grad_batches=accumulated, callbacks=[numbers], logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = ProblemDataModule(batch_size=8, batches_per_epoch=4, val_problems=1)
    trainer.fit(ToolAgent(), data)
    assert numbers.seen == list(range(3 * 4 * 8))
