"""Explore, then polish."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from toolagent_pl.callbacks import CurriculumCallback, Polish
from toolagent_pl.learning import A2C
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule


class Seen(Callback):
    """Writes down what each batch is trained with, and pretends validation accuracies."""

    def __init__(self, accuracies: list[float]) -> None:
        self.accuracies = accuracies
        self.batches: list[tuple[float, float | None, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.batches.append((pl_module.step_cost, pl_module.ent_target, rate))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        for name in ("T0", "T1"):
            trainer.callback_metrics[f"val/{name}_accuracy"].fill_(self.accuracies[trainer.current_epoch])


def fit(accuracies: list[float], polish: Polish, stages: tuple[str, ...] = ("T0",)) -> Seen:
    seen = Seen(accuracies)
    curriculum = CurriculumCallback(stages, every_n_epochs=1)
    trainer = Trainer(
        accelerator="cpu", max_epochs=len(accuracies), callbacks=[seen, curriculum, polish], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(0)
    module = ToolAgent(["T0", "T1"], algorithm=A2C(ent_target=1.0), learning_rate=0.01)
    data = ProblemDataModule(["T0", "T1"], batch_size=8, batches_per_epoch=2, val_problems=8)
    trainer.fit(module, data)
    return seen


def test_it_begins_when_all_stages_are_mastered():
    costs = [cost for cost, _, _ in fit([0.8, 0.9, 0.5], Polish(0.9, step_cost=0.2, anneal=False)).batches]
    assert costs == [0, 0, 0, 0, 0.2, 0.2]


def test_it_does_not_begin_before_the_last_stage():
    polish = Polish(0.9, step_cost=0.2, anneal=False)
    costs = [cost for cost, _, _ in fit([1.0, 1.0, 1.0], polish, ("T0", "T1", "T0")).batches]
    assert costs == [0, 0, 0, 0, 0.2, 0.2]
    assert polish.since == 4


def test_without_annealing_all_stays_and_training_goes_on():
    batches = fit([1.0] * 4, Polish(0.9, batches=1, ent_target=0.5, step_cost=0.2, anneal=False)).batches
    assert batches == [(0, 1.0, 0.01)] * 2 + [(0.2, 0.5, 0.01)] * 6


def test_learning_rate_entropy_and_cost_fall_and_training_stops():
    polish = Polish(0.9, batches=5, ent_target=0.5, step_cost=0.2)
    batches = fit([1.0] * 9, polish).batches
    assert batches[:2] == [(0, 1.0, 0.01)] * 2
    costs, targets, rates = zip(*batches[2:], strict=True)  # 5 batches, and one more to the end of the epoch
    assert costs == pytest.approx([0.2 * share for share in (1, 0.75, 0.5, 0.25, 0.25, 0.25)])
    assert targets == pytest.approx([0.5 * share for share in (1, 0.8, 0.6, 0.4, 0.2, 0.1)])
    assert rates == pytest.approx([0.01 * share for share in (1, 0.8, 0.6, 0.4, 0.2, 0.02)])
    assert polish.over


def test_the_entropy_is_left_alone_where_that_is_asked_for():
    assert {target for _, target, _ in fit([1.0] * 3, Polish(0.9, step_cost=0.2)).batches} == {1.0}


@pytest.mark.parametrize(
    "state", [{"since": -1, "over": False}, {"since": "now", "over": False}, {"since": 3, "over": None}]
)
def test_what_a_checkpoint_says_must_be_a_number_of_batches(state):
    with pytest.raises(ValueError, match="polishing is at"):
        Polish().load_state_dict(state)
