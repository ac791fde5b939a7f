"""A run that is stopped anywhere ends with the same weights as one that was not."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import BLIND
from tests.forked import Forked
from tests.training.compare import curves, difference, end_of
from toolagent_pl.cli.main import main

# 70 batches in epochs of 10; a checkpoint every 7 batches falls anywhere in an epoch, and on the end of the last.
OPTIONS = [
    BLIND,
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=7",
    "--data.batch_size=64",
    "--data.val_problems=50",
]
OPTIONS += ["--checkpoint.every_n_batches=7", "--curriculum.every_n_epochs=2", "--trainer.log_every_n_steps=1"]
OPTIONS += ["--env.stages=[T0,T1]", "--env.max_steps=4", "--solved.accuracy=null", "--annealing.at=null"]
OWN = """
from lightning.pytorch import Callback
from toolagent_pl.rl.a2c import A2C

class Twice(A2C):
    epochs = 2
    minibatches = 2

class Steered(Twice):
    def __init__(self):
        super().__init__(ent_coef=0.02, ent_target=0.9)

class Killed(Callback):
    '''In the middle of an update, three batches behind a checkpoint that lies in the middle of an epoch.'''

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if module.batches_seen == 24:
            raise SystemExit("killed")
"""


def start(directory: Path, *options: str) -> Forked:
    return Forked(directory, ["fit", *OPTIONS, *options])


def finish(directory: Path, *options: str) -> str:
    process = start(directory, *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def last(directory: Path) -> Path:
    return directory / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


def batches_of(path: Path) -> int:
    batches: int = torch.load(path, weights_only=True)["toolagent_pl"]["batches_seen"]
    return batches


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    finish(directory)
    return directory


def wait_for_step(directory: Path, step: int, process: Forked | subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of at least ``step`` batches is there. Reading it must never fail."""
    for _ in range(6000):
        assert process.poll() is None, process.communicate()[0]
        if last(directory).exists() and batches_of(last(directory)) >= step:
            return
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


def test_killed_again_and_again_it_ends_the_same(tmp_path, uninterrupted):
    draw = random.Random(0)
    resume: list[str] = []
    for step in (7, 28, 49):
        process = start(tmp_path, *resume)
        wait_for_step(tmp_path, step, process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        resume = ["--ckpt_path=last"]
    output = finish(tmp_path, *resume)
    assert "resum" not in output.lower()  # Lightning warns of loaders that it cannot resume
    assert difference(end_of(tmp_path), end_of(uninterrupted)) is None
    # One curve: every update once, with the same values.
    assert curves(tmp_path) == curves(uninterrupted)


ANNEALING = ["--env.stages=[T0]", "--annealing.at=0.01", "--annealing.ent_target=0.6", "--annealing.step_cost=0.1"]


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        (["--model.algorithm=own.Twice"], 4),
        (["--model.algorithm=own.Steered"], 4),
        (["--model.algorithm=PPO", "--model.accumulate=2", "--model.algorithm.ent_target=0.5"], 4),
        (["--model.replay=SuccessReplay", "--model.algorithm.ent_target=0.5"], 4),
        ([*ANNEALING, "--annealing.decay=false"], 4),
        ([*ANNEALING, "--annealing.batches=25", "--annealing.decay=true", "--model.algorithm=own.Twice"], 7),
    ],
    ids=["several updates a batch", "entropy is steered", "PPO in parts", "replay", "annealing", "annealing to an end"],
)
def test_whatever_a_batch_does_it_ends_the_same(tmp_path, monkeypatch, options, epochs):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    fit = ["fit", *OPTIONS, *options, f"--trainer.max_epochs={epochs}"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for directory in (whole, stopped):
        directory.mkdir()
    monkeypatch.chdir(whole)
    main(fit)
    monkeypatch.chdir(stopped)
    with pytest.raises(SystemExit, match="killed"):
        main([*fit, "--trainer.callbacks=own.Killed"])
    assert batches_of(last(stopped)) == 21
    main([*fit, "--ckpt_path=last"])
    found = curves(stopped)
    assert difference(end_of(stopped), end_of(whole)) is None
    assert found == curves(whole)
    # The test does what its name says.
    steered = len({value for _, value in found["train/ent_coef"]}) > 10
    assert steered == (options != ["--model.algorithm=own.Twice"])
    annealed = [step for step, value in found["train/annealing"] if float(value)]
    assert bool(annealed) == (ANNEALING[0] in options)
    if epochs == 7:
        assert len(found["train/reward"]) == 40
        assert float(found["train/learning_rate"][-1][1]) == pytest.approx(0.006 * 0.02)
        main([*fit, "--ckpt_path=last"])  # there is nothing left to do
        assert batches_of(last(stopped)) == 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_told_to_stop_it_saves_and_goes_on_later(tmp_path, uninterrupted, number):
    process = start(tmp_path)
    wait_for_step(tmp_path, 14, process)
    told = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - told < 5
    assert process.returncode == 128 + number
    saved, words = output.splitlines()[-1].split(". To go on: python -m toolagent_pl ")
    assert tmp_path / saved.removeprefix("Stopped; all is saved in ") == last(tmp_path)
    process = Forked(tmp_path, words.split())
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert difference(end_of(tmp_path), end_of(uninterrupted)) is None
