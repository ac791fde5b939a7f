"""The command ``export``: what it writes in each format, and how it ends."""

import json

import pytest
import torch

from tests.commands.scripted import DESCRIPTION, WEIGHTS
from toolagent_pl import Solver
from toolagent_pl.commands.export import main
from toolagent_pl.saved import build, read


def test_a_checkpoint_becomes_a_folder_with_a_card_of_its_results(trained, tmp_path, capsys):
    words = ["--format", "safetensors", "--output", str(tmp_path / "agent"), "--test_problems", "50"]
    assert main([*words, "--ckpt_path", str(trained / "checkpoints" / "last.ckpt")]) == 0
    assert "BlindAgent" in capsys.readouterr().out
    saved = read(tmp_path / "agent")
    figures = saved.description["figures"]
    assert {name: figure["tried"] for name, figure in figures.items()} == {"T0": 50, "T1": 50, "T2": 50}
    assert f"| T1 | {figures['T1']['right']} | 50 |" in (tmp_path / "agent" / "README.md").read_text()
    agent, _ = build(*saved)
    weights = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in agent.state_dict().items():
        assert torch.equal(weight, weights[f"agent.{name}"])
    # Results that are known are kept, whatever is asked for.
    assert main([*words[:3], str(tmp_path / "again"), "--ckpt_path", str(tmp_path / "agent")]) == 0
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == saved.description


def test_a_number_of_problems_has_known_results_tried_anew_by_shape_of_tree(tmp_path):
    first = Solver.from_checkpoint()
    first.description["trained_stages"] = ["T0", "E2"]
    figures = {"E2": {"right": 1, "tried": 9}, "E99": {"right": 3, "tried": 4}}
    first.save_pretrained(tmp_path / "agent", figures=figures)
    words = ["--format", "safetensors", "--ckpt_path", str(tmp_path / "agent"), "--output", str(tmp_path / "new")]
    assert main([*words, "--test_problems", "1000"]) == 0
    figures = read(tmp_path / "new").description["figures"]
    assert list(figures) == ["E2", "E99", "T0"]
    assert figures["E99"] == {"right": 3, "tried": 4}  # not trained on: not tried here
    assert (figures["E2"]["right"], figures["E2"]["tried"], figures["E2"]["shapes"]) == (1000, 1000, 2)
    worst = figures["E2"]["worst"]
    assert worst["right"] == worst["tried"] < 500  # without mistakes, it is the one that was tried least
    card = (tmp_path / "new" / "README.md").read_text()
    assert f"| E2 | 1,000 | 1,000 | 100.00% | all of 2 right, {worst['tried']} or more of each |  |" in card
    assert "| T0 | 1,000 | 1,000 | 100.00% |  |  |" in card


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--format", "onnx", "--ckpt_path", "no.ckpt"], "error: ckpt_path: got no.ckpt, expected a checkpoint, or"),
        (["--format", "onnx", "--ckpt_path", "last"], "error: ckpt_path: got last, expected a run, lightning_logs"),
        (["--format", "torch", "--test_problems", "-1"], "error: test_problems: got -1, expected at least 0"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(expected)
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_agent_that_cannot_be_exported_ends_in_one_line(tmp_path, capsys):
    Solver(DESCRIPTION, WEIGHTS).save_pretrained(tmp_path / "agent")
    words = ["--format", "torch", "--ckpt_path", str(tmp_path / "agent"), "--output", str(tmp_path / "graphs")]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: agent: got Textbook, which cannot be exported (")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "graphs").exists()


@pytest.mark.parametrize("words", [[], ["--format", "gguf"], ["--format", "onnx", "more"]])
def test_words_that_are_no_command_end_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
