"""Runs that start together from one folder keep out of each other's way."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml

from tests.conftest import BLIND
from tests.forked import Forked
from tests.training.compare import read
from toolagent_pl.training import runs as training_runs
from toolagent_pl.training.runs import take_next, writing_alone

TINY = ["fit", BLIND, "--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--data.batches_per_epoch=2"]
TINY += ["--env.stages=[T0]", "--env.max_steps=3", "--data.batch_size=8", "--data.val_problems=10"]
TINY += ["--trainer.log_every_n_steps=1", "--model.agent.d=8", "--data.test_problems=10", "--pictures.per_stage=1"]
TINY += ["--solved.accuracy=null"]


def test_each_of_many_takes_a_folder_of_its_own(tmp_path):
    (tmp_path / "version_6").mkdir()
    together = threading.Barrier(8)

    def take(_):
        together.wait()
        return [take_next(tmp_path).name for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        taken = [name for names in pool.map(take, range(8)) for name in names]
    assert sorted(taken, key=lambda name: int(name[8:])) == [f"version_{number}" for number in range(7, 167)]


def test_runs_that_start_together_are_all_there(tmp_path):
    runs = [Forked(tmp_path, [*TINY, f"--seed_everything={seed}"]) for seed in range(4)]
    for run in runs:
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
    seeds = []
    for folder in (tmp_path / "lightning_logs").iterdir():
        seeds.append(yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"])
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["toolagent_pl"]["settings"]["seed_everything"] == str(seeds[-1])
        assert [event.step for event in read(folder).Scalars("train/reward")] == [0, 1, 2, 3]
    assert sorted(seeds) == [0, 1, 2, 3]


def test_of_two_runs_that_share_a_checkpoint_one_is_refused(tmp_path):
    runs = [Forked(tmp_path, [*TINY, "--checkpoint.dirpath=kept", f"--seed_everything={seed}"]) for seed in (0, 1)]
    for run in runs:
        run.communicate(timeout=120)
    assert sorted(run.returncode for run in runs) == [0, 2]
    (winner,) = (seed for seed, run in enumerate(runs) if run.returncode == 0)
    settings = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["toolagent_pl"]["settings"]
    assert settings["seed_everything"] == str(winner)


def test_a_folder_is_free_again_when_its_run_is_over_or_killed(tmp_path, monkeypatch):
    with writing_alone(tmp_path / "kept", "checkpoint.dirpath"):
        pass
    hold = "import sys, time\nfrom pathlib import Path\nfrom toolagent_pl.training.runs import writing_alone\n"
    hold += "with writing_alone(Path(sys.argv[1]), ''):\n    print('held', flush=True)\n    time.sleep(60)\n"
    words = [sys.executable, "-c", hold, str(tmp_path / "kept")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(training_runs, "GRACE", 0.1)
        with (
            pytest.raises(ValueError, match=r"^checkpoint.dirpath: got .*kept, where a run is under way; expected"),
            writing_alone(tmp_path / "kept", "checkpoint.dirpath"),
        ):
            raise AssertionError("two write there")
        holder.send_signal(signal.SIGKILL)
    with writing_alone(tmp_path / "kept", "checkpoint.dirpath"):
        pass
