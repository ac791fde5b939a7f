"""Expressions: read as Python reads them, and programs that compute them."""

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.strategies import SYMBOL, expressions
from toolagent_pl import CalculatorMachine, Problems
from toolagent_pl.machines.calculator import MEMORY_DEPTH
from toolagent_pl.machines.machine import execute
from toolagent_pl.machines.rewards import ProgressReward
from toolagent_pl.problems import STAGES
from toolagent_pl.problems.expression import evaluate, parse, shortest_program
from toolagent_pl.tokens import TOOLS, Token


@given(expressions, st.data())
def test_value_is_that_of_python(text, data):
    blanks = "".join(c if c.isdigit() else f"{c}{' ' * data.draw(st.integers(0, 1))}" for c in text)
    leaves, tree = parse(blanks)
    assert evaluate(tree, [int(leaf) for leaf in leaves]) == eval(text)


def written(tree, leaves):
    """The expression of a tree, fully bracketed."""
    text = {(i, i + 1): leaf for i, leaf in enumerate(leaves)}
    for tool, start, split, end in tree:
        symbol = {token: symbol for symbol, token in SYMBOL.items()}[tool]
        text[start, end] = f"({text[start, split]}{symbol}{text[split, end]})"
    return text[0, len(leaves)]


@given(expressions)
def test_what_is_written_from_a_tree_is_read_as_that_tree(text):
    expression = parse(text)
    assert parse(written(expression.tree, expression.leaves)) == expression


@given(st.text(max_size=30) | st.text("0123456789*+-() a٣²\n", max_size=30) | st.binary(max_size=30).map(repr))
def test_garbage_is_read_as_python_reads_it_or_refused(text):
    refused = ""
    try:
        leaves, tree = parse(text)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("expression ")
        assert "\n" not in refused
    elif not any(leaf.isalpha() for leaf in leaves):
        assert evaluate(tree, [int(leaf) for leaf in leaves]) == eval(text.strip())


@st.composite
def bracketed(draw, start=0, depth=0):
    """A fully bracketed expression, the end of its tape, and its operators in post-order."""
    if depth == 3 or draw(st.booleans()):
        return draw(st.sampled_from("0123456789")), start + 1, []
    left, split, before = draw(bracketed(start, depth + 1))
    symbol = draw(st.sampled_from("*+-"))
    right, end, after = draw(bracketed(split, depth + 1))
    return f"({left}{symbol}{right})", end, [*before, *after, (SYMBOL[symbol], start, split, end)]


@given(bracketed())
def test_operators_cover_the_spans_that_brackets_say(drawn):
    text, end, operators = drawn
    leaves, tree = parse(text)
    assert len(leaves) == end
    assert list(tree) == operators


@pytest.mark.parametrize(
    ("plain", "bracketed"),
    [
        ("1-2-3", "(1-2)-3"),
        ("1+2+3", "(1+2)+3"),
        ("2*3*4", "(2*3)*4"),
        ("1+2*3-4", "(1+(2*3))-4"),
        ("a*b+c", "(a*b)+c"),
    ],
)
def test_precedence_and_order(plain, bracketed):
    assert parse(plain) == parse(bracketed)


def test_long_expressions_do_not_exhaust_the_stack():
    leaves, tree = parse("+".join("1" * 500))
    assert evaluate(tree, [1] * len(leaves)) == 500


WRONG = [
    "",
    " ",
    "1+",
    "(1",
    "1 2",
    "1/2",
    "2**3",
    "-1",
    "1-(-2)",
    "1,2",
    "ab",
    "1.5",
    "1\n+2",
    "1e5",
    "007",
    "()",
    "2(3)",
]
WRONG += ["0b11", "0x1+2", "1or 2"]


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_read_is_named_in_one_line(text):
    with pytest.raises(ValueError, match=r"^expression ") as error:
        parse(text)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [f"-({'+'.join('1' * 900)})", "(" * 100_000, "9" * 5000, "-" * 100_000 + "1", "1-(" * 5000 + "1" + ")" * 5000],
    ids=["sum", "brackets", "digits", "signs", "nested"],
)
def test_long_texts_that_cannot_be_read_are_named_in_short(text):
    with pytest.raises(ValueError, match=r"^expression ") as error:
        parse(text)
    assert text[:200] in str(error.value)
    assert len(str(error.value)) < 600


def memory_needed(program):
    heights = itertools.accumulate((action == Token.STO) - (action == Token.RCL) for action in program)
    return max(heights)


@given(expressions)
def test_shortest_program_is_right(text):
    program = shortest_program(parse(text).tree)
    assume(memory_needed(program) <= MEMORY_DEPTH)
    outcome = CalculatorMachine().run(Problems.from_expressions([text]), torch.tensor([program]))
    assert outcome.correct.item()
    assert outcome.steps.item() == len(program)


def carried_out(form, programs):
    """Which programs compute the form operator by operator, and are right for every choice of digits tried."""
    texts = [form.translate(str.maketrans("abcde", digits)) for digits in ("72593", "38642")]
    machine, reward = CalculatorMachine(), ProgressReward(weight=1)
    complete = torch.ones(len(programs), dtype=torch.bool)
    for text in texts:
        problems = Problems.from_expressions([text]).select(torch.zeros(len(programs), dtype=torch.int64))
        final = execute(machine, problems, programs)[-1]
        complete &= reward(machine, final, programs.T).sum(0) == 1 + len(parse(text).tree)
    return complete


def all_programs(length):
    """All that end with their only ANS; what comes after an ANS changes nothing."""
    others = [tool for tool in TOOLS if tool != Token.ANS]
    return torch.tensor([[*tools, Token.ANS] for tools in itertools.product(others, repeat=length - 1)])


THREE_OPERANDS = [
    form.format(*symbols) for form in ("(a{}b){}c", "a{}(b{}c)") for symbols in itertools.product("*+-", repeat=2)
]


@pytest.mark.parametrize("form", ["a*b", *THREE_OPERANDS, STAGES["T1"].template])
def test_no_shorter_program_carries_out_all_operators(form):
    shortest = shortest_program(parse(form).tree)
    assert carried_out(form, torch.tensor([shortest])).all()
    for length in range(1, len(shortest)):
        assert not carried_out(form, all_programs(length)).any()


@pytest.mark.parametrize("name", ["T0", "T1", "T2"])
def test_no_shorter_program_answers_all_problems_of_a_stage(name):
    stage = STAGES[name]
    texts = [stage.written(digits) for digits in ([7, 2, 5, 9, 3], [3, 8, 6, 4, 2], [9, 5, 7, 1, 8])]
    machine = CalculatorMachine()
    for length in range(1, len(stage.program)):
        programs = all_programs(length)
        for text in texts:  # only those that were right so far are tried on
            problems = Problems.from_expressions([text]).select(torch.zeros(len(programs), dtype=torch.int64))
            programs = programs[machine.run(problems, programs).correct]
        assert not len(programs)


def test_published_programs_of_the_stages():
    written = {name: " ".join(map(str, stage.program)) for name, stage in STAGES.items()}
    assert written == {"T0": "MUL ADD ANS", "T1": "MUL ADD SUB ANS", "T2": "MUL ADD STO MUL RCL SUB ANS"}
