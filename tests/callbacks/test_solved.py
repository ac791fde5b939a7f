"""Stopping when all is solved."""

import pytest
import torch
from lightning.pytorch import Trainer

from toolagent_pl.callbacks import StopWhenSolved
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class LuckySample(ToolAgent):
    """Validates on problems that happen to come out right."""

    def results(self, prefix):
        results = super().results(prefix)
        return {name: torch.ones_like(value) for name, value in results.items()} if prefix == "val" else results


class Solved(ToolAgent):
    """Is right about everything."""

    def results(self, prefix):
        return {name: torch.ones_like(value) for name, value in super().results(prefix).items()}

    def evaluate(self, problems):
        outcome = super().evaluate(problems)
        return outcome._replace(correct=torch.ones_like(outcome.correct))


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
    assert solved.results is None


def test_a_run_that_was_killed_when_all_was_solved_does_not_go_on(tmp_path):
    assert fit(tmp_path, Solved(), StopWhenSolved(), max_epochs=5).global_step == 1
    again = StopWhenSolved()
    assert fit(tmp_path, Solved(), again, max_epochs=5).global_step == 1
    assert again.solved


def test_what_a_checkpoint_says_must_be_yes_or_no():
    with pytest.raises(ValueError, match="solved is 'maybe'"):
        StopWhenSolved().load_state_dict({"solved": "maybe"})
