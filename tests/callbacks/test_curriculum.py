"""Where the problems of an epoch come from."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from toolagent_pl.callbacks import CurriculumCallback
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule


class StagesSeen(CurriculumCallback):
    """Writes down the mixture and the target that each epoch is trained on, and pretends validation accuracies."""

    def __init__(self, accuracies: dict[str, float], **options) -> None:
        super().__init__(**options)
        self.pretended = accuracies
        self.seen_mixtures: list[list[float]] = []
        self.seen_targets: list[float | None] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seen_mixtures.append(trainer.datamodule.mixture)
        self.seen_targets.append(pl_module.ent_target)
        for name, accuracy in self.pretended.items():
            trainer.callback_metrics[f"val/{name}_accuracy"].fill_(accuracy)
        super().on_train_epoch_end(trainer, pl_module)


def run(epochs: int, accuracies: dict[str, float], **options) -> StagesSeen:
    callback = StagesSeen(accuracies, **options)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(ToolAgent(), datamodule=ProblemDataModule(batch_size=8, batches_per_epoch=1, val_problems=8))
    return callback


def seen(epochs: int, accuracies: dict[str, float], **options) -> list[list[float]]:
    return run(epochs, accuracies, **options).seen_mixtures


def only(*stages: int) -> list[list[float]]:
    return [[float(i == stage) for i in range(3)] for stage in stages]


def test_by_the_clock_as_in_the_tutorial():
    stages = ["T0", "T0", "T0", "T1", "T1", "T2"]
    assert seen(8, {}, every_n_epochs=1, stages=stages) == only(0, 0, 0, 1, 1, 2, 2, 2)


def test_by_mastery_of_the_current_stage():
    assert seen(4, {"T0": 0.995, "T1": 0.98}, advance_at=0.99) == only(0, 1, 1, 1)
    stages = ["T0", "T0", "T0", "T1", "T2"]
    assert seen(4, {"T0": 0.99, "T1": 0.99}, advance_at=0.99, stages=stages) == only(0, 1, 2, 2)


def test_by_whichever_comes_first():
    assert seen(5, {"T0": 1.0, "T1": 0.0}, advance_at=0.99, every_n_epochs=2) == only(0, 1, 1, 2, 2)


def test_stages_in_an_order_of_ones_own():
    assert seen(3, {}, every_n_epochs=1, stages=["T2", "T0"]) == only(2, 0, 0)


def with_stages(stages: list | None, entry: int, **options) -> CurriculumCallback:
    callback = CurriculumCallback(stages, every_n_epochs=1, **options)
    callback.check_stages(["T0", "T1", "T2"])
    callback.load_state_dict({"entry": entry, "epochs": 0})
    return callback


def test_earlier_stages_stay_in_the_mix():
    assert with_stages(None, 0, review=0.3).mixture(3) == [1, 0, 0]
    assert with_stages(None, 2, review=0.3).mixture(3) == pytest.approx([0.15, 0.15, 0.7])
    assert with_stages(["T0", "T1", "T0"], 2, review=0.3).mixture(3) == pytest.approx([0.7, 0.3, 0])


def test_stages_that_come_with_another_are_reviewed_from_there_on():
    assert with_stages([["T2", "T0"], "T1"], 0, review=0.3).mixture(3) == pytest.approx([0.3, 0, 0.7])
    assert with_stages([["T2", "T0"], "T1"], 1, review=0.3).mixture(3) == pytest.approx([0.15, 0.7, 0.15])


def test_a_window_holds_the_last_entries_in_equal_parts():
    assert with_stages(None, 0, window=2, review=0.3).mixture(3) == [1, 0, 0]
    assert with_stages(None, 1, window=2, review=0.3).mixture(3) == [0.5, 0.5, 0]
    assert with_stages(None, 2, window=2, review=0.3).mixture(3) == [0, 0.5, 0.5]
    assert with_stages([["T2", "T0", "T1"]], 0, window=1).mixture(3) == pytest.approx([1 / 3] * 3)
    with pytest.raises(ValueError, match=r"curriculum\.window: got 0, expected at least 1, or null"):
        with_stages(None, 0, window=0)


def test_priorities_follow_what_there_is_to_learn():
    """An accuracy of a half says most, 0 and 1 say nothing; no stage is left out."""
    mixtures = seen(
        3, {"T0": 1.0, "T1": 0.5, "T2": 0.0}, every_n_epochs=9, stages=[["T2", "T0", "T1"]], prioritize=True
    )
    assert mixtures[0] == pytest.approx([1 / 3] * 3)
    assert mixtures[1] == pytest.approx([0.05 / 0.4, 0.3 / 0.4, 0.05 / 0.4])
    assert mixtures[2] == pytest.approx(mixtures[1])


def test_priorities_are_those_of_the_checkpoint():
    callback = with_stages([["T2", "T0", "T1"]], 0, prioritize=True)
    callback.accuracies = [1.0, 0.5, 0.0]
    resumed = with_stages([["T2", "T0", "T1"]], 0, prioritize=True)
    resumed.load_state_dict(callback.state_dict())
    assert resumed.mixture(3) == callback.mixture(3) != with_stages([["T2", "T0", "T1"]], 0, prioritize=True).mixture(3)


def test_each_entry_has_its_entropy():
    callback = run(4, {}, every_n_epochs=1, ent_targets=[1.5, 1.0, 0.5])
    assert callback.seen_targets == [1.5, 1.0, 0.5, 0.5]
    assert run(1, {}, every_n_epochs=1).seen_targets == [None]
    with pytest.raises(ValueError, match=r"curriculum.ent_targets: got \[1.0\], expected 3 numbers"):
        with_stages(None, 0, ent_targets=[1.0])


def test_an_epoch_counts_only_if_it_was_whole():
    """Lightning ends one that was cut short, too."""
    module, data = ToolAgent(), ProblemDataModule(batches_per_epoch=10)
    callback = with_stages(None, 0)
    trainer = SimpleNamespace(
        datamodule=data, callback_metrics={}, num_training_batches=10, loggers=[], current_epoch=0
    )
    module._trainer = trainer
    entries = []
    for module.batches_seen in (7, 10, 15, 20):
        callback.on_train_epoch_end(trainer, module)
        entries.append(callback.entry)
    assert entries == [0, 1, 1, 2]
    assert callback.state_dict() == {"entry": 2, "epochs": 0}
    assert data.mixture == [0, 0, 1]


def test_it_refuses_to_stand_still():
    with pytest.raises(ValueError, match="got neither every_n_epochs nor advance_at"):
        CurriculumCallback()


@pytest.mark.parametrize(
    "state", [{"entry": -1}, {"epochs": "two"}, {"epochs": None}, {"entry": True}, {"accuracies": [2.0]}]
)
def test_what_a_checkpoint_says_must_be_a_place(state):
    with pytest.raises(ValueError, match="the curriculum is at"):
        CurriculumCallback(every_n_epochs=1).load_state_dict({"entry": 0, "epochs": 0, **state})
