"""No command replaces a file, unless it is told to."""

import sys
from pathlib import Path

import pytest

from tests.commands.scripted import DESCRIPTION, WEIGHTS
from tests.conftest import TRAINED
from toolagent_pl import Solver
from toolagent_pl.cli import main
from toolagent_pl.commands import export, solve


def save_pretrained(words):
    """As if it were a command."""
    try:
        Solver(DESCRIPTION, WEIGHTS).save_pretrained("out", overwrite="overwrite=True" in words)
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)


@pytest.mark.parametrize(
    ("command", "words", "file"),
    [
        (export.main, ["--format=safetensors", "--output=out"], "out/README.md"),
        (export.main, ["--format=safetensors", "--output=out"], "out/config.json"),
        (export.main, ["--format=torch", "--output=out"], "out/decode.pt2"),
        (export.main, ["--format=onnx", "--output=out"], "out/graphs.json"),
        (solve.main, ["2*3", "--html=page.html"], "page.html"),
        (main, ["predict", "--predictions.path=said.jsonl"], "said.jsonl"),
        (save_pretrained, [], "out/README.md"),
    ],
)
def test_a_file_that_is_there_is_replaced_only_on_demand(command, words, file, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overwrite = "overwrite=True" if command is save_pretrained else "--overwrite"
    if command is main:
        words = [words[0], *TRAINED, f"--ckpt_path={trained}/checkpoints/last.ckpt", *words[1:]]
        overwrite = "--predictions.overwrite=true"
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("precious")
    with pytest.raises(SystemExit) as stopped:
        sys.exit(command(words))
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f": got {file}, which is there already; expected another place, or {overwrite}")
    assert {path.name for path in Path(file).parent.iterdir()} <= {Path(file).name, "lightning_logs"}
    assert Path(file).read_text() == "precious"
    if "--format=onnx" not in words and "--format=torch" not in words:  # they take seconds
        command([*words, overwrite])
        assert "precious" not in Path(file).read_text()
