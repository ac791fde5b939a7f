"""When checkpoints are written, and that a run in Python goes on from them as if it had never stopped."""

import contextlib
import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from tests.training.compare import difference
from tests.training.counting import data, module, trainer
from toolagent_pl.rl.ppo import PPO
from toolagent_pl.training.checkpoint_callback import Checkpoint
from toolagent_pl.training.schedule import Annealing, CurriculumCallback


class Noted(Checkpoint):
    """Notes after which batches it saves."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.batches: list[int] = []

    def save_now(self, trainer) -> None:
        super().save_now(trainer)
        saved = torch.load(self.last_path, weights_only=True)["toolagent_pl"]["batches_seen"]
        assert saved == trainer.lightning_module.batches_seen
        self.batches.append(saved)


def fit(path, checkpoint, algorithm=None, **options) -> None:
    trainer(checkpoint, default_root_dir=path, **options).fit(module(algorithm=algorithm), data(batches_per_epoch=4))


def test_every_few_batches_whatever_the_epochs_and_at_the_end(tmp_path):
    checkpoint = Noted(every_n_batches=3)
    fit(tmp_path, checkpoint, max_epochs=2)
    assert checkpoint.batches == [3, 6, 8]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_several_updates_of_a_batch_are_one_batch(tmp_path):
    checkpoint = Noted(every_n_batches=3, dirpath=str(tmp_path / "there"))
    fit(tmp_path, checkpoint, PPO(epochs=2, minibatches=4), max_epochs=1)
    assert checkpoint.batches == [3, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_a_trial_of_a_few_batches_leaves_none(tmp_path):
    fit(tmp_path, Checkpoint(1), fast_dev_run=2)
    assert list(tmp_path.iterdir()) == []


class Points(Logger):
    """Keeps the points of all curves, as text, since nothing equals what is not a number."""

    name, version = "points", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[str, int, str]] = []

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        pass

    def log_metrics(self, metrics, step=None) -> None:
        self.points += [(name, step, repr(float(value))) for name, value in metrics.items() if name != "epoch"]


class Ends(Callback):
    """Ends a run after a batch, in some way."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how = at, how

    def on_train_batch_end(self, trainer, module, *args) -> None:
        if module.batches_seen == self.at and self.how == "stop":
            trainer.should_stop = True
        elif module.batches_seen == self.at and self.how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif module.batches_seen == self.at:
            raise SystemExit


def train(path, points, *callbacks, ckpt_path=None, **options) -> None:
    """Epochs of 4 batches, of 4 updates each; stages, entropy and learning rate change on the way."""
    schedule = [CurriculumCallback(every_n_epochs=1, rehearsal=0.3), Annealing(0.01, 5, 0.5, 0.1)]
    run = trainer(
        *schedule, *callbacks, Checkpoint(2), logger=points, log_every_n_steps=1, default_root_dir=path, **options
    )
    agent = module(algorithm=PPO(epochs=2, minibatches=2, ent_target=0.5))
    run.fit(agent, data(batches_per_epoch=4, batch_size=16), ckpt_path=ckpt_path)


def state_of(path):
    """The state that a run has ended with."""
    state = torch.load(path / "checkpoints/last.ckpt", weights_only=True)
    state["callbacks"].pop("Ends", None)
    return {
        name: state[name] for name in ("state_dict", "optimizer_states", "toolagent_pl", "global_step", "callbacks")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path, points = tmp_path_factory.mktemp("whole"), Points()
    train(path, points, max_epochs=6)
    assert {value for name, _, value in points.points if name == "train/annealing"} == {"0.0", "1.0"}
    return state_of(path), points.points


@pytest.mark.parametrize(
    ("callbacks", "limit"),
    [
        ([], {"max_steps": 28}), ([], {"max_steps": 32}), ([], {"max_epochs": 2}), ([Ends(7, "stop")], {}),
        ([Ends(6, "signal")], {}), ([Ends(9, "killed")], {}),
    ],
    ids=["steps, in an epoch", "steps", "epochs", "stop, in an epoch", "signal", "killed behind a checkpoint"],
)  # fmt: skip
def test_a_run_that_goes_on_is_bit_for_bit_the_run_that_never_stopped(tmp_path, whole, callbacks, limit):
    points = Points()
    with contextlib.suppress(SystemExit):
        train(tmp_path, points, *callbacks, **{"max_epochs": 6, **limit})
    done = len({step for name, step, _ in points.points if name == "train/reward"})
    assert 5 < done < 10
    train(tmp_path, points, max_epochs=6, ckpt_path=tmp_path / "checkpoints/last.ckpt")
    assert difference(state_of(tmp_path), whole[0]) is None
    assert set(points.points) == set(whole[1])
    again = len(points.points) - len(whole[1])
    assert bool(again) == (callbacks != [] and callbacks[0].how == "killed")  # what came after the checkpoint
