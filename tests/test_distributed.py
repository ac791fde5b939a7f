"""Two ranks on the CPU do what one rank does."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.test_cli import CONFIGS

CALLBACK = """
import torch
from lightning.pytorch import Callback

class Dump(Callback):
    def on_train_end(self, trainer, module):
        metrics, mixture = trainer.callback_metrics, trainer.datamodule.mixture
        state = {"weights": module.state_dict(), "mixture": mixture, "metrics": metrics}
        torch.save(state, f"rank{trainer.global_rank}.pt")
"""


def train(directory: Path, ranks: int, *options: str) -> list[dict]:
    """What each rank ends with after six updates in three epochs, the curriculum moving on after each."""
    directory.mkdir()
    (directory / "dump.py").write_text(CALLBACK)
    command = [sys.executable, "-m", "toolagent_pl", "fit", "--trainer.accelerator=cpu", f"--trainer.devices={ranks}"]
    command += [f"--trainer.strategy={'ddp' if ranks > 1 else 'auto'}", "--trainer.callbacks=dump.Dump"]
    command += ["--trainer.max_epochs=3", "--data.batches_per_epoch=2", "--data.val_problems=101"]
    command += ["--curriculum.every_n_epochs=1", "--curriculum.advance_at=null", "--trainer.log_every_n_steps=2"]
    environment = {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{CONFIGS.parent}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, *options], cwd=directory, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(directory / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


def distance(one: dict, other: dict) -> float:
    return max(float((one["weights"][name] - other["weights"][name]).abs().max()) for name in one["weights"])


def test_two_ranks_equal_each_other_and_one_rank_with_the_whole_batch(tmp_path):
    first, second = train(tmp_path / "two", 2, "--data.batch_size=128")
    (whole,) = train(tmp_path / "whole", 1, "--data.batch_size=128")
    (half,) = train(tmp_path / "half", 1, "--data.batch_size=64")
    assert distance(first, second) == 0
    assert first["mixture"] == second["mixture"] == whole["mixture"]
    # Problems, action noise, advantages and gradients do not depend on the split: only rounding does.
    assert distance(first, whole) < 1e-5
    assert distance(first, half) > 1e-3
    for name in ("val/T0_accuracy", "val/T2_accuracy", "val/T1_reward", "train/reward", "train/entropy"):
        assert first["metrics"][name] == second["metrics"][name]
        torch.testing.assert_close(first["metrics"][name], whole["metrics"][name])
