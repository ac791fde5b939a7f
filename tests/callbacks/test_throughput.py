"""Throughput: which time counts."""

import time

from lightning.pytorch import Callback, Trainer

from toolagent_pl.callbacks import Throughput
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule

PAUSE = 1.0
BATCH = 8


class SlowValidation(Callback):
    """Takes its time in each validation, and keeps what is logged."""

    def __init__(self):
        self.seconds = []

    def on_validation_start(self, trainer, pl_module):
        time.sleep(PAUSE)

    def on_train_epoch_end(self, trainer, pl_module):
        rate = trainer.callback_metrics["throughput/episodes_per_second"]
        self.seconds.append(4 * BATCH / float(rate))


def test_validation_does_not_count_whether_it_ends_an_epoch_or_interrupts_it(tmp_path):
    slow = SlowValidation()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, val_check_interval=2, log_every_n_steps=4, callbacks=[slow, Throughput()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(ToolAgent(), ProblemDataModule(batch_size=BATCH, batches_per_epoch=4, val_problems=1))
    assert len(slow.seconds) == 2
    assert min(slow.seconds) < PAUSE
