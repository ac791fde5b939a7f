"""Rewards: how much, for what, and at which step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import Calculator, padded, tutorial_episode
from tests.strategies import expressions, expressions_with_programs
from toolagent_pl import CalculatorMachine, Problems, TutorialMachine
from toolagent_pl.machines.machine import execute
from toolagent_pl.machines.rewards import OutcomeReward, ProgressReward, TutorialReward
from toolagent_pl.problems import Ladder
from toolagent_pl.problems.expression import parse, shortest_program
from toolagent_pl.tokens import PADDING, TOOLS, Token

MUL, ADD, SUB, ANS, STO, RCL = Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL
WEIGHT = 0.25
PROGRESS = ProgressReward(WEIGHT)


def paid(reward, machine, problems, programs):
    """What each program earns at each of its actions."""
    actions = torch.tensor(padded(programs), dtype=torch.int64)
    final = execute(machine, problems, actions)[-1]
    rewards = reward(machine, final, actions.T)
    assert rewards.dtype == torch.float32
    assert rewards.shape == actions.T.shape
    return rewards.T.tolist()


def paid_for(text, program, reward=PROGRESS, max_steps=None):
    return paid(reward, CalculatorMachine(max_steps), Problems.from_expressions([text]), [program])[0]


def test_outcome_is_paid_at_the_answer():
    assert paid_for("2*3", [Token.EOS, MUL, ANS, ANS], OutcomeReward()) == [0, 0, 1, 0]
    assert paid_for("2*3", [ADD, ANS, MUL, ANS], OutcomeReward()) == [0, 0, 0, 0]
    assert paid_for("2*3", [MUL, ANS], OutcomeReward(), max_steps=1) == [0, 0]


def operators_of(text):
    """The operators of an expression as nested (tool, left, right); the leaves are positions on the tape."""
    leaves, tree = parse(text)
    value = {(i, i + 1): i for i in range(len(leaves))}
    for tool, start, split, end in tree:
        value[start, end] = (tool, value[start, split], value[split, end])
    return {nested for nested in value.values() if isinstance(nested, tuple)}


without_padding = st.lists(st.integers(0, max(Token)) | st.sampled_from(TOOLS), max_size=16)


@given(st.lists(expressions_with_programs(without_padding), min_size=1, max_size=12), st.none() | st.integers(1, 9))
def test_progress_is_that_of_a_symbolic_calculation(cases, max_steps):
    cases = [(text, [action for action in program if action >= 0] + [ANS]) for text, program in cases]
    texts, programs = zip(*cases, strict=True)
    rewards = paid(PROGRESS, CalculatorMachine(max_steps), Problems.from_expressions(texts), programs)
    for row, (text, program) in zip(rewards, cases, strict=True):
        operands = [int(leaf) for leaf in parse(text).leaves]
        symbols = Calculator(range(len(operands)), max_steps, join=lambda *nested: nested)
        values = Calculator(operands, max_steps)
        for reward, action in zip(row, program, strict=False):
            progress = symbols.press(action) in operators_of(text)
            running = not values.done
            values.press(action)
            solved = running and values.done and values.solved(eval(text))
            assert reward == WEIGHT * progress + solved
        assert not any(row[len(program) :])


@given(expressions)
def test_a_full_program_earns_the_outcome_and_each_operator_once(text):
    tree = parse(text).tree
    program = shortest_program(tree)
    if sum(action == STO for action in program) <= 8:
        rewards = paid_for(text, program)
        assert rewards == [WEIGHT * (MUL <= action <= SUB) + (action == ANS) for action in program]


@pytest.mark.parametrize(
    ("text", "program", "rewards"),
    [
        ("2*2", [ADD, ANS], [0, 1]),  # right by luck: no progress
        ("0+3*1", [ADD, MUL, ANS], [0, 0, 1]),
        ("2*3+4", [MUL, MUL, ANS], [WEIGHT, 0, 0]),
        ("2*3+4", [MUL, MUL, ADD, SUB], [WEIGHT, 0, 0, 0]),
        ("2*3", [MUL, MUL, MUL, ANS], [WEIGHT, 0, 0, 1]),  # once
        ("2*3", [MUL, ANS, MUL, ANS], [WEIGHT, 1, 0, 0]),
        ("(2*3)-(2*3)", [MUL, STO, MUL, RCL, SUB, ANS], [WEIGHT, 0, WEIGHT, 0, WEIGHT, 1]),
        ("1-(2*3)", [SUB, MUL, ANS], [0, 0, 0]),
        ("(9-5)-3", [STO, SUB, RCL, SUB, ANS], [0, 0, 0, 0, 0]),
        ("2-2", [STO, STO, RCL, RCL, SUB, ANS], [0, 0, 0, 0, WEIGHT, 1]),
        ("2-2", [SUB], [WEIGHT]),
    ],
)
def test_progress_by_example(text, program, rewards):
    assert paid_for(text, program) == rewards


def test_a_problem_without_operators_pays_its_outcome():
    assert paid_for("7", [STO, RCL, ANS]) == [0, 0, 1]


def test_progress_is_not_paid_after_the_step_limit():
    assert paid_for("2*3+4", [MUL, ADD, ANS], max_steps=1) == [WEIGHT, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 999), without_padding), min_size=1, max_size=12))
def test_the_tutorial_pays_at_the_last_step(cases):
    ladder = Ladder(["T0", "T1", "T2"])
    stage, index, programs = zip(*cases, strict=True)
    stage = torch.tensor(stage)
    problems = ladder.problems(stage, stage, torch.tensor(index) * ladder.sizes(stage) // 1000)
    programs = [[*program, ANS] for program in programs]
    rewards = paid(TutorialReward(), TutorialMachine(max_steps=7), problems, programs)
    for row, tape, level, program in zip(rewards, problems.operands.tolist(), stage.tolist(), programs, strict=True):
        wanted, steps = tutorial_episode(tape, level, program, max_steps=7)
        assert row[steps - 1] == pytest.approx(wanted, abs=1e-6)
        assert not any(row[: steps - 1] + row[steps:])


@pytest.mark.parametrize(
    ("reward", "machine"), [(TutorialReward(), CalculatorMachine()), (ProgressReward(), TutorialMachine())]
)
def test_a_machine_on_which_a_reward_has_no_meaning_is_refused(reward, machine):
    with pytest.raises(ValueError, match=r"^model\.reward: got \w+Reward with \w+Machine, expected \w+Machine"):
        reward.check_machine(machine)


@pytest.mark.parametrize(
    ("reward", "machine"),
    [
        (OutcomeReward(), CalculatorMachine()),
        (OutcomeReward(), TutorialMachine()),
        (TutorialReward(), TutorialMachine()),
        (ProgressReward(), CalculatorMachine()),
    ],
)
def test_other_machines_are_accepted(reward, machine):
    reward.check_machine(machine)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"^model\.reward\.weight: got -1"):
        ProgressReward(-1)


def test_padding_is_not_paid():
    assert paid_for("2*3", [MUL, PADDING])[1] == 0
