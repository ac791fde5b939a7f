"""TRL's own trainer takes the text environment as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
ROOT = Path(__file__).parents[2]


def test_the_example_trains_and_rewards_arrive(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "trl_grpo.py"), "--steps=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["scripted"] == 1.0
    assert 0.02 < result["random"] < 0.2
    assert len(result["rewards of the updates"]) == 2
    assert max(result["rewards of the updates"]) > 0
