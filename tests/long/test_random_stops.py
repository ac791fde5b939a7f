"""Stops of every kind, drawn at random, several in a row: going on after them equals a run that nothing stopped.

Weights, states and curves are compared, bit for bit. ``STOPS`` is the number of stops, ``STOPS_SEED`` another choice,
``STOPS_OF_RANKS`` the number of stops of two ranks.
"""

import os
import random
from pathlib import Path

import pytest

from tests.forked import Forked, start_ranks
from tests.training.compare import curves, difference, end_of
from tests.training.test_stops import OPTIONS, OWN, WHOLE, run, whole, without_test_and_pictures  # noqa: F401

pytestmark = pytest.mark.long
STOPS = int(os.environ.get("STOPS", "50"))
STOPS_OF_RANKS = int(os.environ.get("STOPS_OF_RANKS", "4"))
SEED = int(os.environ.get("STOPS_SEED", "0"))
PATIENCE = 120  # seconds
BATCHES, EPOCH = 24, 4
MAX_IN_A_ROW = 4
BATCH_HOOKS = ["on_train_batch_start", "on_before_zero_grad", "on_before_optimizer_step", "on_train_batch_end"]
EPOCH_HOOKS = ["on_train_epoch_start", "on_validation_start", "on_validation_batch_start", "on_validation_batch_end"]
EPOCH_HOOKS += ["on_validation_epoch_end", "on_validation_end", "on_train_epoch_end", "on_train_end"]
ANY_TIME = ["on_save_checkpoint", "on_train_start"]  # of these a signal in this process would be the end of it
KINDS = ["max_steps", "max_epochs", "max_time", "stop", "SIGTERM", "SIGINT", "exit", "kill"]
OF_ONE_RANK = ("SIGTERM", "SIGINT", "exit", "kill")  # the others have to end, too


def draw_stop(rng: random.Random) -> tuple[str, list[str]]:
    """A kind of stop, and the options that bring it about; a callback may never come to its batch."""
    kind = rng.choice(KINDS)
    if kind == "max_steps":
        at = rng.choice([rng.randrange(1, BATCHES + 1), EPOCH * rng.randrange(1, BATCHES // EPOCH + 1)])
        return kind, [f"--trainer.max_steps={at}", "--trainer.max_epochs=-1"]
    if kind == "max_epochs":
        return kind, [f"--trainer.max_epochs={rng.randrange(1, BATCHES // EPOCH + 1)}"]
    hooks = rng.choice([BATCH_HOOKS, EPOCH_HOOKS, ANY_TIME if kind in ("exit", "kill") else BATCH_HOOKS])
    at = rng.randrange(0 if hooks is BATCH_HOOKS else 1, BATCHES)
    if hooks is EPOCH_HOOKS:
        at = EPOCH * rng.randrange(1, BATCHES // EPOCH + 1)
    options = [WHOLE, "--trainer.callbacks=ends.Ends", f"--trainer.callbacks.at={at}"]
    options += [f"--trainer.callbacks.how={kind}", f"--trainer.callbacks.where={rng.choice(hooks)}"]
    return kind, [*options, *(["--trainer.max_time=00:00:00:01"] if kind == "max_time" else [])]


def rows(left: int) -> list[list[tuple[str, list[str]]]]:
    """So many stops, some in a row, one list for each run."""
    rng, found = random.Random(SEED), []
    while left:
        count = min(left, rng.randrange(1, MAX_IN_A_ROW + 1))
        found.append([draw_stop(rng) for _ in range(count)])
        left -= count
    return found


def run_ranks(directory: Path, *options: str, **variables: str) -> None:
    """Two ranks, to their ends."""
    directory.mkdir(exist_ok=True)
    (directory / "ends.py").write_text(OWN)
    for rank in start_ranks(directory, 2, [*OPTIONS, *options], **variables):
        rank.communicate(timeout=PATIENCE)


@pytest.fixture(scope="module")
def whole_of_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "ranks"
    run_ranks(directory, WHOLE)
    return end_of(directory), curves(directory)


@pytest.mark.parametrize("stops", rows(STOPS), ids=lambda stops: " ".join(kind for kind, _ in stops))
def test_going_on_after_any_stops_is_the_run(tmp_path, monkeypatch, whole, stops):  # noqa: F811
    directory = tmp_path / "stopped"
    for kind, options in stops:
        print(kind, *(word.rpartition(".")[2] for word in options))
        if kind == "kill":
            directory.mkdir(exist_ok=True)
            (directory / "ends.py").write_text(OWN)
            process = Forked(directory, [*OPTIONS, *options, "--ckpt_path=auto"])
            process.communicate(timeout=PATIENCE)
        else:
            run(directory, monkeypatch, *options, "--ckpt_path=auto")
    run(directory, monkeypatch, WHOLE, "--ckpt_path=auto")
    assert difference(end_of(directory), whole[0]) is None
    assert curves(directory) == whole[1]


@pytest.mark.parametrize("stops", rows(STOPS_OF_RANKS), ids=lambda stops: " ".join(kind for kind, _ in stops))
def test_going_on_after_any_stops_of_two_ranks_is_the_run(tmp_path, whole_of_ranks, stops):
    directory, rng = tmp_path / "stopped", random.Random(f"{SEED} {stops}")
    for kind, options in stops:
        ends_on = rng.choice("01") if kind in OF_ONE_RANK else "01"
        print(kind, "on", ends_on, *(word.rpartition(".")[2] for word in options))
        run_ranks(directory, *options, "--ckpt_path=auto", ENDS_ON=ends_on)
    run_ranks(directory, WHOLE, "--ckpt_path=auto")
    assert difference(end_of(directory), whole_of_ranks[0]) is None
    assert curves(directory) == whole_of_ranks[1]
