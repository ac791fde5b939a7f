"""A run that is stopped anywhere ends with the same weights as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.test_cli import CONFIGS
from toolagent_pl.cli import main

# 70 updates in epochs of 10; a checkpoint every 7 updates falls anywhere in an epoch, and on the end of the last.
OPTIONS = ["--trainer.accelerator=cpu", "--trainer.max_epochs=7", "--data.batch_size=64", "--data.val_problems=50"]
OPTIONS += ["--checkpoint.every_n_train_steps=7", "--curriculum.every_n_epochs=2", "--trainer.log_every_n_steps=1"]


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "toolagent_pl", "fit", *OPTIONS, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(directory: Path, *options: str) -> str:
    process = start(directory, *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def last(directory: Path) -> Path:
    return directory / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


def same(one: Path, other: Path) -> bool:
    """Whether two finished runs are bit for bit in the same state."""
    states = [torch.load(path, weights_only=True) for path in (one, other)]
    weights = [state["state_dict"] for state in states]
    moments = [[m for p in state["optimizer_states"][0]["state"].values() for m in p.values()] for state in states]
    return (
        states[0]["global_step"] == states[1]["global_step"] == 70
        and states[0]["callbacks"]["CurriculumCallback"] == states[1]["callbacks"]["CurriculumCallback"]
        and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        and all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    finish(directory)
    return directory


def wait_for_step(directory: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of at least ``step`` is there. Reading it must never fail."""
    for _ in range(6000):
        assert process.poll() is None, process.communicate()[0]
        if last(directory).exists() and torch.load(last(directory), weights_only=True)["global_step"] >= step:
            return
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


def test_killed_again_and_again_it_ends_the_same(tmp_path, uninterrupted):
    draw = random.Random(0)
    resume: list[str] = []
    for step in (7, 21, 42, 56):
        process = start(tmp_path, *resume)
        wait_for_step(tmp_path, step, process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        resume = ["--ckpt_path=last"]
    output = finish(tmp_path, *resume)
    assert "resum" not in output.lower()  # Lightning warns of loaders that it cannot resume
    assert same(last(tmp_path), last(uninterrupted))
    # One curve: every update once, with the same values.
    assert curve(tmp_path) == curve(uninterrupted)


def curve(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(directory / "lightning_logs" / "version_0"), size_guidance={"scalars": 0})
    events.Reload()
    names = ("train/reward", "train/entropy", "val/T0_accuracy", "val/T2_accuracy", "train/stage")
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_told_to_stop_it_saves_and_goes_on_later(tmp_path, uninterrupted, number):
    process = start(tmp_path)
    wait_for_step(tmp_path, 14, process)
    told = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert time.monotonic() - told < 5
    assert process.returncode == 128 + number
    finish(tmp_path, "--ckpt_path=last")
    assert same(last(tmp_path), last(uninterrupted))


def test_going_on_with_other_problems_is_refused(uninterrupted, monkeypatch, capsys):
    monkeypatch.chdir(uninterrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *OPTIONS, "--ckpt_path=last", "--data.batch_size=128"])
    assert stopped.value.code == 2
    assert "data.batch_size: got 128, expected 64 as in the checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    process = start(tmp_path)
    wait_for_step(tmp_path, 7, process)
    process.kill()
    process.communicate()
    before = last(tmp_path).read_bytes()
    (last(tmp_path).parent / ".last.ckpt.unfinished").unlink(missing_ok=True)
    (last(tmp_path).parent / ".last.ckpt.unfinished").mkdir()  # stands in the way of the new file, for root too
    process = start(tmp_path, "--ckpt_path=last")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert f"checkpoint: cannot write {last(tmp_path)} (Is a directory); the one before it is intact" in output
    assert last(tmp_path).read_bytes() == before
