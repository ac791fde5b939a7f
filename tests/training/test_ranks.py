"""Ranks start, stop and fail together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import CONFIGS
from tests.forked import start_ranks
from tests.training.compare import difference, end_of
from tests.training.test_resume import OPTIONS, batches_of, last, wait_for_step
from toolagent_pl.training import ranks

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.logger=false"]
CALLBACKS = """
import os
import signal
import time
from pathlib import Path
import torch
from lightning.pytorch import Callback

class SlowValidation(Callback):
    def on_validation_start(self, trainer, module):
        Path("validating").touch()
        time.sleep(0.5)

class KilledOnce(Callback):
    def on_train_batch_start(self, trainer, *args):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and trainer.global_rank == 1 and trainer.lightning_module.batches_seen == 45:
            os.kill(os.getpid(), signal.SIGKILL)

class OtherWeights(Callback):
    def on_validation_start(self, trainer, module):
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            with torch.no_grad():
                next(module.parameters()).view(-1)[0] += 1e-6
"""


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    """As anyone starts it, in an interpreter of its own, which starts the other rank."""
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    command = [sys.executable, "-m", "toolagent_pl", "fit", *OPTIONS, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def family(process: subprocess.Popen[str]) -> list[int]:
    """A run's main process and the ranks that it started."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    return [process.pid, *(int(row[0]) for row in rows if int(row[1]) == process.pid and "toolagent_pl" in row[2])]


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def assert_stopped(process: subprocess.Popen[str], pids: list[int], number: int) -> None:
    told = time.monotonic()
    for pid in pids:
        os.kill(pid, number)
    output, _ = process.communicate(timeout=60)  # until all ranks are gone: they share its output
    assert time.monotonic() - told < 5
    assert process.returncode == 128 + number, output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    for process in start_ranks(directory, 2, ["fit", *OPTIONS, "--trainer.logger=false"]):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    return directory


def test_a_run_of_two_ranks_that_is_told_to_stop_ends_the_same(tmp_path, uninterrupted):
    process = start(tmp_path, *TWO)
    wait_for_step(tmp_path, 14, process)
    main, _ = family(process)
    assert_stopped(process, [main], signal.SIGTERM)
    stopped = batches_of(last(tmp_path))
    assert 14 <= stopped < 69

    # The resumed run listens as well. Now all ranks are told, as by SLURM, and while they validate.
    (tmp_path / "callbacks.py").write_text(CALLBACKS)
    process = start(tmp_path, *TWO, "--ckpt_path=last", "--trainer.callbacks=callbacks.SlowValidation")
    while not (tmp_path / "validating").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    assert_stopped(process, family(process), signal.SIGUSR1)
    assert stopped < batches_of(last(tmp_path)) < 70

    process = start(tmp_path, *TWO, "--ckpt_path=last")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert difference(end_of(tmp_path), end_of(uninterrupted)) is None


def test_torchrun_brings_back_a_run_whose_rank_was_killed(tmp_path, uninterrupted):
    (tmp_path / "callbacks.py").write_text(CALLBACKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1", "--standalone"]
    command += ["-m", "toolagent_pl", "fit", *OPTIONS, *TWO, "--ckpt_path=auto"]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    run = subprocess.run(
        [*command, "--trainer.callbacks=callbacks.KilledOnce"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Restoring states from the checkpoint" in run.stderr
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert difference(end_of(tmp_path), end_of(uninterrupted)) is None


def test_ranks_that_differ_stop_the_run(tmp_path):
    (tmp_path / "callbacks.py").write_text(CALLBACKS)
    process = start(tmp_path, *TWO, "--trainer.callbacks=callbacks.OtherWeights", "--data.batches_per_epoch=2")
    output, _ = process.communicate(timeout=60)  # until all ranks are gone: they share its output
    assert process.returncode == 1, output
    assert "Traceback" not in output
    (line,) = (line for line in output.splitlines() if "error" in line)
    assert line.startswith("error: step 4: weights of rank 1 differ from rank 0")


def test_a_rank_that_is_killed_ends_the_run(tmp_path):
    process = start(tmp_path, *TWO)
    wait_for_step(tmp_path, 7, process)
    os.kill(family(process)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert "another rank is gone" in output


def test_a_rank_does_not_outlive_the_one_that_started_it(tmp_path):
    # The started rank waits for something that never comes, as in a reduction on GPUs.
    (tmp_path / "rank.py").write_text(
        "import os, runpy, subprocess, sys, time\n"
        f"with runpy.run_path({ranks.__file__!r})['ending_with_parent']():\n"
        "    if 'LOCAL_RANK' in os.environ:\n"
        "        print(os.getpid(), flush=True)\n"
        "    else:\n"
        "        subprocess.Popen([sys.executable, __file__], env={**os.environ, 'LOCAL_RANK': '1'})\n"
        "    time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "rank.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    second = int(first.stdout.readline())
    time.sleep(1.5 * ranks.LOOK)
    assert is_running(second)
    first.kill()
    first.communicate(timeout=10)  # until both are gone: they share the output
    assert not is_running(second)


def test_a_rank_that_ends_waits_for_those_that_it_started(monkeypatch):
    monkeypatch.setattr(ranks, "GRACE", 0.1)
    at_work, hanging = (subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({s})"]) for s in (0.5, 60))
    for rank, failed, code in ((at_work, False, 0), (hanging, True, -signal.SIGKILL)):
        launcher = SimpleNamespace(procs=[rank])
        ranks.wait_for_ranks(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)), failed)
        assert rank.returncode == code
        assert bool(launcher.procs) != failed  # Lightning no longer looks at it
