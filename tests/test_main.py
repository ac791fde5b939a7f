"""The command ``toolagent_pl``, as it is installed."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run it with these words in an empty directory; its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "bin"), *sys.path[1:]])  # begins with the folder of the script
    module, _, function = PROJECT["scripts"]["toolagent_pl"].partition(":")

    def script(*words):
        monkeypatch.setattr(sys, "argv", ["toolagent_pl", *words])
        with pytest.raises(SystemExit) as stopped:
            getattr(import_module(module), function)()
        return stopped.value.code

    return script


def test_it_solves(run, capsys):
    assert run("solve", "2*(3+4)") == 0
    assert "14, right" in capsys.readouterr().out


def test_it_finds_modules_of_ones_own_in_the_working_directory(run, capsys, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "near", raising=False)
    (tmp_path / "near.py").write_text(
        "import torch\nfrom toolagent_pl import Tool\nMAX = Tool('MAX', 'max', 3, torch.maximum)\n"
    )
    assert run("fit", "--data.tools=[ADD,near.MAX]", "--data.stages=[E1]", "--data.unseen=[E99]") == 2
    error = capsys.readouterr().err
    assert "near" not in error
    assert "E99" in error


def test_no_newer_torch_is_replaced():
    (torch,) = (line for line in PROJECT["dependencies"] if line.startswith("torch>"))
    assert "<" not in torch
