"""``sweep``: what it searches, what it leaves behind, and that it can be killed at any time."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

optuna = pytest.importorskip("optuna")

from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import CONFIGS, ONE_STAGE, SHORT
from toolagent_pl.cli import main as command_line
from toolagent_pl.commands.sweep import main
from toolagent_pl.sweep import Choices, Range, Report, Sweep, read_space, retry_killed, run_trials

TINY = [*SHORT, *ONE_STAGE, "--data.batch_size=64", "--trainer.max_epochs=3"]
SPACE = {"model.learning_rate": {"low": 0.001, "high": 0.03, "log": True}, "model.algorithm.ent_target": [None, 0.5]}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def configuration(**options) -> str:
    Path("sweep.yaml").write_text(yaml.safe_dump({"space": SPACE, "fit": TINY, "trials": 2, **options}))
    return "--config=sweep.yaml"


def status(*words: str) -> int | str | None:
    """Exit status of the command."""
    try:
        return main(words)
    except SystemExit as stopped:
        return stopped.code


def refused(capsys, *words: str) -> str:
    """The one line of a refused command."""
    assert status(*words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def trials(path: str = "sweep/study.journal") -> list:
    backend = optuna.storages.journal.JournalFileBackend(path)
    return optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend)).trials


def test_a_sweep_tries_settings_and_goes_on_and_writes_the_best(capsys):
    assert main([configuration()]) == 0
    first = trials()
    assert [trial.state for trial in first] == [TrialState.COMPLETE] * 2
    assert first[0].params == {"model.learning_rate": 0.006, "model.algorithm.ent_target": "null"}  # as it is
    assert main(["--config=sweep.yaml", "--trials=3"]) == 0
    assert [trial.params for trial in trials()[:2]] == [trial.params for trial in first]
    assert len(trials()) == 3
    best = max(trials(), key=lambda trial: trial.value)
    written = yaml.safe_load(Path("sweep/best.yaml").read_text())
    assert written["model"]["learning_rate"] == best.params["model.learning_rate"]
    assert str(written["model"]["algorithm"]["init_args"]["ent_target"]) in (
        best.params["model.algorithm.ent_target"].replace("null", "None")
    )
    table = capsys.readouterr().out.rpartition("3 trials")[2]
    assert "0 (as it is)" in table
    command_line(["fit", "--config=sweep/best.yaml", "--trainer.max_epochs=1"])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()  # not among the trials
    for trial in trials():
        events = EventAccumulator(f"sweep/trial_{trial.number}/lightning_logs/version_0")
        events.Reload()
        assert events.Scalars("hp/score")[-1].value == pytest.approx(trial.value)
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_a_sweep_that_is_killed_goes_on():
    """The trial that was under way is tried again, with the same settings."""
    endless = [*TINY, "--trainer.max_epochs=-1", "--polish.at=null", "--solved.accuracy=null"]
    words = [sys.executable, "-m", "toolagent_pl", "sweep", configuration(fit=endless)]
    with subprocess.Popen([*words, "--storage=sqlite:///study.db"], stdout=subprocess.DEVNULL) as process:
        storage = "sqlite:///study.db"
        deadline = time.monotonic() + 600  # a busy machine takes long to start Python
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if Path("study.db").exists() and list(Path("sweep").glob("trial_0/**/events*")):
                break
        process.send_signal(signal.SIGKILL)
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    retry_killed(study, stale_after=1000)
    killed, again = study.trials
    assert killed.state == TrialState.FAIL
    assert again.state == TrialState.WAITING
    assert again.system_attrs["fixed_params"] == killed.params
    retry_killed(study, stale_after=1000)
    assert len(study.trials) == 2  # once


def test_half_a_line_of_a_killed_process_is_dropped():
    sweep = Sweep(SPACE, TINY)
    sweep.open()
    journal = Path("sweep/study.journal")
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "tri')
    assert sweep.open().trials == []
    assert journal.read_bytes().startswith(whole)
    assert [json.loads(line) for line in journal.read_text().splitlines()]


def test_trials_that_fall_behind_are_pruned():
    sweep = Sweep(SPACE, TINY, prune_after=1)
    study = sweep.open()
    for score in (0.9,) * 5:
        trial = study.ask()
        for step in (1, 2, 3):
            trial.report(score, step)
        study.tell(trial, score)
    stopped = []
    for accuracy in (0.1, 0.95):
        report = Report(sweep, study.ask(), lambda *_: None)
        trainer = SimpleNamespace(callback_metrics={"val/T0_accuracy": accuracy}, should_stop=False, max_epochs=9)
        report.on_train_epoch_end(trainer, None)
        stopped.append((report.pruned, trainer.should_stop))
    assert stopped == [(True, True), (False, False)]


def test_a_run_that_ends_early_counts_as_if_its_last_value_had_lasted():
    sweep = Sweep(SPACE, TINY, prune_after=None)
    report = Report(sweep, sweep.open().ask(), lambda *_: None)
    metrics = {"val/T0_accuracy": 0.2, "val/T1_accuracy": 0.4, "val/T1_plan_length": 7.0}
    trainer = SimpleNamespace(callback_metrics=metrics, should_stop=False, max_epochs=4)
    report.on_train_epoch_end(trainer, None)
    assert report.score == pytest.approx(0.3)
    metrics |= {"val/T0_accuracy": 1.0, "val/T1_accuracy": 1.0}
    trainer.should_stop = True
    report.on_train_epoch_end(trainer, None)
    assert report.score == pytest.approx((0.3 + 3) / 4)


def test_a_failed_trial_is_counted_and_the_sweep_goes_on(monkeypatch):
    sweep = Sweep(SPACE, TINY, trials=2)
    calls = []

    def fails_once(words, *_, **__):
        calls.append(words)
        if len(calls) == 1:
            raise SystemExit("error: step 3: loss or gradient is not finite")

    monkeypatch.setattr("toolagent_pl.sweep.command_line", fails_once)
    monkeypatch.setattr(Report, "score", property(lambda _: 0.5))
    ended = list(run_trials(sweep, sweep.open(), lambda *_: None))
    assert [trial.state for trial in ended] == [TrialState.FAIL, TrialState.COMPLETE]
    assert "not finite" in ended[0].user_attrs["error"]


def test_the_configuration_that_is_there_is_good(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    sweep = Sweep(**yaml.safe_load((CONFIGS / "sweep.yaml").read_text()))
    assert sweep.check() == {"model.learning_rate": 0.006, "model.algorithm.ent_target": "null"}
    assert sweep.trials == 20


def test_the_space_may_be_nested_and_take_classes_and_lists():
    space = read_space(
        {"model": {"algorithm": ["A2C", "PPO"], "learning_rate": {"low": 0.1, "high": 1}}, "data.batch_size": [64]}
        | {"curriculum.ent_targets": [[1.0, 0.5], None], "model.agent.d": {"low": 16, "high": 64, "step": 16}}
    )
    assert space == {
        "model.algorithm": Choices(("A2C", "PPO")),
        "model.learning_rate": Range(0.1, 1),
        "data.batch_size": Choices(("64",)),
        "curriculum.ent_targets": Choices(("[1.0, 0.5]", "null")),
        "model.agent.d": Range(16, 64, step=16),
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"space": {"model.lerning_rate": [1]}}, "unknown option --model.lerning_rate, did you mean --model.learning"),
        ({"space": {"model.learning_rate": 1}}, "space.model.learning_rate: got 1, expected a list of choices, or low"),
        ({"space": {"model.learning_rate": {"low": 1}}}, "space.model.learning_rate: got {'low': 1}, expected a list"),
        ({"space": {"model.learning_rate": {"low": 2, "high": 1}}}, "space.model.learning_rate: got"),
        ({"space": {"model.learning_rate": {"low": 0, "high": 1, "log": True}}}, "space.model.learning_rate: got"),
        (
            {"space": {"data.batch_size": {"low": 8, "high": 64, "step": 0}}},
            "space.data.batch_size: got {'high': 64, 'lo",
        ),
        ({"space": {"data.batch_size": [64, 0]}}, "data.batch_size: got 0, expected a positive multiple of"),
        ({"space": {}}, "space: got nothing, expected options of fit and what to choose from"),
        ({"trials": 0}, "trials: got 0, expected at least 1"),
        ({"fit": [*TINY, "--data.stages=[T9]"]}, "data.stages: got unknown 'T9'"),
        (
            {"fit": [*TINY, "--trainer.devices=2"]},
            "trainer.devices: got 2, expected 1: start",
        ),
        ({"metric": "val/T9_accuracy"}, "metric: got val/T9_accuracy, expected one of val/T0_accuracy, "),
        ({"score": "best"}, "score: got best, expected last, mean"),
        ({"storage": "sweep.yaml"}, "storage: got sweep.yaml, expected a file or database of a sweep"),
        ({"storage": "/dev/full"}, "storage: got /dev/full, expected a file or database of a sweep (it is no file)"),
        ({"storage": "nothing://here"}, "storage: got nothing://here, expected a file or database of a sweep"),
        ({"directory": "/dev/null"}, "directory: got /dev/null, expected a folder"),
        ({"nothing": 1}, "nothing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_ends_in_one_line(capsys, options, expected):
    assert expected in refused(capsys, configuration(**options))


def test_another_sweep_is_not_gone_on_with(capsys):
    Sweep(SPACE, TINY).open()
    assert "of a sweep with another fit, expected another directory" in refused(
        capsys, configuration(fit=[*TINY, "--data.val_problems=30"])
    )


def test_files_that_are_not_its_own_are_left_alone(capsys):
    Path("notes").write_text("mine, and without an end of line")
    assert "storage: got notes, expected a file or database of a sweep" in refused(
        capsys, configuration(), "--storage=notes"
    )
    assert Path("notes").read_text() == "mine, and without an end of line"
    best = Path("sweep/best.yaml")
    best.parent.mkdir(exist_ok=True)
    best.write_text("mine")
    assert "directory: got sweep, whose best.yaml is not of this sweep; expected another" in refused(
        capsys, configuration()
    )
    assert best.read_text() == "mine"


def test_without_optuna_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert refused(capsys, configuration()) == (
        "sweep: got no optuna, expected it to be installed: pip install 'toolagent_pl[sweep]'"
    )
