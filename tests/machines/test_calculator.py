"""The calculator against a slow one, and its rules by example."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import Calculator, padded
from tests.strategies import expressions_with_programs, random_programs
from toolagent_pl import CalculatorMachine, Problems
from toolagent_pl.machines.calculator import MEMORY, MEMORY_DEPTH
from toolagent_pl.machines.machine import execute
from toolagent_pl.tokens import PADDING, Token

MUL, ADD, SUB, ANS, STO, RCL = Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL
batches = st.lists(expressions_with_programs(), min_size=1, max_size=12)
limits = st.none() | st.integers(1, 12)


def run(text, *program, max_steps=None):
    """Outcome of one program, as plain values."""
    outcome = CalculatorMachine(max_steps).run(Problems.from_expressions([text]), torch.tensor([program]))
    return type(outcome)(*(column.item() for column in outcome))


def columns(state):
    return [column for field in state for column in (field if isinstance(field, tuple) else [field])]


@given(batches, limits)
def test_every_step_is_that_of_the_slow_calculator(batch, max_steps):
    texts, programs = zip(*batch, strict=True)
    actions = torch.tensor(padded(programs), dtype=torch.int64)
    machine = CalculatorMachine(max_steps)
    problems = Problems.from_expressions(texts)
    states = execute(machine, problems, actions)
    outcome = machine.outcome(states[-1])
    for row, text in enumerate(texts):
        length = problems.length[row]
        slow = Calculator(problems.operands[row, :length].tolist(), max_steps)
        for action, state in zip([PADDING, *actions[row].tolist()], states, strict=True):
            slow.press(action)
            assert state.value[row] == (slow.value or 0)
            assert state.valued[row] == (slow.value is not None)
            assert (state.done[row], state.steps[row], state.idle[row]) == (slow.done, slow.steps, slow.idle)
            rest, valued = divmod(int(state.number[row]), 2)
            rest, recalled = divmod(rest, 2)
            remaining, depth = divmod(rest, MEMORY_DEPTH + 1)
            assert (remaining, valued) == (len(slow.tape), slow.value is not None)
            assert state.registers[row, MEMORY : MEMORY + depth].tolist() == slow.memory
            assert recalled == (slow.left is not None)
        answered = slow.answered and slow.value is not None
        assert (outcome.answered[row], outcome.valued[row]) == (slow.answered, answered)
        assert outcome.answer[row] == (slow.value if answered else 0)
        assert outcome.correct[row] == slow.solved(eval(text))
        assert outcome.steps[row] == slow.steps


@given(expressions_with_programs(), random_programs, limits)
def test_nothing_changes_after_the_end(case, more, max_steps):
    text, program = case
    machine, problems = CalculatorMachine(max_steps), Problems.from_expressions([text])
    ended = execute(machine, problems, torch.tensor([[*program, ANS]]))[-1]
    later = execute(machine, problems, torch.tensor([[*program, ANS, *more]]))[-1]
    for before, after in zip(columns(ended), columns(later), strict=True):
        assert torch.equal(before, after)


@given(expressions_with_programs(), st.data())
def test_padding_takes_no_step_wherever_it_stands(case, data):
    text, program = case
    with_padding = [PADDING]
    for action in program:
        with_padding += [action] + [PADDING] * data.draw(st.integers(0, 2))
    without = [action for action in program if action >= 0]
    assert run(text, *with_padding, ANS) == run(text, *without, ANS)


@pytest.mark.parametrize(
    ("text", "program", "left"),
    [
        ("2*3+0", [MUL, ANS], "an operand on the tape"),
        ("(2*1+3)-(0*5)", [MUL, ADD, ANS], "two operands on the tape"),
        ("0+3*1", [STO, MUL, ANS], "a value in memory"),
        ("0+3*1", [STO, MUL, RCL, ANS], "a recalled left operand"),
    ],
)
def test_a_lucky_answer_on_half_done_work_is_wrong(text, program, left):
    outcome = run(text, *program)
    assert outcome.answer == eval(text)
    assert not outcome.correct, left


@pytest.mark.parametrize(
    ("text", "program", "answer"),
    [
        ("2*3+4", [MUL, ADD, ANS], 10),
        ("9-2", [SUB, ANS], 7),
        ("1-(2-(3*4))", [STO, STO, MUL, RCL, SUB, RCL, SUB, ANS], 11),
        ("(7-2)-(8-5)", [SUB, STO, SUB, RCL, SUB, ANS], 2),
        ("8", [STO, RCL, ANS], 8),
    ],
)
def test_programs_that_solve_their_problem(text, program, answer):
    assert run(text, *program) == (True, answer, True, True, len(program))


def test_operands_keep_their_sides():
    assert run("9-(2*3)", STO, MUL, RCL, SUB, ANS).answer == 3  # the recalled one on the left
    assert run("9-(2*3)", SUB, MUL, ANS).answer == 21


def test_memory_holds_eight_values():
    # A ninth STO does nothing, so 128 comes back first; then 64-128, 32-(64-128) and so on.
    outcome = run("3-2-4-8-16-32-64-128-256", *[STO] * 9, RCL, *[RCL, SUB] * 6, RCL, MUL, ANS)
    assert outcome.answer == eval("3*(2-(4-(8-(16-(32-(64-128))))))")
    assert not outcome.correct


def test_nothing_is_stored_or_recalled_while_a_left_operand_waits():
    assert run("1-(2*3)", STO, MUL, RCL, STO, RCL, SUB, ANS) == (True, -5, True, True, 7)
    assert run("4-(1-(2*3))", STO, STO, MUL, RCL, RCL, SUB, RCL, SUB, ANS) == (True, 9, True, True, 9)


def test_answering_nothing():
    assert run("1+2", ANS) == (True, 0, False, False, 1)
    assert run("1-1", ANS) == (True, 0, False, False, 1)  # an empty accumulator is not a 0


@pytest.mark.parametrize(("max_steps", "answered"), [(1, False), (2, True), (3, True), (None, True)])
def test_an_answer_must_come_within_the_step_limit(max_steps, answered):
    outcome = run("2*3", MUL, ANS, max_steps=max_steps)
    assert (outcome.answered, outcome.correct) == (answered, answered)
    assert outcome.answer == (6 if answered else 0)


def test_large_values_are_exact():
    assert run("3037000499*3037000499", MUL, ANS).answer == 3037000499**2


@pytest.mark.parametrize(
    "actions",
    [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(1, 3), torch.zeros(3, dtype=torch.int64)],
    ids=["rows", "type", "dimensions"],
)
def test_actions_that_do_not_fit_are_refused(actions):
    with pytest.raises(ValueError, match=r"^actions: got .*expected int64 of shape \[1, steps\]"):
        CalculatorMachine().run(Problems.from_expressions(["1+2"]), actions)


@pytest.mark.parametrize("max_steps", [0, -1])
def test_a_step_limit_below_one_is_refused(max_steps):
    with pytest.raises(ValueError, match=rf"max_steps: got {max_steps}, expected at least 1"):
        CalculatorMachine(max_steps)
