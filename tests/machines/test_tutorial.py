"""The tutorial's machine against a slow one, and what is odd in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import padded, tutorial_episode
from tests.strategies import any_action
from toolagent_pl import TutorialMachine
from toolagent_pl.machines.machine import execute
from toolagent_pl.machines.tutorial import MOST_STEPS
from toolagent_pl.problems import STAGES, Ladder
from toolagent_pl.tokens import PADDING, TOOLS, Token

MUL, ADD, SUB, ANS, STO, RCL = Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL
digits = st.tuples(*[st.integers(0, 2) | st.integers(0, 9)] * 5)  # small ones meet the goals by luck
programs = st.lists(st.sampled_from([*TOOLS, PADDING]) | any_action, max_size=12)
limits = st.none() | st.integers(1, 8)


def run(rows, max_steps=7):
    """(reward, steps) of each (operands, stage, program)."""
    operands, stage, actions = zip(*rows, strict=True)
    reward, steps = TutorialMachine(max_steps).run(
        torch.tensor(operands), torch.tensor(stage), torch.tensor(padded(actions), dtype=torch.int64)
    )
    return list(zip(reward.tolist(), steps.tolist(), strict=True))


@given(st.lists(st.tuples(digits, st.integers(0, 2), programs), min_size=1, max_size=20), limits)
def test_rewards_and_steps_are_those_of_the_slow_machine(rows, max_steps):
    for (reward, steps), (operands, stage, actions) in zip(run(rows, max_steps), rows, strict=True):
        slow_reward, slow_steps = tutorial_episode(operands, stage, actions, max_steps)
        assert reward == pytest.approx(slow_reward, abs=1e-6)
        assert steps == slow_steps


@given(digits, st.integers(0, 2), programs, programs)
def test_nothing_changes_after_the_answer(operands, stage, program, more):
    program = program[:6]
    assert run([(operands, stage, [*program, ANS])]) == run([(operands, stage, [*program, ANS, *more])])


@pytest.mark.parametrize(
    ("stage", "program", "reward"),
    [
        (0, [MUL, ANS], 1.05),  # graded on a*b
        (0, [MUL, ADD, ANS], 0.1),
        (0, [MUL, STO, RCL, ANS], 1.05),  # STO and RCL leave the value alone
        (1, [MUL, ADD, ANS], 1.1),  # graded on a*b+c
        (1, [MUL, ADD, SUB, ANS], 0.15),
        (2, [MUL, ADD, STO, RCL, ANS], 0.12),  # RCL replaces everything by d*e
        (2, [MUL, ADD, ANS], 0.08),
        (2, [MUL, ADD, SUB, ANS], 1.0),  # graded on a*b+c-d
        (0, [MUL, ADD], 0.0),  # only an answer is paid
    ],
)
def test_what_the_tutorial_pays(stage, program, reward):
    ((paid, _),) = run([((7, 8, 9, 3, 5), stage, program)])
    assert paid == pytest.approx(reward)


def test_no_value_leaves_64_bits():
    problems = Ladder(["T0", "T1", "T2"]).problems(torch.tensor([0]), torch.tensor([2]), torch.tensor([99999]))
    actions = torch.tensor([[MUL] * 30])
    final = execute(TutorialMachine(MOST_STEPS), problems, actions)[-1]
    assert final.value.item() == 9 ** (MOST_STEPS + 1)
    with pytest.raises(ValueError, match=r"max_steps: got 19, expected at most 18"):
        TutorialMachine(MOST_STEPS + 1)


def test_an_empty_value_is_recalled_as_zero():
    assert run([((0, 8, 9, 3, 5), 0, [STO, RCL, ANS]), ((0, 8, 9, 3, 5), 0, [ANS])]) == [
        (pytest.approx(1.05), 3),
        (0, 1),
    ]


def test_being_right_is_judged_on_the_true_target():
    ladder = Ladder(["T0", "T1", "T2"])
    stage = torch.tensor([0, 0, 1])
    problems = ladder.problems(stage, stage, torch.tensor([789, 780, 7893]))
    machine = TutorialMachine()
    actions = torch.tensor([[MUL, ANS, PADDING], [MUL, ANS, PADDING], [MUL, ADD, ANS]])
    outcome = machine.outcome(execute(machine, problems, actions)[-1])
    assert outcome.answer.tolist() == [56, 56, 65]
    assert outcome.correct.tolist() == [False, True, False]  # right only where c is 0


@pytest.mark.parametrize("names", [["T0"], ["T0", "T1"], ["T0", "T1", "T2"]])
def test_shortest_programs_reach_what_is_graded(names):
    ladder, machine = Ladder(names), TutorialMachine()
    machine.check_ladder(ladder.stages)
    for position, stage in enumerate(ladder.stages):
        digits = [7, 8, 9, 3, 5][: stage.operands] + [0] * (5 - stage.operands)
        ((reward, _),) = run([(digits, position, machine.shortest_program(stage))])
        assert reward >= 1


@pytest.mark.parametrize("names", [["T1"], ["T1", "T0"], ["T0", "T2"]])
def test_other_ladders_have_no_meaning(names):
    with pytest.raises(ValueError, match=r"^data\.stages: got .*expected \[T0, T1, T2\] or the first of them"):
        TutorialMachine().check_ladder([STAGES[name] for name in names])


@pytest.mark.parametrize(
    ("operands", "stage", "actions", "named"),
    [
        ([[1, 2, 3, 4]], [0], [[MUL]], "operands"),
        ([[1.0] * 5], [0], [[MUL]], "operands"),
        ([[1] * 5], [0, 0], [[MUL]], "stage"),
        ([[1] * 5], [0.0], [[MUL]], "stage"),
        ([[1] * 5], [3], [[MUL]], "stage"),
        ([[1] * 5], [-1], [[MUL]], "stage"),
        ([[1] * 5], [0], [[MUL], [MUL]], "actions"),
        ([[1] * 5], [0], [[1.0]], "actions"),
    ],
)
def test_arguments_that_do_not_fit_are_named(operands, stage, actions, named):
    with pytest.raises(ValueError, match=f"^{named}: got .*expected"):
        TutorialMachine().run(torch.tensor(operands), torch.tensor(stage), torch.tensor(actions))
