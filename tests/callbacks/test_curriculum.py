"""Where the problems of an epoch come from."""

import pytest
import torch
from lightning.pytorch import Trainer

from toolagent_pl.callbacks import CurriculumCallback
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule


class StagesSeen(CurriculumCallback):
    """Writes down the mixture that each epoch is trained on, and pretends validation accuracies."""

    def __init__(self, accuracies: dict[str, float], **options) -> None:
        super().__init__(**options)
        self.accuracies = accuracies
        self.seen: list[list[float]] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seen.append(trainer.datamodule.mixture)
        for name, accuracy in self.accuracies.items():
            trainer.callback_metrics[f"val/{name}_accuracy"].fill_(accuracy)
        super().on_train_epoch_end(trainer, pl_module)


def seen(epochs: int, accuracies: dict[str, float], **options) -> list[list[float]]:
    callback = StagesSeen(accuracies, **options)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(ToolAgent(), datamodule=ProblemDataModule(batch_size=8, batches_per_epoch=1, val_problems=8))
    return callback.seen


def only(*stages: int) -> list[list[float]]:
    return [[float(i == stage) for i in range(3)] for stage in stages]


def test_by_the_clock_as_in_the_tutorial():
    assert seen(8, {}, every_n_epochs=1, stages=[0, 0, 0, 1, 1, 2]) == only(0, 0, 0, 1, 1, 2, 2, 2)


def test_by_mastery_of_the_current_stage():
    assert seen(4, {"T0": 0.995, "T1": 0.98}, advance_at=0.99) == only(0, 1, 1, 1)
    assert seen(4, {"T0": 0.99, "T1": 0.99}, advance_at=0.99, stages=[0, 0, 0, 1, 2]) == only(0, 1, 2, 2)


def test_by_whichever_comes_first():
    assert seen(5, {"T0": 1.0, "T1": 0.0}, advance_at=0.99, every_n_epochs=2) == only(0, 1, 1, 2, 2)


def test_earlier_stages_stay_in_the_mix():
    callback = CurriculumCallback(every_n_epochs=1, review=0.3)
    callback.load_state_dict({"entry": 2, "epochs": 0})
    assert callback.mixture(3) == pytest.approx([0.15, 0.15, 0.7])


def test_it_refuses_to_stand_still():
    with pytest.raises(ValueError, match="got neither every_n_epochs nor advance_at"):
        CurriculumCallback()
