"""When checkpoints are written."""

import pytest
import torch
from lightning.pytorch import Trainer

from toolagent_pl.callbacks import Checkpoint
from toolagent_pl.learning import PPO
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule


class Noted(Checkpoint):
    """Notes after which batches it saves."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.batches: list[int] = []

    def save_now(self, trainer) -> None:
        super().save_now(trainer)
        saved = torch.load(self.last_path, weights_only=True)["toolagent_pl"]["batches_seen"]
        assert saved == trainer.lightning_module.batches_seen
        self.batches.append(saved)


def fit(path, checkpoint, algorithm=None, **options) -> None:
    trainer = Trainer(
        accelerator="cpu", callbacks=[checkpoint], logger=False, default_root_dir=path,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    data = ProblemDataModule(["T0"], batch_size=8, batches_per_epoch=4, val_problems=8)
    trainer.fit(ToolAgent(["T0"], algorithm=algorithm), data)


def test_every_few_batches_whatever_the_epochs_and_at_the_end(tmp_path):
    checkpoint = Noted(every_n_batches=3)
    fit(tmp_path, checkpoint, max_epochs=2)
    assert checkpoint.batches == [3, 6, 8]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_several_updates_of_a_batch_are_one_batch(tmp_path):
    checkpoint = Noted(every_n_batches=3, dirpath=str(tmp_path / "there"))
    fit(tmp_path, checkpoint, PPO(epochs=2, minibatches=4), max_epochs=1)
    assert checkpoint.batches == [3, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_a_trial_of_a_few_batches_leaves_none_at_its_end(tmp_path):
    checkpoint = Noted()
    fit(tmp_path, checkpoint, fast_dev_run=2)
    assert checkpoint.batches == []


def test_the_number_must_be_positive():
    with pytest.raises(ValueError, match=r"checkpoint.every_n_batches: got 0, expected at least 1"):
        Checkpoint(0)
