"""Whether the benchmark of checkpoints sees them all."""

import json

from benchmarks import checkpoint_cost
from tests.conftest import SHORT
from toolagent_pl.cli import main


def test_every_save_of_a_run_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--data.batch_size=64", "--checkpoint.every_n_train_steps=1"]
    main(["fit", *SHORT, *options, "--trainer.callbacks+=benchmarks.checkpoint_cost.TimedSaves"])
    measured = json.loads((tmp_path / checkpoint_cost.RESULT).read_text())
    assert measured["updates"] == 2
    assert len(measured["saves"]) == 3  # after each update, and in the end
    assert 0 < sum(measured["saves"]) < measured["training"]


def test_shares_are_of_the_whole_time():
    run = checkpoint_cost.Run(seed=0, command=10.0, training=4.0, updates=100, saves=[0.1, 0.3])
    assert (run.share, run.share_of_training) == (0.04, 0.1)
