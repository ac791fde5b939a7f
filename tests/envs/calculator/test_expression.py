"""Expressions: read as Python reads them, and plans that compute them."""

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import ARITHMETIC
from tests.strategies import MAX_TOKEN, PLAIN, WITH_MAX, expressions, expressions_with_max
from toolagent_pl import CalculatorEnv, Problems
from toolagent_pl.envs.calculator.expression import parse, reference_plan, text_of, written_tokens
from toolagent_pl.envs.calculator.progress import completed_subgoals
from toolagent_pl.envs.calculator.stages import BUILT_IN
from toolagent_pl.envs.calculator.tools import Token, Tool, Vocabulary
from toolagent_pl.rl.env import select

OWN = Vocabulary(WITH_MAX)
SLOW = ARITHMETIC | {MAX_TOKEN: max}


def value_of(expression):
    """By the tree, in plain Python."""
    value = {(i, i + 1): int(leaf) for i, leaf in enumerate(expression.leaves)}
    for token, start, split, end in expression.tree:
        value[start, end] = SLOW[token](value[start, split], value[split, end])
    return value[0, len(expression.leaves)]


@given(expressions_with_max, st.data())
def test_value_is_that_of_python(text, data):
    blanks = "".join(c if c.isalnum() else f"{c}{' ' * data.draw(st.integers(0, 1))}" for c in text)
    assert value_of(parse(blanks, OWN)) == eval(text)


@given(expressions_with_max)
def test_what_is_written_from_a_tree_with_all_brackets_is_read_as_that_tree(text):
    expression = parse(text, OWN)
    written = {(i, i + 1): leaf for i, leaf in enumerate(expression.leaves)}
    for tool, start, split, end in expression.tree:
        written[start, end] = f"({written[start, split]}{OWN.symbol(tool)}{written[split, end]})"
    assert parse(written[0, len(expression.leaves)], OWN) == expression


@given(st.text(max_size=30) | st.text("0123456789*+-(), a٣²\n", max_size=30) | st.binary(max_size=30).map(repr))
def test_garbage_is_read_as_python_reads_it_or_refused(text):
    try:
        expression = parse(text, PLAIN)
    except ValueError as error:
        refused = str(error)
        assert refused.startswith("expression ")
        assert "\n" not in refused
        return
    bare = "".join(text.split())
    assert set(bare) <= set("0123456789*+-()")
    assert value_of(expression) == eval(re.sub(r"\b0+(?=\d)", "", bare))  # Python reads no leading zeros


@pytest.mark.parametrize(
    ("plain", "bracketed"),
    [
        ("1-2-3", "(1-2)-3"),
        ("1+2+3", "(1+2)+3"),
        ("2*3*4", "(2*3)*4"),
        ("1+2*3-4", "(1+(2*3))-4"),
        ("1 max 2*3", "(1 max 2)*3"),  # precedence 3
        ("1*2 max 3", "1*(2 max 3)"),
        ("1max2max3", "(1 max 2) max 3"),
        ("max(1,2)", "1 max 2"),
        ("max(1-2,3*4)", "(1-2) max (3*4)"),
        ("5-max ( 1 , 2 )*3", "5-((1 max 2)*3)"),
        ("max(max(1,2),max(3,4))", "(1 max 2) max (3 max 4)"),
        ("max((1),(2)) max 3", "(1 max 2) max 3"),
        ("(max(1,2-3-4))", "1 max ((2-3)-4)"),
    ],
)
def test_precedence_order_and_calls(plain, bracketed):
    assert parse(plain, OWN) == parse(bracketed, OWN)


@pytest.mark.parametrize(
    ("precedence", "first", "last"),
    [(1, "(1+2*3)~4", "1~(2*3)"), (2, "1+((2*3)~4)", "(1~2)*3"), (3, "1+2*(3~4)", "(1~2)*3")],
)
def test_a_tool_binds_as_tightly_as_it_says(precedence, first, last):
    vocabulary = Vocabulary((*WITH_MAX[:3], Tool("AVG", "~", precedence, torch.add)))
    for plain, bracketed in (("1+2*3~4", first), ("1~2+3", "(1~2)+3"), ("1~2*3", last)):
        assert parse(plain, vocabulary) == parse(bracketed, vocabulary)


def test_letters_stand_for_operands_in_patterns_only():
    assert parse("a*b+c", PLAIN, names=True).leaves == ("a", "b", "c")
    assert parse("a*b+c", PLAIN, names=True).tree == parse("(1*2)+3", PLAIN).tree
    for text, names in [("a*b", False), ("a*2", True), ("ab*c", True), ("", True)]:
        with pytest.raises(ValueError, match=r"^expression .*expected whole numbers"):
            parse(text, PLAIN, names=names)


