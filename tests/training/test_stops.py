"""Whatever ends a run, going on with it equals a run that nothing ended: weights, states and curves, bit for bit."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import BLIND
from tests.training.compare import checkpoint_of, curves, difference, end_of, read
from toolagent_pl.cli.main import ToolAgentCLI, main
from toolagent_pl.training.media import Pictures

# 24 batches in epochs of 4; the learning rate falls, and stages change, at the ends of epochs.
OPTIONS = ["fit", BLIND, "--trainer.accelerator=cpu", "--data.batch_size=8", "--data.batches_per_epoch=4"]
OPTIONS += ["--env.stages=[{name: A, pattern: a-b}, {name: B, pattern: a+b}]", "--env.max_steps=2"]
OPTIONS += ["--curriculum.every_n_epochs=2", "--curriculum.advance_at=null", "--data.val_problems=10"]
OPTIONS += ["--optimizer=Adam", "--optimizer.lr=0.003", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2"]
OPTIONS += ["--trainer.log_every_n_steps=1", "--checkpoint.every_n_batches=2", "--model.agent.d=8"]
OPTIONS += ["--annealing.at=0.001", "--annealing.batches=9", "--annealing.decay=true", "--solved.accuracy=null"]
OPTIONS += ["--samples.per_stage=1"]
WHOLE = "--trainer.max_epochs=6"
OWN = """
import os, signal, time
from lightning.pytorch import Callback

class Ends(Callback):
    def __init__(self, at: int, how: str = "", where: str = "on_train_batch_end"):
        self.at, self.how = at, how
        setattr(self, where, self.end)

    def end(self, trainer, module, *args):
        if module.batches_seen != self.at or str(trainer.global_rank) not in os.environ.get("ENDS_ON", "01"):
            return
        if self.how == "stop":
            trainer.should_stop = True
        elif self.how == "max_time":
            time.sleep(1)
        elif self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.how])
        else:
            raise SystemExit("killed")
"""


@pytest.fixture(autouse=True)
def without_test_and_pictures(monkeypatch, tmp_path):
    """They come when all is over."""
    (tmp_path / "ends.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ends", raising=False)
    monkeypatch.setattr(ToolAgentCLI, "after_fit", lambda _: None)
    monkeypatch.setattr(Pictures, "_draw", lambda *_: None)


def run(directory: Path, monkeypatch, *options: str) -> None:
    directory.mkdir(exist_ok=True)
    monkeypatch.chdir(directory)
    with contextlib.suppress(SystemExit):
        main([*OPTIONS, *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToolAgentCLI, "after_fit", lambda _: None)
        patch.setattr(Pictures, "_draw", lambda *_: None)
        run(directory, patch, WHOLE)
    found = curves(directory)
    assert [step for step, _ in found["val/A_accuracy"]] == [3, 7, 11, 15, 19, 23]
    assert [value for _, value in found["train/stage"]] == ["0.0"] * 2 + ["1.0"] * 4
    return end_of(directory), found


def steps(number: int) -> list[str]:
    return [f"--trainer.max_steps={number}", "--trainer.max_epochs=-1"]


def ends(at: int, how: str = "", where: str = "on_train_batch_end") -> list[str]:
    names = {"at": at, "how": how, "where": where}
    return [WHOLE, "--trainer.callbacks=ends.Ends", *(f"--trainer.callbacks.{k}={v}" for k, v in names.items() if v)]


@pytest.mark.parametrize(
    "stop",
    [
        steps(6), steps(8), ["--trainer.max_epochs=2"], ends(6, "stop"), ends(8, "stop"),
        ends(8, "stop", "on_train_epoch_end"), ends(9), ends(8, "", "on_validation_end"),
        ends(8, "", "on_train_epoch_end"), ends(8, "SIGTERM", "on_validation_start"), ends(8, "SIGTERM"),
        ends(8, "SIGTERM", "on_train_epoch_end"), ends(24, "", "on_train_end"),
    ],
    ids=lambda words: " ".join(word.rpartition(".")[2] for word in words),
)  # fmt: skip
def test_going_on_after_a_stop_is_the_run(tmp_path, monkeypatch, whole, stop):
    directory = tmp_path / "stopped"
    run(directory, monkeypatch, *stop)
    if stop == steps(6):
        assert end_of(directory)["toolagent_pl"]["batches_seen"] == 6  # and not as if the epoch had ended
        assert [step for step, _ in curves(directory)["val/A_accuracy"]] == [3]
    run(directory, monkeypatch, WHOLE, "--ckpt_path=auto")
    assert difference(end_of(directory), whole[0]) is None
    assert curves(directory) == whole[1]


def test_steps_go_on_with_more_steps(tmp_path, monkeypatch, whole):
    """Several times, and with a limit on steps at the end, too."""
    directory = tmp_path / "stopped"
    for stop in (ends(9), steps(12), steps(13), steps(16), steps(24)):  # the first one behind the end of an epoch
        run(directory, monkeypatch, *stop, "--ckpt_path=auto")
    seconds = [path.name.split(".")[3] for path in directory.rglob("events.out.tfevents.*")]
    assert len(set(seconds)) == len(seconds) >= 5  # TensorBoard reads them by name: of one second, in any order
    events = read(checkpoint_of(directory).parent.parent)
    assert min(event.value for event in events.Scalars("throughput/tokens_per_second")) > 20
    assert len(events.Scalars("hp/solved")) == 1
    assert difference(end_of(directory), whole[0]) is None
    assert curves(directory) == whole[1]


def test_a_time_limit_that_is_over_changes_nothing(tmp_path, monkeypatch, whole):
    directory = tmp_path / "stopped"
    run(directory, monkeypatch, *ends(6, "stop"), "--trainer.max_time=00:10:00:00")
    before = end_of(directory)
    state = torch.load(path := Path("lightning_logs/version_0/checkpoints/last.ckpt"), weights_only=True)
    state["callbacks"]["Timer"]["time_elapsed"]["train"] = 1e6
    torch.save(state, path)
    run(directory, monkeypatch, WHOLE, "--trainer.max_time=00:10:00:00", "--ckpt_path=auto")
    assert difference(end_of(directory), before) is None
    run(directory, monkeypatch, WHOLE, "--ckpt_path=auto")
    assert difference(end_of(directory), whole[0]) is None
    assert curves(directory) == whole[1]
