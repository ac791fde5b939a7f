"""Batches built from written expressions."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import Calculator
from tests.strategies import MAX_TOKEN, PLAIN, WITH_MAX, expressions, expressions_with_max, random_plans
from toolagent_pl import CalculatorEnv, Problems
from toolagent_pl.envs.calculator.expression import ExpressionError, parse, reference_plan, text_of
from toolagent_pl.envs.calculator.tools import Token, Vocabulary
from toolagent_pl.rl.env import execute, select

MUL, ADD, SUB, CTX, EOS, OPEN, CLOSE = map(Token, (11, 12, 13, 10, 17, 18, 19))
INT64_MAX = 2**63 - 1


def test_a_batch_of_two():
    problems = Problems.from_expressions(["3*4+5", "1-(2-(3*14))"])
    assert problems.size == 2
    assert problems.number.tolist() == [0, 1]
    assert problems.target.tolist() == [17, 41]
    assert problems.length.tolist() == [3, 4]
    assert problems.operands.tolist() == [[3, 4, 5, 0], [1, 2, 3, 14]]
    written = [1, SUB, OPEN, 2, SUB, OPEN, 3, MUL, 1, 4, CLOSE, CLOSE, CTX]
    assert problems.prompt.tolist() == [[3, MUL, 4, ADD, 5, CTX] + [EOS] * 7, written]
    assert problems.prompt_length.tolist() == [6, 13]
    assert problems.positions.tolist() == [[0, 2, 4, -1], [0, 3, 6, 9]]
    assert problems.tree.tolist() == [
        [[MUL, 0, 1, 2], [ADD, 0, 2, 3], [0, 0, 0, 0]],
        [[MUL, 2, 3, 4], [SUB, 1, 2, 4], [SUB, 0, 1, 4]],
    ]
    assert problems.reference_length.tolist() == [3, 8]
    assert problems.memory_needed.tolist() == [0, 2]
    assert all(column.dtype == torch.int64 for column in problems)


@given(st.lists(expressions, min_size=1, max_size=10))
def test_company_changes_nothing_but_padding(texts):
    batch = Problems.from_expressions(texts)
    assert batch.target.tolist() == [eval(text) for text in texts]
    for row, text in enumerate(texts):
        alone = Problems.from_expressions([text])
        width, tape = alone.prompt.shape[1], alone.length.item()
        assert alone.prompt_length.item() == batch.prompt_length[row] == width
        assert batch.prompt[row, :width].tolist() == alone.prompt[0].tolist()
        assert (batch.prompt[row, width:] == EOS).all()
        assert batch.operands[row, :tape].tolist() == alone.operands[0].tolist()
        assert not batch.operands[row, tape:].any()
        assert batch.positions[row, :tape].tolist() == alone.positions[0].tolist()
        assert (batch.positions[row, tape:] == -1).all()
        assert batch.reference_length[row] == alone.reference_length.item()
        assert batch.memory_needed[row] == alone.memory_needed.item()


@given(expressions)
def test_positions_are_those_of_the_last_digits(text):
    problems = Problems.from_expressions([text])
    assert "".join(PLAIN.symbol(token) for token in problems.prompt[0].tolist()[:-1]) == text
    for operand, place in zip(problems.operands[0].tolist(), problems.positions[0].tolist(), strict=True):
        assert text[place - len(str(operand)) + 1 : place + 1] == str(operand)
        assert not text[place + 1 : place + 2].isdigit()


def test_prompts_are_as_written_or_with_as_few_brackets_as_possible():
    texts = ["((1)+2)+3", "1+(2 + 3)", "(1*2)-(3*4)"]
    written = Problems.from_expressions(texts)
    minimal = Problems.from_expressions(texts, minimal_brackets=True)
    read = [text_of(prompt, PLAIN) for prompt in written.prompt.tolist()]
    assert read == ["((1)+2)+3", "1+(2+3)", "(1*2)-(3*4)"]
    assert [text_of(prompt, PLAIN) for prompt in minimal.prompt.tolist()] == ["1+2+3", "1+(2+3)", "1*2-3*4"]
    assert written.positions.tolist() == [[2, 5, 8, -1], [0, 3, 5, -1], [1, 3, 7, 9]]
    assert minimal.positions.tolist() == [[0, 2, 4, -1], [0, 3, 5, -1], [0, 2, 4, 6]]
    for name in ("target", "operands", "tree", "reference_length"):
        assert torch.equal(getattr(written, name), getattr(minimal, name))


@given(expressions_with_max)
def test_no_bracket_of_a_minimal_prompt_can_be_left_out(text):
    vocabulary, waiting = Vocabulary(WITH_MAX), []
    prompt = Problems.from_expressions([text], WITH_MAX, minimal_brackets=True).prompt[0].tolist()
    expression = parse(text, vocabulary)
    assert parse(text_of(prompt, vocabulary), vocabulary) == expression
    for i, token in enumerate(prompt):
        if token == OPEN:
            waiting.append(i)
        elif token == CLOSE:
            pair = waiting.pop(), i
            without = [token for k, token in enumerate(prompt) if k not in pair]
            assert parse(text_of(without, vocabulary), vocabulary) != expression


@given(expressions_with_max)
def test_a_tool_of_ones_own_has_its_token_and_value(text):
    problems = Problems.from_expressions([text], WITH_MAX)
    assert problems.target.item() == eval(text)
    assert problems.prompt.eq(MAX_TOKEN).sum() == problems.tree[..., 0].eq(MAX_TOKEN).sum() == text.count("max")


def test_a_call_is_prompted_between_its_operands():
    problems = Problems.from_expressions(["max(1,max(2,3))-4", "(1 max 2) max 3"], WITH_MAX)
    written = [text_of(prompt, Vocabulary(WITH_MAX)) for prompt in problems.prompt.tolist()]
    assert written == ["1 max (2 max 3)-4", "(1 max 2) max 3"]


@given(expressions_with_max)
def test_the_textbook_plan_is_right_with_just_the_memory_that_it_needs(text):
    problems = Problems.from_expressions([text], WITH_MAX)
    tree = parse(text, Vocabulary(WITH_MAX)).tree
    plan = reference_plan(tree)
    assert problems.reference_length.item() == len(plan)
    needed = problems.memory_needed.item()
    heights = itertools.accumulate((action == Token.STO) - (action == Token.RCL) for action in plan)
    assert needed == (max(heights) if tree else 0)
    outcome = CalculatorEnv(memory_depth=max(needed, 1), tools=WITH_MAX).run(problems, torch.tensor([plan]))
    assert outcome.correct.item()
    assert outcome.steps.item() == len(plan)
    for memory_depth in {needed, needed - 1} - {0, -1}:
        env = CalculatorEnv(max_steps=None, memory_depth=memory_depth, tools=WITH_MAX).with_all_tokens()
        final = execute(env, problems, torch.tensor([plan]))[-1]
        assert final.noops.gt(0).item() == (memory_depth < needed)


def test_select_keeps_rows_together():
    problems = Problems.from_expressions(["1+2", "3*4", "9-5"])
    chosen = select(problems, torch.tensor([2, 0]))
    assert chosen.number.tolist() == [2, 0]
    assert chosen.target.tolist() == [4, 3]
    assert select(problems, slice(1, None)).target.tolist() == [12, 4]


def test_a_list_of_expressions_is_asked_for():
    for wrong in ([], "1+2"):
        with pytest.raises(ValueError, match="expected a non-empty list of strings"):
            Problems.from_expressions(wrong)


@pytest.mark.parametrize(
    "text",
    [
        f"{INT64_MAX + 1}",
        f"{INT64_MAX}+1",
        f"1-{INT64_MAX}-2",
        "4294967296*2147483648",
        "(4294967296*4294967296)*0",  # the value fits, a part of it does not
        "4294967296-4294967296",  # the value fits, but the wrong plan MUL ANS would wrap round to it
        "2-" * 70 + "2",
        "9" * 5000,
    ],
)
def test_values_beyond_64_bits_are_refused(text):
    with pytest.raises(ValueError, match="might not fit into 64 bits") as error:
        Problems.from_expressions([text])
    assert repr(text[:60])[:-1] in str(error.value)
    assert len(str(error.value)) < 200


large = st.sampled_from([0, 1, 2, 3, 2**31, 2**32, 3037000499, INT64_MAX, INT64_MAX + 1]) | st.integers(0, 2**40)


@st.composite
def large_expressions(draw, depth=3):
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return str(draw(large))
    left, right = draw(large_expressions(depth=depth - 1)), draw(large_expressions(depth=depth - 1))
    return f"({left}{draw(st.sampled_from('*+-'))}{right})"


@given(large_expressions(), random_plans | st.lists(st.sampled_from([*map(int, PLAIN.actions)]), max_size=24))
def test_no_plan_leaves_int64_on_a_problem_that_is_accepted(text, plan):
    try:
        problems = Problems.from_expressions([text])
    except ExpressionError:
        return
    assert problems.target.item() == eval(text)
    exact = Calculator(problems.operands[0, : problems.length[0]].tolist())
    env = CalculatorEnv(max_steps=None).with_all_tokens()
    states = execute(env, problems, torch.tensor([plan], dtype=torch.int64).view(1, -1))
    for action, state in zip(plan, states[1:], strict=True):
        exact.press(action)
        values = [exact.value or 0, exact.left or 0, *exact.memory]
        assert all(abs(value) <= INT64_MAX for value in values)
        assert state.value.item() == values[0]


def test_values_of_63_bits_are_exact():
    texts = [f"{INT64_MAX}", f"0-{INT64_MAX // 2}", "3037000499*3037000499"]
    assert Problems.from_expressions(texts).target.tolist() == [eval(text) for text in texts]
