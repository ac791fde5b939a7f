"""When checkpoints are written."""

import torch

from tests.training.counting import data, module, trainer
from toolagent_pl.rl.ppo import PPO
from toolagent_pl.training.checkpoint_callback import Checkpoint


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
    trainer(checkpoint, default_root_dir=path, **options).fit(module(algorithm=algorithm), data(batches_per_epoch=4))


def test_every_few_batches_whatever_the_epochs_and_at_the_end(tmp_path):
    checkpoint = Noted(every_n_batches=3)
    fit(tmp_path, checkpoint, max_epochs=2)
    assert checkpoint.batches == [3, 6, 8]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    checkpoint = Noted(every_n_batches=3, dirpath=str(tmp_path / "there"))
    fit(tmp_path, checkpoint, PPO(epochs=2, minibatches=4), max_epochs=1)  # several updates of a batch are one batch
    assert checkpoint.batches == [3, 4]
    assert (tmp_path / "there" / "last.ckpt").exists()


def test_a_trial_of_a_few_batches_leaves_none(tmp_path):
    fit(tmp_path, Checkpoint(1), fast_dev_run=2)
    assert list(tmp_path.iterdir()) == []
