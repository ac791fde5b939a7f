"""The command ``solve``: what it prints, how it ends, and the page that it writes, in a real browser."""

import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.scripted import DESCRIPTION, WEIGHTS
from toolagent_pl import Solver
from toolagent_pl.agents import Reader
from toolagent_pl.commands.solve import main
from toolagent_pl.drawing import draw, moments, page
from toolagent_pl.envs import CalculatorEnv

ROOT = Path(__file__).parents[2]
HEAVY = ("lightning", "jsonargparse", "tensorboard", "torchmetrics", "rich", "matplotlib")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_FLAGS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
]
FULL = """\
2*(3+4)
N        STO  -
M  N     ADD  7
M    A   RCL  7
L    A   MUL  14
     A   ANS  14
14, right
calls: 5, the textbook's plan: 5

Looked at before a call: N next operand, A accumulator, M top of memory, L left operand
"""


def described(hurried=False, **parts):
    agent = {"class_path": "tests.commands.scripted.Textbook", "init_args": {"hurried": hurried}}
    return {**DESCRIPTION, "agent": agent, **parts}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a right agent, a hurried one, and an untrained one that is made of nothing but the package."""
    folder = tmp_path_factory.mktemp("saved")
    Solver(DESCRIPTION, WEIGHTS).save_pretrained(folder / "right")
    Solver(described(hurried=True), WEIGHTS).save_pretrained(folder / "hurried")
    reader = described(agent={"class_path": "toolagent_pl.agents.Reader"})
    Solver(reader, Reader(CalculatorEnv().spec(1)).state_dict()).save_pretrained(folder / "reader")
    return folder


@pytest.fixture
def solve(saved, capsys, monkeypatch):
    """Run the command within this process: exit status, output, lines of errors."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*words, agent="right"):
        status = main([*words, "--ckpt_path", str(saved / agent)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return run


def process(*words, cwd, **options):
    """The command as a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "toolagent_pl", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options)


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
    assert main(["--json", "--ckpt_path", str(saved / "right"), "--", "-3", "(1+2)"]) == 2
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
        ([], "error: the following arguments are required: EXPRESSION; see solve --help"),
        (["1+2", "--jsn"], "error: unrecognized arguments: --jsn; see solve --help"),
        (["1+2", "--htm=a page"], "error: unrecognized arguments: --htm=a page; see solve --help"),
    ],
)
def test_words_that_are_no_command_end_in_one_line(capsys, words, expected):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"{expected}\n"


def test_agents_that_are_not_there_end_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("toolagent_pl.saved.PRETRAINED", tmp_path)
    for words, expected in (
        ([], "ckpt_path: got none, expected one"),
        (["--ckpt_path=last"], "ckpt_path: got last, expected a run, lightning_logs/version_*/checkpoints/last.ckpt"),
        ([f"--ckpt_path={'x' * 300}"], f"ckpt_path: got {'x' * 300}, expected a checkpoint, or a folder"),
        (["--ckpt_path=no.ckpt"], "ckpt_path: got no.ckpt, expected a checkpoint, or a folder with config.json"),
    ):
        assert main(["1+2", *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {expected}")
        assert captured.err.count("\n") == 1


def test_last_is_the_checkpoint_of_the_newest_run(capsys, trained, monkeypatch):
    monkeypatch.chdir(trained.parents[1])
    assert main(["1+2", "--ckpt_path=last"]) == 2
    assert "BlindAgent, which is told the stage" in capsys.readouterr().err


@pytest.mark.parametrize("width", [20, 24, 36])
def test_narrow_terminals_get_lines_that_fit(width):
    solver = Solver(DESCRIPTION, WEIGHTS)
    text = "(123-4)*(5-6*7)+88*9-(1-2)"
    (episode,) = solver.episodes([text])
    lines = draw(text, episode, solver.env.vocabulary, width=width).splitlines()
    body = lines[1:-2]
    assert all(len(line) <= width for line in body)
    assert sum("SUB" in line for line in body) == episode.plan.count("SUB")
    wide = draw(text, episode, solver.env.vocabulary, width=200).splitlines()
    marks = [line for line in body if re.fullmatch("[ NAML]+", line)]
    assert len(wide) == 3 + len(episode.plan)
    assert letters(marks) == letters(line[: len(text)] for line in wide[1:-2])


def letters(lines):
    return "".join("".join(lines).split())


def test_colour_can_be_asked_for_and_is_not_there_without():
    solver = Solver(DESCRIPTION, WEIGHTS)
    (episode,) = solver.episodes(["2*3"])
    plain, coloured = (draw("2*3", episode, solver.env.vocabulary, colour=colour) for colour in (False, True))
    assert "\x1b[32;1mright\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals here")
@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_terminals_get_colour_unless_they_ask_for_none(saved, tmp_path, variables, coloured):
    ours, theirs = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "NO_COLOR": "", **variables}
    command = [sys.executable, "-m", "toolagent_pl", "solve", "2*3", "--ckpt_path", str(saved / "reader")]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=theirs) as running:
        os.close(theirs)
        out = b""
        try:
            while part := os.read(ours, 4096):
                out += part
        except OSError:  # the other side is closed
            pass
        os.close(ours)
        assert running.wait() == 0
    assert (b"\x1b[" in out) == coloured


def test_it_loads_torch_and_nothing_heavy_beside(saved, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["solve", "2*(3+4)", "--json", "--ckpt_path", str(saved / "reader")]
    command = [sys.executable, "-X", "importtime", "-m", "toolagent_pl", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "torch" in loaded
    assert not loaded & set(HEAVY)
    assert json.loads(done.stdout)["target"] == 14


def test_a_closed_pipe_ends_it_quietly(saved, tmp_path):
    file = tmp_path / "many.txt"
    file.write_text("1+2*3\n" * 30_000)
    python = f"{sys.executable} -m toolagent_pl solve --json - --ckpt_path {saved / 'reader'}"
    done = subprocess.run(
        f"{python} < {file} | head -1",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["target"] == 7
    assert done.stderr == ""


def test_both_helps_tell_of_it(tmp_path):
    done = process("solve", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--html FILE" in done.stdout
    assert "solve EXPRESSION" in process("--help", cwd=tmp_path).stdout


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
    monkeypatch.setattr("toolagent_pl.commands.solve.MOST_DRAWN", 1)
    _, _, errors = solve("1+0", "2+0", "--html", str(tmp_path / "page.html"))
    assert errors == ["error: html: got 2 expressions, expected at most 1 on a page"]
    assert not (tmp_path / "page.html").exists()


def test_what_there_is_before_each_call_is_what_the_environment_holds():
    solver = Solver(DESCRIPTION, WEIGHTS)
    for text in ("1-(2-(3-4)*56)", "(1+2)*(3+4)", "9*8-7"):
        (episode,) = solver.episodes([text])
        states = moments(solver.env, episode)
        assert (states[0].read, states[0].accumulator, states[0].memory, states[0].left) == (0, None, [], None)
        assert [state.accumulator for state in states[1:]] == episode.values
        assert states[-1].read == len(episode.operands)
        assert states[-1].memory == []
    (episode,) = solver.episodes(["1-(2-(3-4)*56)"])
    before = dict(zip(episode.plan[:6], moments(solver.env, episode), strict=False))
    assert before["MUL"].memory == [1, 2]
    assert (before["SUB"].left, before["SUB"].accumulator, before["SUB"].memory) == (2, -56, [1])


# The page, in a browser.


@pytest.fixture
def seen(tmp_path):
    """What a person sees of a page at a hash, by id, after what they do."""
    if BROWSER is None:
        pytest.skip("there is no chromium here; apt-get install -y chromium")

    def look(text, at="", doing=""):
        file = tmp_path / "page.html"
        file.write_text(text.replace("</body>", f"<script>{doing}</script></body>"), encoding="utf-8")
        profile = tmp_path / "profile"
        command = [BROWSER, *BROWSER_FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom"]
        done = subprocess.run(
            [*command, f"{file.as_uri()}{at}"], capture_output=True, text=True, timeout=60, check=True
        )
        shutil.rmtree(profile, ignore_errors=True)
        return done.stdout

    return look


def text_at(dom, name):
    """Words of an element that has none of its own kind in it."""
    (tag, inner) = re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*?)</\1>', dom, re.DOTALL).groups()
    return html.unescape(re.sub(r"<[^>]+>", " ", inner)).split() if tag != "select" else inner


def memory_at(dom):
    return re.findall(r"<div>([^<]*)</div>", re.search(r'id="memory">((?:<div>[^<]*</div>)*)', dom)[1])


def marks_at(dom):
    """Letters of the marks, by the position of the token that they are under."""
    tokens = re.findall(r"<span[^>]*>[^<]*<i>(.*?)</i></span>", dom)
    return {i: "".join(re.findall(r">(\w)</b>", marks)) for i, marks in enumerate(tokens) if marks}


@pytest.fixture(scope="module")
def two():
    solver = Solver(DESCRIPTION, WEIGHTS)
    texts = ["2*(3+4)", "1-(2-(3-4)*56)"]
    return page(texts, solver.episodes(texts), solver.env)


def test_the_page_shows_a_step(two, seen):
    dom = seen(two, "#1")
    assert text_at(dom, "name") == ["ADD"]
    assert " ".join(text_at(dom, "said")) == "The next two operands: 3 + 4 = 7."
    assert " ".join(text_at(dom, "count")) == "step 1 of 5"
    assert marks_at(dom) == {0: "M", 3: "N"}
    assert memory_at(dom) == ["2"]
    assert (text_at(dom, "accumulator"), text_at(dom, "left")) == ([], [])
    assert " ".join(text_at(dom, "result")) == "Answer 14, right . Calls: 5, the textbook's plan: 5."
    assert re.search(r'<span class="used">2</span><span class="next">3</span><span>4</span>', dom)


def test_the_page_has_several_expressions(two, seen):
    dom = seen(two, "#2.5")
    assert text_at(dom, "name") == ["SUB"]
    assert " ".join(text_at(dom, "said")) == "Left operand and accumulator: 2 - (-56) = 58."
    assert marks_at(dom) == {0: "M", 3: "L", 12: "A"}
    assert (memory_at(dom), text_at(dom, "left"), text_at(dom, "accumulator")) == (["1"], ["2"], ["-56"])
    assert "2. 1-(2-(3-4)*56) = -57" in text_at(dom, "expression")


@pytest.mark.parametrize(
    ("keys", "step", "call"),
    [
        (["ArrowRight", "ArrowRight"], 2, ["RCL"]),
        (["ArrowRight", "ArrowRight", "ArrowLeft"], 1, ["ADD"]),
        (["ArrowLeft"], 0, ["STO"]),
        (["End"], 5, ["14"]),
        (["End", "ArrowRight", "ArrowLeft"], 4, ["ANS"]),
        (["End", "Home"], 0, ["STO"]),
    ],
)
def test_keys_step_through_the_page(two, seen, keys, step, call):
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    dom = seen(two, doing=f"for (const key of {json.dumps(keys)}) {press};")
    assert " ".join(text_at(dom, "count")) == f"step {step} of 5"
    assert text_at(dom, "name") == call
    assert f"Step {step} of 5." in " ".join(text_at(dom, "live"))


@pytest.mark.parametrize(
    ("doing", "count", "call"),
    [
        ("s = document.getElementById('step'); s.value = 3; s.dispatchEvent(new Event('input'))", "3 of 5", "MUL"),
        (
            "e = document.getElementById('expression'); e.value = 1; e.dispatchEvent(new Event('change'))",
            "0 of 9",
            "STO",
        ),
        ("document.getElementById('on').click(); document.getElementById('on').click()", "2 of 5", "RCL"),
        ("document.getElementById('last').click(); document.getElementById('back').click()", "4 of 5", "ANS"),
        ("document.querySelectorAll('#plan button')[3].click()", "3 of 5", "MUL"),
        ("location.hash = '#2.99'", "9 of 9", "-57"),
    ],
)
def test_slider_buttons_and_links_step_through_the_page(two, seen, doing, count, call):
    dom = seen(two, doing=doing)
    assert " ".join(text_at(dom, "count")) == f"step {count}"
    assert text_at(dom, "name") == [call]


def test_the_page_says_what_went_wrong(seen):
    solver = Solver(described(hurried=True), WEIGHTS)
    dom = seen(page(["2*(3+4)"], solver.episodes(["2*(3+4)"]), solver.env), "#4")
    assert " ".join(text_at(dom, "result")).startswith("Answer 7, wrong : it is 14.")
    assert " ".join(text_at(dom, "said")) == "That is wrong."
    assert 'id="choice" hidden' in dom


def test_large_numbers_are_exact_on_the_page(seen):
    text = "3037000499*3037000499"
    solver = Solver(DESCRIPTION, WEIGHTS)
    dom = seen(page([text], solver.episodes([text]), solver.env), "#1")
    assert text_at(dom, "accumulator") == ["9223372030926249001"]


def test_data_cannot_leave_their_place(seen):
    solver = Solver(described(tools=["ADD", "tests.commands.scripted.EVIL"]), WEIGHTS)
    text = "1+2</script><i>3"
    written = page([text], solver.episodes([text]), solver.env)
    assert written.count("</script>") == 2
    dom = seen(written, "#1")
    assert text_at(dom, "name") == ["EVIL"]
    assert " ".join(text_at(dom, "said")) == "Accumulator and next operand: 3 </script><i> 3 = 6."


def test_the_page_asks_nothing_of_the_network(two):
    assert "default-src 'none'" in two
    assert not re.search(r"https?:|src=|href=|url\(|@import|fetch\(|XMLHttp", two.replace("default-src", ""))
