"""What an agent could do after how much training."""

import json
from pathlib import Path

import pytest

from tests.conftest import ONE_STAGE, SHORT
from toolagent_pl.cli.main import main

CURVE = ["--trainer.callbacks+=benchmarks.learning_curve.LearningCurve", "--trainer.callbacks.path=curve.json"]
OPTIONS = ["fit", *SHORT, *ONE_STAGE, "--data.batch_size=64", "--trainer.log_every_n_steps=1", *CURVE]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written() -> dict:
    return json.loads(Path("curve.json").read_text())


def test_a_row_for_each_validation():
    main([*OPTIONS, "--trainer.max_epochs=3"])
    curve = written()["curve"]
    assert written()["batches"] == 6
    assert len(curve) == 3
    tokens, seconds, accuracy = zip(*curve, strict=True)
    assert sorted(set(tokens)) == list(tokens)
    assert 2 * 64 <= tokens[0] <= 2 * 64 * 3
    assert sorted(seconds) == list(seconds)
    assert all(0 <= one <= 1 for one in accuracy)


def test_training_ends_when_the_budget_is_spent_or_all_is_solved():
    main([*OPTIONS, "--trainer.max_epochs=9", "--trainer.callbacks.tokens=400"])
    curve = written()["curve"]
    assert len(curve) < 9
    assert curve[-1][0] >= 400 > curve[-2][0]
    main([*OPTIONS, "--trainer.max_epochs=9", "--trainer.callbacks.solved=0"])
    assert len(written()["curve"]) == 3  # in a row
