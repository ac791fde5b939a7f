"""A checkpoint tried on stages that it was not trained on."""

import re

import pytest

from tests.conftest import BLIND, SHORT
from tests.test_cli import error_of
from toolagent_pl.cli import main

READER = ["--trainer.accelerator=cpu", "--data.val_problems=20", "--data.test_problems=30", "--data.batch_size=64"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Directory with a short run of a reader on two stages, and another one that it is tested on."""
    directory = tmp_path_factory.mktemp("reader")
    short = ["--trainer.max_epochs=1", "--data.batches_per_epoch=2", f"--trainer.default_root_dir={directory}"]
    main(["fit", *READER, *short, "--data.stages=[E1,E2]", "--data.unseen=[E3]"])
    return directory / "lightning_logs" / "version_0"


def tried(capsys, command: str, *words: str) -> set[str]:
    main([command, *words])
    table = capsys.readouterr().out.rpartition("Greedy agent")[2]
    return set(re.findall(r"^ +(\w+) +(?:20|30|1,000) +\d", table, re.MULTILINE))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_reader_is_tried_on_any_stages(reader, capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    checkpoint = f"--ckpt_path={reader}/checkpoints/last.ckpt"
    assert tried(capsys, command, *READER, checkpoint, "--data.stages=[E8,E10]") == {"E8", "E10"}
    # With the configuration of its run, too, which has one of them among the unseen stages.
    configured = [f"--config={reader}/config.yaml", checkpoint, "--data.stages=[E3,T0]"]
    assert tried(capsys, command, *configured) == {"E3", "T0"}


def test_stages_to_be_tested_on_are_those_that_are_named(reader, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"--config={reader}/config.yaml", f"--ckpt_path={reader}/checkpoints/last.ckpt"]
    assert tried(capsys, "test", *options) == {"E1", "E2", "E3"}
    assert tried(capsys, "test", *options, "--data.stages=[E4]", "--data.unseen=[E5]") == {"E4", "E5"}


def test_an_agent_that_is_told_the_stage_refuses_others(capsys, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = f"--ckpt_path={trained}/checkpoints/last.ckpt"
    stages = ["--data.stages=[E1,E2]", "--model.env.max_steps=auto"]
    line = error_of(capsys, "validate", BLIND, SHORT[-1], checkpoint, *stages)
    assert "data.stages: got ['E1', 'E2'], expected ['T0', 'T1', 'T2'] as in the checkpoint" in line
