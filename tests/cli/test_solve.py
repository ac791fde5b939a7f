"""The command ``solve``: what it prints, and how it ends."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.envs.calculator.scripted import scripted, untrained
from toolagent_pl.cli.solve import main

ROOT = Path(__file__).parents[2]
HEAVY = ("lightning", "jsonargparse", "tensorboard", "torchmetrics", "rich", "matplotlib")
FULL = """\
2*(3+4)
N        STO  -
M  N     ADD  7
M    A   RCL  7
L    A   MUL  14
     A   ANS  14
14, right
calls: 5, the reference plan: 5

Looked at before a call: N next operand, A accumulator, M top of memory, L left operand
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a right agent, a hurried one, and an untrained one that is made of nothing but the package."""
    folder = tmp_path_factory.mktemp("saved")
    scripted().save_pretrained(folder / "right")
    scripted(hurried=True).save_pretrained(folder / "hurried")
    untrained().save_pretrained(folder / "reader")
    return folder


@pytest.fixture
def solve(saved, capsys, monkeypatch):
    """Run the command within this process: exit status, output, lines of errors."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*words, agent="right"):
        status = main([*words, "--allow_custom", "--ckpt_path", str(saved / agent)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return run


def test_it_shows_where_the_agent_looks_and_what_comes_of_it(solve):
    assert solve("2*(3+4)") == (0, FULL, [])


def test_a_wrong_answer_and_another_prompt_are_told(solve):
    _, out, _ = solve("((2)) * (3+4)", agent="hurried")
    assert out.startswith("((2)) * (3+4) is read as\n2*(3+4)\n")
    assert "7, wrong: it is 14\n" in out
    _, out, _ = solve("3+4", agent="hurried")
    assert "no answer, wrong: it is 7\n" in out


def test_json_has_exactly_the_fields_of_a_solution(solve):
    status, out, errors = solve("--json", "2*(3+4)", " 7-0 ")
    first, second = map(json.loads, out.splitlines())
    assert first == {
        "expression": "2*(3+4)",
        "plan": ["STO", "ADD", "RCL", "MUL", "ANS"],
        "values": [None, 7, 7, 14, 14],
        "answer": 14,
        "target": 14,
        "correct": True,
        "textbook_length": 5,
    }
    assert list(first) == list(second)
    assert (second["expression"], status, errors) == (" 7-0 ", 0, [])


def test_bad_expressions_are_named_and_good_ones_solved(solve):
    status, out, errors = solve("--json", "1+2", "x", "-3", "-3*(4+5)", "", "3/4", "5", "9*9")
    assert [json.loads(line)["answer"] for line in out.splitlines()] == [3, 81]
    assert status == 2
    assert len(errors) == 6
    assert errors[0].startswith("error: expression 'x': got 'x' where an operand should be")
    assert errors[1] == "error: expression '-3': begins with '-'; numbers have no sign, write 0-3 for -3"
    assert errors[2].startswith("error: expression '-3*(4+5)': begins with '-'")
    assert errors[3].startswith("error: expression '': is empty")
    assert errors[5] == "error: expression '5': is a number alone, expected at least one operator"


def test_what_follows_two_dashes_is_an_expression(saved, capsys):
    assert main(["--json", "--allow_custom", "--ckpt_path", str(saved / "right"), "--", "-3", "(1+2)"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["answer"] == 3
    assert captured.err == "error: expression '-3': begins with '-'; numbers have no sign, write 0-3 for -3\n"


def test_lines_of_standard_input_take_the_place_of_a_dash(solve, monkeypatch):
    lines = b"2*3\n\n  \n4/\xff\r\n(5+6)\r\n8"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    status, out, errors = solve("--json", "1-0", "-", "7-0", "3")
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["answer"] for one in found] == [1, 6, 11, 7]
    assert status == 2
    assert [error.partition(" expression")[0] for error in errors] == ["error: line 4:", "error: line 6:", "error:"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "the following arguments are required: EXPRESSION; see solve --help"),
        (["1+2", "--jsn"], "unrecognized arguments: --jsn; see solve --help"),
        (["1+2", "--htm=a page"], "unrecognized arguments: --htm=a page; see solve --help"),
        (["1+2", "--ckpt_path=last"], "ckpt_path: got last, expected a run, lightning_logs/version_*/checkpoints/last"),
        (["1+2", f"--ckpt_path={'x' * 300}"], f"ckpt_path: got {'x' * 300}, expected a checkpoint, or a folder"),
        (["1+2", "--ckpt_path=no.ckpt"], "ckpt_path: got no.ckpt, expected a checkpoint, or a folder with config.json"),
        (["1+2", "--ckpt_path=right"], "agent: got tests.envs.calculator.scripted.Scripted, code from outside"),
    ],
)
def test_what_cannot_be_ends_in_one_line(saved, capsys, monkeypatch, words, expected):
    monkeypatch.chdir(saved)
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(words))
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {expected}")
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_last_is_the_checkpoint_of_the_newest_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version, time in ((0, 5), (1, 7), (2, 6)):
        file = Path(f"lightning_logs/version_{version}/checkpoints/last.ckpt")
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (time, time))
    assert main(["1+2", "--ckpt_path=last"]) == 2
    assert "version_1/checkpoints/last.ckpt, expected the config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_terminals_get_colour_unless_they_ask_for_none(saved, variables, coloured):
    ours, theirs = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "NO_COLOR": "", **variables}
    command = [sys.executable, "-m", "toolagent_pl", "solve", "2*3", "--ckpt_path", "reader"]
    subprocess.run(command, cwd=saved, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    assert (b"\x1b[" in os.read(ours, 4096)) == coloured
    os.close(ours)


def test_it_loads_torch_and_nothing_heavy_beside(saved, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["solve", "2*(3+4)", "--json", "--ckpt_path", str(saved / "reader")]
    command = [sys.executable, "-X", "importtime", "-m", "toolagent_pl", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "torch" in loaded
    assert not loaded & set(HEAVY)
    assert json.loads(done.stdout)["target"] == 14


def test_a_closed_pipe_ends_it_quietly(saved):
    (saved / "many.txt").write_text("1+2*3\n" * 30_000)
    words = f"{sys.executable} -m toolagent_pl solve --json - --ckpt_path reader < many.txt | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, shell=True, cwd=saved, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["target"] == 7
    assert done.stderr == ""


def test_what_commands_there_are_is_told_without_loading_them():
    words = "import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module('toolagent_pl', run_name='__main__')"
    words += "; print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    told, loaded = done.stdout.split("LOADED")
    for command in ("solve", "fit", "validate", "test", "predict", "export", "sweep"):
        assert f"\n  {command} " in told
    assert not {name.partition(".")[0] for name in loaded.split()} & {"torch", "numpy", *HEAVY}


def test_a_page_that_cannot_be_written_is_an_error_in_one_line(solve, tmp_path, monkeypatch):
    status, out, errors = solve("2*(3+4)", "--html", str(tmp_path / "no" / "page.html"))
    assert (status, out, len(errors)) == (2, FULL, 1)
    assert "No such file or directory" in errors[0]
    file = tmp_path / "page.html"
    file.write_text("precious")
    refused = f"error: html: got {file}, which is there already; expected another place, or --overwrite"
    assert solve("2*3", "--html", str(file)) == (2, "", [refused])
    monkeypatch.setattr("toolagent_pl.cli.solve.MAX_DRAWN", 1)
    _, _, errors = solve("1+0", "2+0", "--html", str(file), "--overwrite")
    assert errors == ["error: html: got 2 expressions, expected at most 1 on a page"]
    assert file.read_text() == "precious"
    assert solve("2*3", "--html", str(file), "--overwrite")[0] == 0
    assert "<html" in file.read_text()
