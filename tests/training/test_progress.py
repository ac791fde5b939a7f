"""What a terminal shows of a run: its bar, and the table at the end."""

import io
import itertools
import re
import sys

import pytest

from tests.conftest import SHORT
from toolagent_pl.cli.main import main
from toolagent_pl.training.progress import ProgressBar

READER = ["--model.agent=Reader", "--env.feedback=spans", "--env.max_steps=auto", "--data.batch_size=64"]
STAGES = ["--env.stages=[E1,E2]", "--env.unseen=[E6]", "--curriculum.stages=[E1,E2]", "--curriculum.every_n_epochs=2"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [80, 120])
def test_stage_accuracy_and_time_left_are_on_the_screen_after_each_batch(tmp_path, monkeypatch, capsys, columns):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("tqdm.std.time", itertools.count().__next__)  # however fast the batches are
    screens, shown = [], ProgressBar.on_train_batch_end

    def look(*args):
        shown(*args)
        screens.append(terminal.getvalue().rpartition("\r")[2])

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", look)
    main(["fit", *SHORT, *READER, *STAGES, "--model.reward=ProgressReward", "--trainer.max_epochs=3"])
    found = [
        re.match(r"(E\d)  (-|[\d.]+%) right  epoch (\d)/3 .*? (\d\d:\d\d) left at most \|", one) for one in screens
    ]
    assert all(found), screens
    assert [(one[1], one[3]) for one in found] == [("E1", "1")] * 2 + [("E1", "2")] * 2 + [("E2", "3")] * 2
    assert [one[2] == "-" for one in found] == [True, True, False, False, False, False]
    assert [one[4] for one in found][-1] == "00:00" < found[0][4]
    table = capsys.readouterr().out.split("Final greedy agent")[1]
    assert [row.split()[0] for row in table.rpartition("─")[2].splitlines() if row.strip()] == ["E1", "E2", "E6"]
    assert max(map(len, [*screens, *table.splitlines()])) <= columns
