"""The command ``export``: what it writes in each format, and how it ends."""

import pytest
import torch

from tests.envs.calculator.scripted import READER, scripted, untrained
from toolagent_pl.cli.export import main
from toolagent_pl.envs.calculator import CalculatorEnv
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.interop import graphs
from toolagent_pl.rl.saved import FILES, build, read, write


def test_a_folder_gets_a_card_of_the_results_by_shape_of_tree(tmp_path, capsys):
    """Those that are known are kept, unless problems are tried anew."""
    solver = untrained()
    env = {"class_path": READER["env"]["class_path"], "init_args": {"stages": ["T0", "E2"]}}
    solver.description = {**READER, "env": env}
    figures = {"E2": {"right": 1, "tried": 9}, "E99": {"right": 3, "tried": 4}}
    solver.save_pretrained(tmp_path / "agent", figures=figures)
    words = ["--format", "safetensors", "--ckpt_path", str(tmp_path / "agent"), "--output"]
    assert main([*words, str(tmp_path / "same")]) == 0
    assert "Reader" in capsys.readouterr().out
    assert read(tmp_path / "same").description == read(tmp_path / "agent").description
    assert main([*words, str(tmp_path / "new"), "--test_problems", "1000"]) == 0
    found = read(tmp_path / "new").description["figures"]
    assert list(found) == ["E2", "E99", "T0"]
    assert found["E99"] == {"right": 3, "tried": 4}  # not trained on: not tried here
    assert found["E2"]["tried"] == found["T0"]["tried"] == 1000
    assert found["E2"]["note"].startswith("worst shape of tree `(")
    assert found["E2"]["note"] in (tmp_path / "new" / "README.md").read_text()
    agent, _ = build(read(tmp_path / "new"))
    for name, weight in agent.state_dict().items():
        assert torch.equal(weight, solver.agent.state_dict()[name])


def test_an_agent_that_is_told_the_stage_is_exported_too(tmp_path):
    options = {"stages": ["T0"], "max_steps": 3}
    env = CalculatorEnv(**options)
    described = {"env": {"class_path": "toolagent_pl.CalculatorEnv", "init_args": options}}
    described["agent"] = {"class_path": "toolagent_pl.envs.tutorial.BlindAgent", "init_args": {"d": 4}}
    write(tmp_path / "agent", BlindAgent(env, d=4), env, described, {})
    words = ["--format", "safetensors", "--ckpt_path", str(tmp_path / "agent"), "--output", str(tmp_path / "new")]
    assert main([*words, "--test_problems", "50"]) == 0
    assert read(tmp_path / "new").description["figures"]["T0"]["tried"] == 50


@pytest.mark.parametrize(("kind", "file"), [*graphs.FILES.items(), ("safetensors", FILES)])
def test_no_file_is_replaced_unless_it_is_asked_for(kind, file, tmp_path, capsys):
    (tmp_path / file[-1]).write_text("precious")
    assert main(["--format", kind, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: output: got {tmp_path / file[-1]}, which is there already; expected another")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    if kind == "safetensors":  # the others take seconds
        assert main(["--format", kind, "--output", str(tmp_path), "--overwrite"]) == 0
        assert (tmp_path / file[-1]).read_text() != "precious"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--format", "onnx", "--ckpt_path", "no.ckpt"], "error: ckpt_path: got no.ckpt, expected a checkpoint, or"),
        (["--format", "torch", "--test_problems", "-1"], "error: test_problems: got -1, expected at least 0"),
        (["--format", "torch", "--allow_custom", "--ckpt_path", "custom"], "error: agent: got Scripted, which cannot"),
        (["--format", "gguf"], "error: argument --format: invalid choice: 'gguf'"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scripted().save_pretrained("custom")
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(words))
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(expected)
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["custom"]
