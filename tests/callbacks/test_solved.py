"""Stopping when all is solved."""

import pytest
import torch
from lightning.pytorch import Trainer

from toolagent_pl.callbacks import StopWhenSolved
from toolagent_pl.metrics import StageResult
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class LuckySample(ToolAgent):
    """Validates on problems that happen to come out right."""

    def results(self):
        results = super().results()
        right = sum(one.tried for one in results) < 10
        return [one._replace(correct=one.tried, plan_length=1.0) for one in results] if right else results


class Solved(ToolAgent):
    """Is right about everything, some of it in a roundabout way."""

    plan_length = 1.0

    def results(self):
        return [one._replace(correct=one.tried, plan_length=self.plan_length) for one in super().results()]


class Roundabout(Solved):
    plan_length = 1.5


def fit(path, module, solved, **options):
    trainer = Trainer(accelerator="cpu", callbacks=[solved], default_root_dir=path, **QUIET, **options)
    checkpoint = path / "last.ckpt" if (path / "last.ckpt").exists() else None
    trainer.fit(module, ProblemDataModule(batch_size=8, batches_per_epoch=1, val_problems=1), ckpt_path=checkpoint)
    trainer.save_checkpoint(path / "last.ckpt")
    return trainer


def test_a_sample_without_mistakes_does_not_end_a_run(tmp_path):
    solved = StopWhenSolved()
    assert fit(tmp_path, LuckySample(), solved, max_epochs=2).global_step == 2
    assert not solved.solved
    assert solved.results == []


def test_plans_that_are_too_long_do_not_end_a_run(tmp_path):
    assert fit(tmp_path, Roundabout(), StopWhenSolved(plan_length=1.4), max_epochs=2).global_step == 2


def test_plans_that_are_short_enough_do(tmp_path):
    solved = StopWhenSolved(plan_length=1.5)
    assert fit(tmp_path, Roundabout(), solved, max_epochs=2).global_step == 1
    assert [one.name for one in solved.results] == ["T0", "T1", "T2"]
    assert [one.tried for one in solved.results] == [1000, 10_000, 100_000]


@pytest.mark.parametrize(("accuracy", "plan_length"), [(0.9, None), (0.9, 1.1), (0.7, 1.3)])
def test_what_is_just_good_enough_is_good_enough(accuracy, plan_length):
    """Validation tells it in float32, which is a little less or a little more than what was asked for."""
    solved = StopWhenSolved(accuracy, plan_length)
    told = [float(torch.tensor(number)) for number in (accuracy, plan_length or 9.0)]
    assert solved._enough(StageResult("T0", 1, *told, 0.0))
    assert not solved._enough(StageResult("T0", 1000, int(1000 * accuracy) - 1, 1.0, 0.0))
    assert not StopWhenSolved()._enough(StageResult("T0", 1_000_000, 999_999, 1.0, 0.0))


def test_without_a_wanted_accuracy_a_run_goes_on(tmp_path):
    assert fit(tmp_path, Solved(), StopWhenSolved(None), max_epochs=2).global_step == 2


def test_a_run_that_was_killed_when_all_was_solved_does_not_go_on(tmp_path):
    assert fit(tmp_path, Solved(), StopWhenSolved(), max_epochs=5).global_step == 1
    again = StopWhenSolved()
    assert fit(tmp_path, Solved(), again, max_epochs=5).global_step == 1
    assert again.solved


def test_what_a_checkpoint_says_must_be_yes_or_no():
    with pytest.raises(ValueError, match="solved is 'maybe'"):
        StopWhenSolved().load_state_dict({"solved": "maybe"})
