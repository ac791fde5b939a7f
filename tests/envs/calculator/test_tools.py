"""Tools, and the vocabulary that follows from them."""

import pytest
import torch

from tests.strategies import MAX, MAX_TOKEN, PLAIN, WITH_MAX
from toolagent_pl.envs.calculator.tools import ADD, MUL, SUB, TOOLS, Token, Tool, Vocabulary, find_tools

MIN = Tool("MIN", "min", 3, torch.minimum)


def test_the_tokens_are_the_published_ones():
    assert [int(token) for token in Token] == list(range(20))
    assert [(token.name, int(token)) for token in Token if token > 9] == [
        ("CTX", 10), ("MUL", 11), ("ADD", 12), ("SUB", 13), ("ANS", 14),
        ("STO", 15), ("RCL", 16), ("EOS", 17), ("OPEN", 18), ("CLOSE", 19),
    ]  # fmt: skip


def test_tools_of_ones_own_come_after_in_the_order_given():
    vocabulary = Vocabulary((MIN, ADD, MAX))
    assert vocabulary.size == 22
    assert [vocabulary.token(tool) for tool in (MIN, ADD, MAX)] == [20, Token.ADD, 21]
    assert vocabulary.operators == (20, Token.ADD, 21)
    assert vocabulary.actions == (20, Token.ADD, 21, Token.ANS, Token.STO, Token.RCL)
    assert PLAIN.actions == (Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL)
    assert PLAIN.size == 20


def test_precedences_are_those_of_operators():
    precedences = Vocabulary(WITH_MAX).precedences
    assert len(precedences) == 21
    assert {i: p for i, p in enumerate(precedences) if p} == {Token.MUL: 2, Token.ADD: 1, Token.SUB: 1, MAX_TOKEN: 3}


def test_names_and_symbols():
    vocabulary = Vocabulary(WITH_MAX)
    names = [vocabulary.name(token) for token in range(21)]
    assert names == [*"0123456789", "CTX", "MUL", "ADD", "SUB", "ANS", "STO", "RCL", "EOS", "(", ")", "MAX"]
    assert [vocabulary.symbol(token) for token in (7, 11, 12, 13, 18, 19, 20)] == ["7", "*", "+", "-", "(", ")", "max"]
    assert vocabulary.tokens(["MAX", "ANS", "7", "CTX"]) == [MAX_TOKEN, Token.ANS, 7, Token.CTX]


@pytest.mark.parametrize("names", [[], ["MUL", "MUL"], ["DIV"], ["("], ["max"], ["MAX"]])
def test_names_that_are_no_actions_are_refused(names):
    with pytest.raises(ValueError, match=r"^actions: got .*expected"):
        PLAIN.tokens(names)


def test_each_row_is_computed_by_its_tool():
    token = torch.tensor([Token.MUL, Token.ADD, Token.SUB, MAX_TOKEN, 0, Token.ANS])
    left, right = torch.tensor([3, 3, 3, 3, 3, 3]), torch.tensor([5, 5, 5, 5, 5, 5])
    assert Vocabulary(WITH_MAX).apply(token, left, right).tolist() == [15, 8, -2, 5, 3, 3]
    large = torch.tensor([3037000499])
    assert PLAIN.apply(torch.tensor([int(Token.MUL)]), large, large).item() == 3037000499**2


def test_vocabularies_of_the_same_tools_are_equal():
    assert Vocabulary(WITH_MAX) == Vocabulary(list(WITH_MAX))
    assert hash(Vocabulary(WITH_MAX)) == hash(Vocabulary(WITH_MAX))
    assert Vocabulary(WITH_MAX) != Vocabulary()
    assert Vocabulary((MUL, ADD)) != Vocabulary((ADD, MUL))


@pytest.mark.parametrize(
    "tools",
    [
        (),
        (MUL, MUL),
        (ADD, Tool("PLUS", "+", 1, torch.add)),
        (ADD, Tool("ADD", "&", 1, torch.add)),
        (ADD, Tool("ANS", "&", 1, torch.add)),
        (Tool("CLOSE", "&", 1, torch.add),),
    ],
)
def test_tools_that_cannot_be_told_apart_are_refused(tools):
    with pytest.raises(ValueError, match=r"^tools: got .*expected one or more that differ"):
        Vocabulary(tools)


@pytest.mark.parametrize(
    ("name", "symbol", "precedence"),
    [
        ("max", "max", 1), ("2X", "x", 1), ("", "x", 1), ("A B", "x", 1),
        ("X", "", 1), ("X", "x2", 1), ("X", "a b", 1), ("X", "(", 1), ("X", ",", 1), ("X", "x", 0),
    ],
)  # fmt: skip
def test_a_tool_that_could_not_be_written_is_refused(name, symbol, precedence):
    with pytest.raises(ValueError, match=r"^tool.*: got .*expected"):
        Tool(name, symbol, precedence, torch.add)


def test_tools_are_found_by_name_or_path():
    assert find_tools(["SUB", "MUL", "tests.strategies.MAX", MIN]) == (SUB, MUL, MAX, MIN)
    assert find_tools([tool.name for tool in TOOLS]) == TOOLS


@pytest.mark.parametrize("path", ["DIV", "tests.strategies.NOPE", "tests.strategies.PLAIN"])
def test_what_is_no_tool_is_named(path):
    with pytest.raises(ValueError, match=rf"^tools: got {path}, expected [^\n]*Tool"):
        find_tools(["MUL", path])
