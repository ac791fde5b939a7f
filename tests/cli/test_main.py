"""The command ``toolagent_pl``, as it is installed."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Run it with these words in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "bin"), *sys.path[1:]])  # begins with the folder of the script
    module, _, function = PROJECT["scripts"]["toolagent_pl"].partition(":")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["toolagent_pl", *words])
        getattr(import_module(module), function)()

    return run


def test_it_solves(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script("solve", "2*(3+4)")
    assert stopped.value.code == 0
    assert "14, right" in capsys.readouterr().out


def test_it_finds_tools_of_ones_own_in_the_working_directory(script, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "near", raising=False)
    (tmp_path / "near.py").write_text(
        "import torch\nfrom toolagent_pl import Tool\nMAX = Tool('MAX', 'max', 3, torch.maximum)\n"
    )
    tiny = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--data.batches_per_epoch=1", "--data.batch_size=64"]
    tiny += ["--data.val_problems=20", "--data.test_problems=20"]
    script("fit", *tiny, "--env.stages=[E1]", "--env.unseen=[]", "--env.tools=[near.MAX]")
    assert (tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").is_file()


def test_no_newer_torch_is_replaced():
    (torch,) = (line for line in PROJECT["dependencies"] if line.startswith("torch>"))
    assert "<" not in torch
