"""Whether a run that is killed again and again ends with the same bits as one that was left alone.

Runs are killed (SIGKILL) at random moments: at any time of the training, while a checkpoint is being written, and
while a process starts. After each kill ``last.ckpt`` must be readable, and the run goes on with ``--ckpt_path=auto``.
Each run is told to stop (SIGTERM) once, too. Of two ranks one is killed each time, and the other must not stay.
``CHAOS_KILLS`` is the number of kills, ``CHAOS_SEED`` another choice of moments.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.compare import difference, end_of
from tests.training.test_ranks import family, is_running

pytestmark = pytest.mark.long
KILLS = int(os.environ.get("CHAOS_KILLS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
KILLS_OF_A_RUN = 10
EVERY_N_BATCHES = 7
FIT = ["--trainer.accelerator=cpu", "--trainer.max_epochs=20", "--data.batch_size=64", "--data.val_problems=50"]
FIT += ["--data.batches_per_epoch=10", "--env.stages=[E1,T0]", "--env.unseen=[]", "--data.test_problems=50"]
FIT += ["--curriculum.stages=[E1,T0]", "--curriculum.ent_targets=null", "--curriculum.every_n_epochs=2"]
FIT += ["--annealing.at=0.01", "--annealing.batches=100", "--solved.accuracy=null"]
FIT += ["--trainer.enable_progress_bar=false"]
FIT += [f"--checkpoint.every_n_batches={EVERY_N_BATCHES}", "--trainer.callbacks=chaos_batches.Batches"]
FIT += ["--ckpt_path=auto"]
CALLBACK = """
import os

from lightning.pytorch import Callback


class Batches(Callback):
    def on_train_batch_end(self, trainer, module, *args):
        if trainer.is_global_zero:
            with open(os.environ["CHAOS_BATCHES"], "a") as file:
                file.write(f"{module.batches_seen}\\n")
"""
ROOT = Path(__file__).parents[2]
ANY_TIME, WRITING, STARTING, TOLD, TO_THE_END = "any time", "writing", "starting", "told to stop", "to the end"
POLL = 0.0005  # seconds; a checkpoint is written in a few milliseconds
PATIENCE = 600.0  # seconds for a run to get to its end
SURVIVAL = 30.0  # seconds that ranks may outlive one that was killed


class Run:
    """A training run in a directory of its own, of as many processes as it takes."""

    def __init__(self, directory: Path, ranks: int) -> None:
        self.directory, self.ranks, self.attempts, self.furthest = directory, ranks, 0, 0
        directory.mkdir()
        (directory / "chaos_batches.py").write_text(CALLBACK)

    def found(self, name: str) -> Path | None:
        """A file among its checkpoints, if it is there."""
        return next(self.directory.glob(f"lightning_logs/version_*/checkpoints/{name}"), None)

    def state(self) -> dict:
        """The last checkpoint; none is as good as one of no batches."""
        path = self.found("last.ckpt")
        return torch.load(path, weights_only=True) if path else {"toolagent_pl": {"batches_seen": 0}}

    def attempt(self, how: str, seconds: float = 0.0, rank: int | None = None) -> bool:
        """Start a process, and do something to it after some seconds of training, or of starting; whether it got to
        its end before that.
        """
        self.attempts += 1
        batches, printed = (self.directory / f"{name}{self.attempts}" for name in ("batches", "printed"))
        if unfinished := self.found(".last.ckpt.unfinished"):
            unfinished.unlink()  # one that is there later is being written later
        command = [sys.executable, "-m", "toolagent_pl", "fit", *FIT, f"--trainer.devices={self.ranks}"]
        command += ["--trainer.strategy=ddp"] if self.ranks > 1 else []
        variables = os.environ | {"OMP_NUM_THREADS": "1", "CHAOS_BATCHES": str(batches)}
        variables["PYTHONPATH"] = f"{self.directory}{os.pathsep}{ROOT}"
        with printed.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.directory, env=variables, stdout=file, stderr=subprocess.STDOUT
            )
            if how != STARTING:
                wait(lambda: process.poll() is not None or batches.exists(), PATIENCE)
            if how != TO_THE_END:
                wait(lambda: process.poll() is not None, seconds)
            if how == WRITING:
                wait(lambda: process.poll() is not None or self.found(".last.ckpt.unfinished") is not None, PATIENCE)
            pids = family(process)
            ended = process.poll() is not None
            if how != TO_THE_END and not ended:
                for pid in pids if rank is None else pids[rank : rank + 1] or pids[:1]:
                    os.kill(pid, signal.SIGTERM if how == TOLD else signal.SIGKILL)
            limit = PATIENCE if how == TO_THE_END else SURVIVAL
            gone = wait(lambda: process.poll() is not None and not any(map(is_running, pids[1:])), limit)
            for pid in [] if gone else pids:
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        tail = " | ".join(printed.read_text().strip().splitlines()[-3:])
        assert gone, f"not all ranks had ended {limit:g} s after: {how}, rank {rank}: {tail}"
        saved = self.state()["toolagent_pl"]["batches_seen"]  # it must be readable
        made = [int(line) for line in batches.read_text().split()] if batches.exists() else []
        self.furthest = max([self.furthest, *made])
        if how == TO_THE_END or ended:
            assert process.returncode == 0, tail
        elif how == TOLD:
            assert process.returncode in (0, 128 + signal.SIGTERM), tail
            assert saved >= made[-1], f"{made[-1] - saved} batches lost after SIGTERM"
        else:
            assert self.furthest - saved <= EVERY_N_BATCHES, f"{self.furthest - saved} batches lost"
        print(f"{how}, rank {rank}: at batch {made[-1] if made else None}, saved {saved}", flush=True)
        return ended or process.returncode == 0


def wait(condition, limit: float) -> bool:
    """Wait until something is true, at most so many seconds; whether it is."""
    deadline = time.monotonic() + limit
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(POLL)
    return true


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, ranks):
    draw = random.Random(SEED)
    alone = Run(tmp_path / "alone", ranks)
    start = time.monotonic()
    alone.attempt(TO_THE_END)
    whole = time.monotonic() - start
    for first in range(0, KILLS, KILLS_OF_A_RUN):
        kills = min(KILLS_OF_A_RUN, KILLS - first)
        hows = draw.choices([ANY_TIME, WRITING, STARTING], [6, 3, 1], k=kills)
        hows.insert(draw.randrange(kills + 1), TOLD)
        run = Run(tmp_path / f"run{first}", ranks)
        for how in hows:
            rank = draw.randrange(ranks) if how != TOLD else draw.choice([None, 0])
            if run.attempt(how, draw.uniform(0, whole / (kills + 1)), rank):
                break  # it got to its end before its time had come
        run.attempt(TO_THE_END)
        assert difference(end_of(run.directory), end_of(alone.directory)) is None
