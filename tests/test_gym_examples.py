"""The examples for Gymnasium learn T0, and docs/gymnasium.md runs from the page itself."""

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "gymnasium.md").read_text()


def test_maskable_ppo_learns_t0():
    pytest.importorskip("sb3_contrib")
    example = runpy.run_path(str(ROOT / "examples" / "sb3.py"))
    assert example["accuracy"](example["train"]()) >= 0.99


def test_ppo_in_one_file_learns_t0():
    example = runpy.run_path(str(ROOT / "examples" / "cleanrl_style.py"))
    assert example["accuracy"](example["train"]()) >= 0.99


def test_the_page_runs_and_prints_what_it_says(capsys):
    names = {}
    for language, block in re.findall(r"^```(python|text)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(block, names)
        else:
            assert capsys.readouterr().out == block
    assert names["terminated"].shape == (1024,)


def test_the_commands_of_the_page_are_those_of_the_examples():
    for path in re.findall(r"^python (examples/\S+)", PAGE, re.MULTILINE):
        assert (ROOT / path).is_file()
