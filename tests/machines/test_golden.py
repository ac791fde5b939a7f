"""Both machines agree with recorded facts, row by row."""

import json
from pathlib import Path

import pytest
import torch

from toolagent_pl import CalculatorMachine, Problems, TutorialMachine
from toolagent_pl.machines.calculator import MEMORY_DEPTH
from toolagent_pl.tokens import PADDING

GOLDEN = Path(__file__).parent.parent / "golden"


def padded(programs: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, programs))
    return torch.tensor([program + [PADDING] * (longest - len(program)) for program in programs])


def test_calculator_machine_agrees_with_every_golden_row():
    golden = json.loads((GOLDEN / "calculator_machine.json").read_text())
    assert golden["memory_depth"] == MEMORY_DEPTH
    expressions, programs, answered, answer, correct, steps = zip(*golden["rows"], strict=True)
    outcome = CalculatorMachine().run(Problems.from_expressions(expressions), padded(list(programs)))
    assert outcome.answered.tolist() == list(answered)
    assert outcome.answer.tolist() == [0 if value is None else value for value in answer]
    assert outcome.valued.tolist() == [value is not None for value in answer]
    assert outcome.correct.tolist() == list(correct)
    assert outcome.steps.tolist() == list(steps)


def test_tutorial_machine_agrees_with_every_golden_row():
    rows = json.loads((GOLDEN / "tutorial_machine.json").read_text())["rows"]
    stage, operands, programs, reward, steps = zip(*rows, strict=True)
    got_reward, got_steps = TutorialMachine(max_steps=7).run(
        torch.tensor(operands), torch.tensor(stage), padded(list(programs))
    )
    assert got_reward.tolist() == pytest.approx(list(reward), abs=1e-6)
    assert got_steps.tolist() == list(steps)
