"""Two ranks on the CPU do what one rank does."""

import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.conftest import BLIND
from tests.forked import start_ranks

CALLBACK = """
import os
import signal
import torch
from lightning.pytorch import Callback
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.rl import A2C

class Idle(BlindAgent):
    def __init__(self, env, d: int = 96):
        super().__init__(env, d=d)
        self.unused = torch.nn.Linear(3, 3)

class Twice(A2C):
    epochs = 2
    minibatches = 2

class Dump(Callback):
    gradients, problems = {}, {}

    def on_train_batch_start(self, trainer, module, problems, batch_idx):
        if module.batches_seen == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        self.problems[module.batches_seen] = torch.cat([problems.number[:, None], problems.operands], 1)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients[trainer.global_step] = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()]
        )

    def on_train_end(self, trainer, module):
        metrics, mixture = trainer.callback_metrics, trainer.datamodule.mixture
        state = (module.state_dict(), mixture, metrics, self.gradients, self.problems, float(module.ent_coef))
        torch.save(state, f"rank{trainer.global_rank}.pt")
"""


ANNEALED = ["--annealing.at=0.001", "--annealing.batches=2", "--annealing.downsample=0.5", "--annealing.average=0.5"]
ANNEALED += ["--trainer.max_epochs=3"]


class Rank(NamedTuple):
    """What a rank ends with, and what it saw: the gradients of each update before they are clipped, the problems."""

    weights: dict[str, Tensor]
    mixture: list[float]
    metrics: dict[str, Tensor]
    gradients: dict[int, Tensor]
    problems: dict[int, Tensor]
    ent_coef: float


def train(directory: Path, ranks: int, *options: str, kill_at: int = -1) -> list[Rank]:
    """What each rank ends with after six batches in three epochs, the curriculum moving on after each."""
    directory.mkdir(exist_ok=True)
    (directory / "dump.py").write_text(CALLBACK)
    command = ["fit", BLIND, "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.callbacks=dump.Dump"]
    command += ["--trainer.max_epochs=3", "--data.batches_per_epoch=2", "--data.val_problems=101"]
    command += ["--curriculum.every_n_epochs=1", "--curriculum.advance_at=null", "--trainer.log_every_n_steps=2"]
    command += ["--checkpoint.every_n_batches=3", "--annealing.at=null", "--solved.accuracy=null"]
    command += ["--env.stages=[T0,T1]", "--env.max_steps=4", "--model.algorithm.ent_target=1.2"]
    for process in start_ranks(directory, ranks, [*command, *options], KILL_AT=str(kill_at)):
        output, _ = process.communicate(timeout=240)
        assert process.returncode == (-signal.SIGKILL if kill_at >= 0 else 0), output[-3000:]
    if kill_at >= 0:
        return []
    return [Rank(*torch.load(directory / f"rank{rank}.pt", weights_only=False)) for rank in range(ranks)]


def distance(one: Rank, other: Rank) -> float:
    return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)


def assert_same_gradients(whole: Rank, first: Rank, second: Rank, updates: int, tolerance: float) -> None:
    """Each is compared to its own size."""
    assert len(whole.gradients) == len(first.gradients) == updates
    for step, gradient in whole.gradients.items():
        assert float(gradient.norm()) > 0.01
        assert torch.equal(first.gradients[step], second.gradients[step])
        torch.testing.assert_close(first.gradients[step], gradient, rtol=0, atol=tolerance * float(gradient.norm()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Rank:
    """One rank with the whole batch."""
    return train(tmp_path_factory.mktemp("whole"), 1, "--data.batch_size=128")[0]


def test_two_ranks_equal_each_other_and_one_rank_with_the_whole_batch(tmp_path, whole):
    first, second = train(tmp_path / "two", 2, "--data.batch_size=128")
    (half,) = train(tmp_path / "half", 1, "--data.batch_size=64")
    assert distance(first, second) == 0
    assert first.mixture == second.mixture == whole.mixture
    # Problems, action noise, advantages and gradients do not depend on the split: only rounding does.
    assert distance(first, whole) < 1e-5
    assert distance(first, half) > 1e-3
    assert first.ent_coef == second.ent_coef == whole.ent_coef != 0.05
    # Weights drift apart by rounding, so later steps agree less.
    assert_same_gradients(whole, first, second, 6, 1e-5)
    for name in ("val/T0_accuracy", "val/T1_accuracy", "val/T1_reward", "train/reward", "train/entropy"):
        assert first.metrics[name] == second.metrics[name]
        torch.testing.assert_close(first.metrics[name], whole.metrics[name])


@pytest.mark.parametrize(
    "options",
    [
        ["--model.algorithm=dump.Twice", "--model.accumulate=3"],
        ["--model.accumulate=50"],
        ["--model.replay=SuccessReplay"],
        ANNEALED,
    ],
    ids=["several updates, each in parts", "parts of different sizes", "successes are imitated", "annealed to its end"],
)
def test_however_a_batch_is_learned_from_two_ranks_do_what_one_does(tmp_path, options):
    """Minibatches are the same for any number of ranks, advantages are normalised over all of them."""
    updates = {"--model.algorithm=dump.Twice": 16, "--model.replay=SuccessReplay": 8, ANNEALED[0]: 6}.get(options[0], 4)
    options = ["--data.batch_size=128", "--trainer.max_epochs=2", *options]
    (whole,) = train(tmp_path / "whole", 1, *options)
    first, second = train(tmp_path / "two", 2, *options)
    assert_same_gradients(whole, first, second, updates, 1e-4)
    assert distance(first, second) == 0
    assert distance(first, whole) < 1e-4
    for name in ("train/policy_loss", "train/entropy", "train/gradient_norm"):
        assert first.metrics[name] == second.metrics[name]
        torch.testing.assert_close(first.metrics[name], whole.metrics[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", ["--model.algorithm=RLOO", "--model.agent=dump.Idle"])
def test_weights_that_no_loss_uses_keep_nobody_waiting(tmp_path, option):
    """Neither a critic that the algorithm has no use for, nor a layer of an agent custom."""
    options = ["--data.batch_size=128", "--trainer.max_epochs=2", option]
    (whole,) = train(tmp_path / "whole", 1, *options)
    first, second = train(tmp_path / "two", 2, *options)
    assert distance(first, second) == 0
    assert distance(first, whole) < 1e-5


def test_a_run_of_one_rank_goes_on_with_two(tmp_path, whole):
    train(tmp_path, 1, "--data.batch_size=128", kill_at=4)
    both = train(tmp_path, 2, "--data.batch_size=128", "--ckpt_path=last")
    assert [sorted(rank.problems) for rank in both] == [[3, 4, 5]] * 2  # the last checkpoint was in mid-epoch
    for step in (3, 4, 5):
        assert torch.equal(torch.cat([rank.problems[step] for rank in both]), whole.problems[step])
    for rank in both:
        assert distance(rank, whole) < 1e-5
