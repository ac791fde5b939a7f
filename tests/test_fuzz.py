"""Some generated inputs, as ``tests/long/test_fuzz.py`` tries many more of; and whether it would notice."""

import os
import time
from pathlib import Path

import pytest

from tests.long import generated as fuzz
from tests.long import options
from tests.long.generated import FINDING, Case, Verdict
from toolagent_pl.cli import ToolAgentCLI

SOME = {"options": 24, "command": 16, "config": 24, "checkpoint": 24, "expression": 200}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return fuzz.prepare(tmp_path_factory.mktemp("source"))


@pytest.mark.parametrize("kind", SOME)
def test_generated_inputs_are_taken_or_refused_in_one_line(sources, kind):
    verdicts = list(fuzz.fuzz(fuzz.cases(kind, 1, range(SOME[kind]), sources), patience=30))
    assert len(verdicts) == SOME[kind]
    assert [(case, verdict.detail) for case, verdict in verdicts if verdict.outcome == FINDING] == []
    assert {verdict.outcome for _, verdict in verdicts} >= {"taken", "refused"}


@pytest.mark.parametrize("kind", SOME)
def test_what_nobody_changed_is_taken(sources, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "options": b"[]",
        "command": b'["1+2"]',
        "config": sources.configs[0],
        "checkpoint": sources.checkpoint,
        "expression": b'["1+2"]',
    }[kind]
    assert fuzz.judge(Case(kind, 0, content, "solve" if kind == "command" else "validate")) == Verdict("taken", "")


def test_a_case_is_a_function_of_seed_and_number(sources):
    for kind in SOME:
        several = list(fuzz.cases(kind, 3, range(60), sources))
        assert several[59:] == list(fuzz.cases(kind, 3, [59], sources))
        assert several[:5] != list(fuzz.cases(kind, 4, range(5), sources))


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(ToolAgentCLI, "after_fit", lambda _: None)
        fuzz.run_command(["fit", *fuzz.RUN_ONCE, "--trainer.log_every_n_steps=1"])
    return directory


def misbehave(case: Case) -> Verdict:
    if case.number == 1:
        os.abort()
    if case.number == 2:
        time.sleep(60)
    return Verdict("taken", "")


def test_crashes_and_hangs_are_findings_and_the_others_go_on():
    cases = iter([Case("expression", number, b"") for number in range(5)])
    found = {case.number: verdict for case, verdict in fuzz.fuzz(cases, patience=5, judge=misbehave)}
    assert {number for number, verdict in found.items() if verdict.outcome == FINDING} == {1, 2}
    assert "crashed with status -6" in found[1].detail
    assert "hung" in found[2].detail


@pytest.mark.parametrize(
    ("kind", "misbehaviour", "named"),
    [
        ("config", "raise KeyError('x')", "KeyError"),
        ("config", "sys.exit(2)", "no clear line"),
        ("config", "print('error: a\\nerror: b', file=sys.stderr); sys.exit(2)", "no clear line"),
        ("config", "open('sentinel', 'w'); sys.exit('error: one line')", "foreign code was run"),
        ("checkpoint", "raise RecursionError", "RecursionError"),
    ],
)
def test_all_but_one_clear_line_is_a_finding(tmp_path, monkeypatch, kind, misbehaviour, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "run_command", lambda _: exec(f"import sys\n{misbehaviour}"))
    verdict = fuzz.judge(Case(kind, 0, b""))
    assert verdict.outcome == FINDING
    assert named in verdict.detail
    assert not Path("sentinel").exists()


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, None),
        ({"trainer.log_every_n_steps": "1"}, None),
        ({"model.learning_rate": "0.5"}, "another model.learning_rate in config.yaml"),
        ({"model.env.memory_depth": "3"}, "another model.env.memory_depth in config.yaml"),
        ({"trainer.max_epochs": "2"}, "another trainer.max_epochs in config.yaml"),
        ({"checkpoint.dirpath": "elsewhere"}, "no elsewhere/last.ckpt"),
        ({"trainer.default_root_dir": "elsewhere"}, "no elsewhere/lightning_logs/version_0/checkpoints/last.ckpt"),
    ],
)
def test_an_option_without_its_effect_is_noticed(one_run, given, missing):
    assert options.without_effect(given, one_run) == missing


def test_steps_rates_and_predictions_are_counted(one_run, monkeypatch):
    monkeypatch.setattr(options, "_not_written", lambda *_: None)
    found = [
        options.without_effect(one, one_run) for one in ({"trainer.max_epochs": "2"}, {"model.learning_rate": "1"})
    ]
    assert found == ["2 batches in place of 4", "a learning rate of 0.004 in place of 1.0"]
    checkpoint = one_run / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert options.not_predicted({}, checkpoint) == f"no {checkpoint.with_suffix('.predictions.jsonl')}"
    (one_run / "said.jsonl").write_text("{}\n" * 6)
    path = str(one_run / "said.jsonl")
    assert options.not_predicted({"predictions.path": path, "data.predict_problems": "3"}, checkpoint) is None
    assert options.not_predicted({"predictions.path": path}, checkpoint) == "6 predictions in place of 200"
