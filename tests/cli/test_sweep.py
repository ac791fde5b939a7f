"""``sweep``: what it searches, what it leaves behind, and that it can be killed at any time."""

import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tests.conftest import CONFIGS, ONE_STAGE, SHORT
from tests.forked import Forked
from toolagent_pl.cli import sweep as command
from toolagent_pl.cli.main import main as command_line
from toolagent_pl.cli.sweep import Report, Sweep, distributions, main

TINY = [*SHORT, *ONE_STAGE, "--data.batch_size=64", "--trainer.max_epochs=2", "--solved.accuracy=null"]
SPACE = {"model.learning_rate": {"low": 0.001, "high": 0.03, "log": True}, "model.algorithm.ent_target": [None, 0.5]}
pytestmark = pytest.mark.usefixtures("here", "without_pictures")


def configuration(**options) -> str:
    Path("sweep.yaml").write_text(yaml.safe_dump({"space": SPACE, "fit": TINY, "trials": 2, **options}))
    return "--config=sweep.yaml"


def study():
    return optuna.load_study(study_name="sweep", storage="sqlite:///sweep/study.db")


def test_a_sweep_tries_settings_and_goes_on_and_writes_the_best(capsys):
    assert main([configuration()]) == 0
    first = study().trials
    assert [trial.state for trial in first] == [TrialState.COMPLETE] * 2
    assert main(["--config=sweep.yaml", "--trials=3"]) == 0
    assert [trial.params for trial in study().trials[:2]] == [trial.params for trial in first]
    assert len(study().trials) == 3
    best = study().best_trial
    written = yaml.safe_load(Path("sweep/best.yaml").read_text())
    assert written["model"]["learning_rate"] == best.params["model.learning_rate"]
    assert re.search(rf"\n +{best.number} +{best.value:.4f} +complete ", capsys.readouterr().out)
    command_line(["fit", "--config=sweep/best.yaml", "--trainer.max_epochs=1"])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()  # not among the trials
    assert Path("sweep/trial_2/lightning_logs/version_0/checkpoints/last.ckpt").is_file()


