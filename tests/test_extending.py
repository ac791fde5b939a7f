"""Every section of docs/extending.md is complete and runs, from the page itself."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from toolagent_pl.cli.main import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
QUICK = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--data.batches_per_epoch=2", "--data.test_problems=50"]


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_runs_as_it_stands(title, tmp_path, monkeypatch, capsys):
    section = SECTIONS[title]
    commands = blocks(section, "bash")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, language in (("mine.py", "python"), ("task.yaml", "yaml")):
        for code in blocks(section, language):
            assert len(code.splitlines()) < (80 if title == "An environment" else 25)
            (tmp_path / name).write_text(code)
    if not commands:  # it is Python that runs by itself; in short
        code = (tmp_path / "mine.py").read_text().replace("max_epochs=100", "max_epochs=1, limit_test_batches=1")
        exec(compile(code, "mine.py", "exec"), {})
        assert "2*(3+4)" in capsys.readouterr().out
        return
    words = shlex.split(commands[0].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "toolagent_pl"]
    main([*words[3:], *QUICK])
    assert (tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").is_file()
    table = capsys.readouterr().out.rpartition("Final greedy agent")[2]
    assert "%" in table
