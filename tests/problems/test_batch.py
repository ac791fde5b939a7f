"""Batches built from written expressions."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.reference import Calculator
from tests.strategies import expressions, random_programs
from toolagent_pl import CalculatorMachine, Problems
from toolagent_pl.machines.machine import execute
from toolagent_pl.problems.expression import magnitude_bound
from toolagent_pl.tokens import TOOLS, Token

MUL, ADD, SUB, CTX, EOS, OPEN, CLOSE = (
    Token.MUL, Token.ADD, Token.SUB, Token.CTX, Token.EOS, Token.OPEN, Token.CLOSE
)  # fmt: skip
INT64_MAX = 2**63 - 1


def test_a_batch_of_two():
    problems = Problems.from_expressions(["3*4+5", "1-(2-(3*14))"])
    assert problems.size == 2
    assert problems.target.tolist() == [17, 41]
    assert problems.length.tolist() == [3, 4]
    assert problems.operands.tolist() == [[3, 4, 5, 0], [1, 2, 3, 14]]
    written = [1, SUB, OPEN, 2, SUB, OPEN, 3, MUL, 1, 4, CLOSE, CLOSE, CTX]
    assert problems.observation.tolist() == [[3, MUL, 4, ADD, 5, CTX] + [EOS] * 7, written]
    assert problems.tree.tolist() == [
        [[MUL, 0, 1, 2], [ADD, 0, 2, 3], [0, 0, 0, 0]],
        [[MUL, 2, 3, 4], [SUB, 1, 2, 4], [SUB, 0, 1, 4]],
    ]
    assert all(column.dtype == torch.int64 for column in problems)


@given(st.lists(expressions, min_size=1, max_size=10))
def test_company_changes_nothing_but_padding(texts):
    batch = Problems.from_expressions(texts)
    assert batch.target.tolist() == [eval(text) for text in texts]
    for row, text in enumerate(texts):
        alone = Problems.from_expressions([text])
        width = alone.observation.shape[1]
        assert batch.observation[row, :width].tolist() == alone.observation[0].tolist()
        assert (batch.observation[row, width:] == EOS).all()
        tape = alone.length.item()
        assert batch.operands[row, :tape].tolist() == alone.operands[0].tolist()
        assert not batch.operands[row, tape:].any()


def test_select_keeps_rows_together():
    problems = Problems.from_expressions(["1+2", "3*4", "9-5"])
    chosen = problems.select(torch.tensor([2, 0]))
    assert chosen.number.tolist() == [2, 0]
    assert chosen.target.tolist() == [4, 3]
    assert problems.select(slice(1, None)).target.tolist() == [12, 4]


@pytest.mark.parametrize("text", ["1+", "a+1", "x", "1/2", "1-(-2)", "0b11", "0x1+2"])
def test_an_error_names_the_expression_at_fault(text):
    with pytest.raises(ValueError, match=r"^expression ") as error:
        Problems.from_expressions(["1+2", text])
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text("0123abx*+-() _.", max_size=12))
def test_any_text_is_read_or_refused_by_name(text):
    refused = ""
    try:
        problems = Problems.from_expressions([text])
    except ValueError as error:
        refused = str(error)
    if refused:
        assert repr(text) in refused
    else:
        assert problems.target.item() == eval(text)


@pytest.mark.parametrize("expressions", [[], "1+2"])
def test_a_list_of_expressions_is_asked_for(expressions):
    with pytest.raises(ValueError, match="expected a non-empty list of strings"):
        Problems.from_expressions(expressions)


@pytest.mark.parametrize(
    "text",
    [
        f"{INT64_MAX + 1}",
        f"{INT64_MAX}+1",
        f"1-{INT64_MAX}-2",
        "4294967296*2147483648",
        "(4294967296*4294967296)*0",  # the value fits, a part of it does not
        "4294967296-4294967296",  # the value fits, but the wrong program MUL ANS would wrap round to it
    ],
)
def test_values_beyond_64_bits_are_refused(text):
    with pytest.raises(ValueError, match="might not fit into 64 bits") as error:
        Problems.from_expressions([text])
    assert repr(text) in str(error.value)


large = st.sampled_from([0, 1, 2, 3, 2**31, 2**32, 3037000499, INT64_MAX, INT64_MAX + 1]) | st.integers(0, 2**40)


@st.composite
def large_expressions(draw, depth=3):
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return str(draw(large))
    left, right = draw(large_expressions(depth=depth - 1)), draw(large_expressions(depth=depth - 1))
    return f"({left}{draw(st.sampled_from('*+-'))}{right})"


@given(large_expressions(), random_programs | st.lists(st.sampled_from([int(tool) for tool in TOOLS]), max_size=24))
def test_no_program_leaves_int64_on_a_problem_that_is_accepted(text, program):
    try:
        problems = Problems.from_expressions([text])
    except ValueError as error:
        assume("might not fit" not in str(error))
        raise
    assert problems.target.item() == eval(text)
    exact = Calculator(problems.operands[0, : problems.length[0]].tolist())
    states = execute(CalculatorMachine(), problems, torch.tensor([program], dtype=torch.int64).view(1, -1))
    for action, state in zip(program, states[1:], strict=True):
        exact.press(action)
        values = [exact.value or 0, exact.left or 0, *exact.memory]
        assert all(abs(value) <= INT64_MAX for value in values)
        assert state.value.item() == values[0]


@given(st.lists(large, min_size=1, max_size=6), st.data())
def test_the_bound_holds_for_any_order_of_any_operators(operands, data):
    bound = magnitude_bound(operands)
    values = list(operands)
    while len(values) > 1:  # join any two, as no machine could do better
        left = values.pop(data.draw(st.integers(0, len(values) - 1)))
        right = values.pop(data.draw(st.integers(0, len(values) - 1)))
        values.append(data.draw(st.sampled_from([left * right, left + right, left - right])))
        assert abs(values[-1]) <= bound


def test_values_of_63_bits_are_exact():
    texts = [f"{INT64_MAX}", f"0-{INT64_MAX // 2}", "3037000499*3037000499"]
    assert Problems.from_expressions(texts).target.tolist() == [eval(text) for text in texts]