def test_a_trial_that_is_killed_is_tried_again(here, monkeypatch):
    """With the same settings, as soon as its process has given no sign of life for long enough."""
    endless = [*TINY, "--trainer.max_epochs=-1", "--annealing.at=null"]
    words = ["sweep", configuration(fit=endless, stale_after=2)]
    process = Forked(here, words)
    deadline = time.monotonic() + 120  # a busy machine takes long
    while time.monotonic() < deadline and not list(here.glob("sweep/trial_0/**/events*")):
        time.sleep(0.2)
    process.kill()
    process.communicate(timeout=20)
    (killed,) = study().trials
    assert killed.state == TrialState.RUNNING
    time.sleep(3)
    tried = []
    monkeypatch.setattr(command, "run_trial", lambda _, trial: tried.append(trial.params) or 0.5)
    monkeypatch.setattr(command, "_write_best", lambda *_: None)
    assert main(["--config=sweep.yaml", "--trials=2"]) == 0  # the killed one does not count
    assert [trial.state for trial in study().trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert killed.params in tried


def test_processes_share_the_trials(here):
    words = ["sweep", configuration(trials=2)]
    together = [Forked(here, words), Forked(here, [*words, "--trials=2"])]
    for process in together:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    done = study().trials
    assert 2 <= len(done) <= 3  # both may have begun one when the second ended
    assert {trial.state for trial in done} == {TrialState.COMPLETE}
    assert len({trial.params["model.learning_rate"] for trial in done}) == len(done)


def validated(report, *accuracies, max_epochs=9, stops=False):
    """The trainer, after validations with these accuracies of two stages, at the last of which it stops."""
    trainer = SimpleNamespace(should_stop=False, max_epochs=max_epochs)
    for i, accuracy in enumerate(accuracies, start=1):
        trainer.callback_metrics = {"val/T0_accuracy": accuracy, "val/T1_accuracy": accuracy, "val/T1_plan_length": 7.0}
        trainer.should_stop |= stops and i == len(accuracies)
        report.on_train_epoch_end(trainer, SimpleNamespace(epoch_is_whole=True))
    return trainer


def test_trials_that_fall_behind_are_pruned():
    shared = Sweep(SPACE, TINY, prune_after=1).open()
    for score in (0.9,) * 5:
        trial = shared.ask()
        for step in (1, 2, 3):
            trial.report(score, step)
        shared.tell(trial, score)
    for accuracy, prune_after, pruned in ((0.1, 1, True), (0.95, 1, False), (0.1, None, False)):
        report = Report(Sweep(SPACE, TINY, prune_after=prune_after), shared.ask())
        trainer = validated(report, accuracy, accuracy)
        assert (report.pruned, trainer.should_stop) == (pruned, pruned)


def test_a_run_that_ends_early_counts_as_if_its_last_value_had_lasted():
    report = Report(sweep := Sweep(SPACE, TINY), sweep.open().ask())
    validated(report, 0.3, 1.0, max_epochs=4, stops=True)
    assert report.score == pytest.approx((0.3 + 3) / 4)


def test_the_configuration_that_is_there_is_good(monkeypatch):
    sweep = Sweep(**yaml.safe_load((CONFIGS / "sweep.yaml").read_text()))
    monkeypatch.chdir(CONFIGS.parent)
    sweep.check()
    assert sweep.trials == 20


def test_the_space_may_be_nested_and_take_classes_and_lists():
    assert distributions(
        {"model": {"algorithm": ["A2C", "PPO"], "learning_rate": {"low": 0.1, "high": 1.0}}, "data.batch_size": [64]}
        | {"curriculum.ent_targets": [[1.0, 0.5], None], "model.agent.d": {"low": 16, "high": 64, "step": 16}}
    ) == {
        "model.algorithm": CategoricalDistribution(("A2C", "PPO")),
        "model.learning_rate": FloatDistribution(0.1, 1),
        "data.batch_size": CategoricalDistribution(("64",)),
        "curriculum.ent_targets": CategoricalDistribution(("[1.0, 0.5]", "null")),
        "model.agent.d": IntDistribution(16, 64, step=16),
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"space": {"model.lerning_rate": [1]}}, "unknown option --model.lerning_rate, did you mean --model.learning"),
        ({"space": {"model.learning_rate": {"low": 2, "high": 1}}}, "space.model.learning_rate: got"),
        ({"space": {"data.batch_size": [64, 0]}}, "data.batch_size: got 0, expected"),
        ({"space": {}}, "space: got nothing, expected options of fit and what to choose from"),
        ({"trials": 0}, "trials: got 0, expected at least 1"),
        ({"fit": [*TINY, "--trainer.devices=2"]}, "trainer.devices: got 2, expected 1: start"),
        ({"metric": "val/T9_accuracy"}, "metric: got val/T9_accuracy, expected one of val/T0_accuracy, "),
        ({"score": "best"}, "score: "),
        ({"storage": "sqlite:///sweep.yaml"}, "storage: got sqlite:///sweep.yaml, expected the database of a sweep"),
        ({"directory": "/dev/null"}, "storage: got sqlite:////dev/null/study.db, expected the database of a sweep"),
        ({"directory": "mine"}, "directory: got mine, whose best.yaml is not of a sweep; expected another"),
        ({"directory": "other", "fit": [*TINY, "--data.val_problems=30"]}, "of a sweep with another fit, expected"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_and_no_file_is_touched(capsys, options, expected):
    Path("mine").mkdir()
    Path("mine/best.yaml").write_text("mine")
    if options.get("directory") == "other":
        Sweep(SPACE, TINY, directory="other").open()
    words = configuration(**options)
    before = Path("sweep.yaml").read_text(), Path("mine/best.yaml").read_text()
    with pytest.raises(SystemExit) as stopped:
        main([words])
    assert stopped.value.code == 2
    (line, *_) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert (Path("sweep.yaml").read_text(), Path("mine/best.yaml").read_text()) == before


def test_without_optuna_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "toolagent_pl.cli.sweep")
    with pytest.raises(SystemExit):
        __import__("toolagent_pl.cli.sweep")
    assert "pip install 'toolagent_pl[sweep]'" in capsys.readouterr().err