def test_long_and_deep_expressions_are_read():
    assert value_of(parse("+".join("1" * 500), PLAIN)) == 500
    assert value_of(parse("1-(" * 1500 + "1" + ")" * 1500, PLAIN)) == 1
    assert parse("(" * 4000 + "1" + ")" * 4000, PLAIN).leaves == ("1",)
    assert value_of(parse("max(1," * 1000 + "2" + ")" * 1000, OWN)) == 2
    assert Problems.from_expressions(["(" * 4000 + "8" + ")" * 4000]).target.tolist() == [8]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ", "is empty"),
        ("1+", "ends where an operand should be"),
        ("(1", "a bracket is not closed"),
        ("1)", "a bracket closes that was not opened"),
        ("1 2", "got '2' where an operator should be"),
        ("1-(-2)", "got '-' where an operand should be"),
        ("max(1,2,3)", "got ',' outside of a call with two operands"),
        ("max(1)", "a call has one operand, expected two"),
        ("maximum(1,2)", "got 'max' where an operand should be"),
        ("1.5", "got '.' where an operator should be"),
        ("0b11", "got 'b11' where an operator should be"),
        ("1or 2", "got 'or' where an operator should be"),
        ("1\n/\n2", "got '/' where an operator should be"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(text, reason):
    with pytest.raises(ValueError, match=r"^expression ") as error:
        parse(text, OWN)
    assert str(error.value).startswith(f"expression {text!r}: {reason}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [f"-({'+'.join('1' * 900)})", "(" * 100_000, "9" * 20_000, "-" * 100_000 + "1", "1+" + "x" * 5000],
    ids=["sum", "brackets", "digits", "signs", "word"],
)
def test_long_texts_that_cannot_be_read_are_named_in_short(text):
    with pytest.raises(ValueError, match=r"^expression ") as error:
        parse(text, PLAIN)
    assert text[:60] in str(error.value)
    assert len(str(error.value)) < 250


@given(expressions)
def test_a_prompt_reads_as_it_was_written(text):
    tokens = written_tokens(text, PLAIN)
    assert tokens[-1] == Token.CTX
    assert text_of([*tokens, Token.EOS, 3], PLAIN) == text


def completed(form, plans):
    """Which plans compute the form operator by operator, and are right for every choice of digits tried."""
    texts = [form.translate(str.maketrans("abcde", digits)) for digits in ("72593", "38642")]
    env = CalculatorEnv(max_steps=None).with_all_tokens()
    complete = torch.ones(len(plans), dtype=torch.bool)
    for text in texts:
        problems = select(Problems.from_expressions([text]), torch.zeros(len(plans), dtype=torch.int64))
        operators = completed_subgoals(env, problems, plans.T).sum(0)
        complete &= env.run(problems, plans).correct & (operators == len(parse(text, PLAIN).tree))
    return complete


def all_plans(length):
    """All that end with their only ANS; what comes after an ANS changes nothing."""
    others = [int(call) for call in PLAIN.actions if call != Token.ANS]
    return torch.tensor([[*calls, int(Token.ANS)] for calls in itertools.product(others, repeat=length - 1)])


THREE_OPERANDS = [
    form.format(*symbols) for form in ("(a{}b){}c", "a{}(b{}c)") for symbols in itertools.product("*+-", repeat=2)
]


@pytest.mark.parametrize("form", ["a*b", *THREE_OPERANDS, BUILT_IN["T1"].pattern])
def test_no_shorter_plan_carries_out_all_operators(form):
    shortest = reference_plan(parse(form, PLAIN, names=True).tree)
    assert completed(form, torch.tensor([shortest])).all()
    for length in range(1, len(shortest)):
        assert not completed(form, all_plans(length)).any()


@pytest.mark.parametrize("name", ["T0", "T1", "T2"])
def test_no_shorter_plan_answers_all_problems_of_a_stage(name):
    pattern, env = BUILT_IN[name].pattern, CalculatorEnv()
    texts = [pattern.translate(str.maketrans("abcde", digits)) for digits in ("72593", "38642", "95718")]
    for length in range(1, len(reference_plan(parse(pattern, PLAIN, names=True).tree))):
        plans = all_plans(length)
        for text in texts:  # only those that were right so far are tried on
            problems = select(Problems.from_expressions([text]), torch.zeros(len(plans), dtype=torch.int64))
            plans = plans[env.run(problems, plans).correct]
        assert not len(plans)


def test_published_plans_of_the_stages():
    written = {
        name: " ".join(PLAIN.name(token) for token in reference_plan(parse(stage.pattern, PLAIN, names=True).tree))
        for name, stage in BUILT_IN.items()
    }
    assert written == {"T0": "MUL ADD ANS", "T1": "MUL ADD SUB ANS", "T2": "MUL ADD STO MUL RCL SUB ANS"}
