"""docs/export.md runs, from the page itself."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from toolagent_pl import Solver
from toolagent_pl.cli.export import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "export.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize("title", [title for title, text in SECTIONS.items() if "```" in text])
def test_a_section_runs_as_it_stands(title, tmp_path, monkeypatch, capsys):
    section = SECTIONS[title]
    if "onnx" in section:
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "lightning_logs" / "version_0"  # of the agent of the package
    (run / "checkpoints").mkdir(parents=True)
    solver = Solver.from_checkpoint()
    state = {f"agent.{name}": weight for name, weight in solver.agent.state_dict().items()}
    torch.save({"state_dict": state}, run / "checkpoints" / "last.ckpt")
    config = {"env": solver.description["env"], "model": {"agent": solver.description["agent"]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(code, {})
            continue
        for line in code.splitlines():
            words = shlex.split(line)
            if words[:4] == ["python", "-m", "toolagent_pl", "export"]:
                assert main(words[4:]) == 0
                told = capsys.readouterr().out
                assert "safetensors" in line or "with the same plans for 2,500 problems" in told
            elif words[0] == "python":
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                done = subprocess.run([sys.executable, *words[1:]], env=environment, capture_output=True, check=True)
                assert done.stdout.decode().splitlines()[0] == "2*(3+4) = ['STO', 'ADD', 'RCL', 'MUL', 'ANS'] 14"
            else:
                assert words[:3] == ["pip", "install", "-e"]
    if language == "python":
        assert "correct=True" in capsys.readouterr().out
        assert (tmp_path / "a-copy" / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
