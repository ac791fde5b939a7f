"""Both environments agree with recorded facts, row by row."""

import json
from pathlib import Path

import pytest
import torch

from tests.reference import padded
from toolagent_pl import CalculatorEnv, Problems, TutorialEnv
from toolagent_pl.rl.env import execute

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name):
    return json.loads((GOLDEN / name).read_text())


def test_the_calculator_agrees_with_every_golden_row():
    facts = golden("calculator_machine.json")
    expressions, plans, answered, answer, correct, steps = zip(*facts["rows"], strict=True)
    env = CalculatorEnv(memory_depth=facts["memory_depth"])
    outcome = env.run(Problems.from_expressions(expressions), torch.tensor(padded(plans)))
    assert len(expressions) > 1000
    assert outcome.answered.tolist() == list(answered)
    assert outcome.answer.tolist() == [0 if value is None else value for value in answer]
    assert outcome.valued.tolist() == [value is not None for value in answer]
    assert outcome.correct.tolist() == list(correct)
    assert outcome.steps.tolist() == list(steps)


def test_the_tutorial_agrees_with_every_golden_row():
    stage, operands, plans, reward, steps = zip(*golden("tutorial_machine.json")["rows"], strict=True)
    got_reward, got_steps = TutorialEnv(max_steps=7).run(
        torch.tensor(operands), torch.tensor(stage), torch.tensor(padded(plans))
    )
    assert len(stage) > 1000
    assert got_reward.tolist() == pytest.approx(list(reward), abs=1e-6)
    assert got_steps.tolist() == list(steps)


def test_feedback_agrees_with_every_golden_row():
    expressions, reference_length, value, plans, reports = zip(*golden("feedback.json")["rows"], strict=True)
    problems, env = Problems.from_expressions(expressions), CalculatorEnv(feedback="spans").with_all_tokens()
    assert problems.size == 600
    assert problems.target.tolist() == list(value)
    assert problems.reference_length.tolist() == list(reference_length)
    states = execute(env, problems, torch.tensor(padded(plans)))
    flags, positions = (
        torch.stack(column, 1).tolist() for column in zip(*(env.observe(state) for state in states), strict=True)
    )
    for row, reported in enumerate(reports):
        steps = len(reported)
        assert steps == len(plans[row])
        assert [list(pair) for pair in zip(flags[row][:steps], positions[row][:steps], strict=True)] == reported
