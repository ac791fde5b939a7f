"""docs/language_models.md runs, from the page itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "language_models.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


def run(section, capsys, url=""):
    """Run the Python of a section, and compare what it prints with what the page says."""
    names, compared = {}, 0
    for language, block in re.findall(r"^```(python|text)\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL):
        if language == "python":
            capsys.readouterr()
            exec(block.replace("http://127.0.0.1:8000", url), names)
        else:
            assert capsys.readouterr().out == block
            compared += 1
    return compared


def test_the_text_environment_says_what_the_page_says(capsys):
    assert run("A text environment", capsys) == 2


def test_the_server_says_what_the_page_says(capsys):
    pytest.importorskip("openenv")
    from tests.interop.test_openenv import server

    with server() as (_, url):
        assert run("OpenEnv", capsys, url) == 1


def test_the_commands_are_there():
    for path in re.findall(r"^python (examples/\S+)", PAGE, re.MULTILINE):
        assert (ROOT / path).is_file()
    for words in re.findall(r"^python -m benchmarks.text_eval (.*)$", PAGE, re.MULTILINE):
        from benchmarks.text_eval import _parser

        assert _parser().parse_args(words.split()).model == "NAME"
