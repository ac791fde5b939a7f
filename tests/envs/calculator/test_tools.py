"""Tools, and the vocabulary that follows from them."""

import pytest
import torch

from tests.strategies import MAX, MAX_TOKEN, PLAIN, WITH_MAX
from toolagent_pl.envs.calculator.tools import ADD, MUL, SUB, TOOLS, Token, Tool, Vocabulary, find_tools

MIN = Tool("MIN", "min", 3, torch.minimum)
OWN = Vocabulary(WITH_MAX)


def test_the_tokens_are_the_published_ones():
    names = [*"0123456789", "CTX", "MUL", "ADD", "SUB", "ANS", "STO", "RCL", "EOS"]
    assert [token.name.removeprefix("D") for token in Token] == [*names, "OPEN", "CLOSE"]
    assert [int(token) for token in Token] == list(range(20))
    assert [OWN.name(token) for token in range(21)] == [*names, "(", ")", "MAX"]
    assert PLAIN.size == 20


def test_tools_of_ones_own_come_after_in_the_order_given():
    vocabulary = Vocabulary((MIN, ADD, MAX))
    assert vocabulary.size == 22
    assert [vocabulary.token(tool) for tool in (MIN, ADD, MAX)] == [20, Token.ADD, 21]
    assert vocabulary.operators == (20, Token.ADD, 21)
    assert vocabulary.actions == (20, Token.ADD, 21, Token.ANS, Token.STO, Token.RCL)


def test_symbols_precedences_and_actions_by_name():
    assert [OWN.symbol(token) for token in (7, 11, 12, 13, 18, 19, 20)] == ["7", "*", "+", "-", "(", ")", "max"]
    assert {i: p for i, p in enumerate(OWN.precedences) if p} == {11: 2, 12: 1, 13: 1, MAX_TOKEN: 3}
    assert OWN.tokens(["MAX", "ANS", "7", "CTX"]) == [MAX_TOKEN, Token.ANS, 7, Token.CTX]


@pytest.mark.parametrize("names", [[], ["MUL", "MUL"], ["DIV"], ["("], ["max"], ["MAX"]])
def test_names_that_are_no_actions_are_refused(names):
    with pytest.raises(ValueError, match=r"^actions: got .*expected"):
        PLAIN.tokens(names)


def test_each_row_is_computed_by_its_tool():
    token = torch.tensor([Token.MUL, Token.ADD, Token.SUB, MAX_TOKEN, 0, Token.ANS])
    assert OWN.apply(token, torch.full((6,), 3), torch.full((6,), 5)).tolist() == [15, 8, -2, 5, 3, 3]
    large = torch.tensor([3037000499])
    assert PLAIN.apply(torch.tensor([int(Token.MUL)]), large, large).item() == 3037000499**2


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
        ("max", "max", 1), ("2X", "x", 1), ("", "x", 1), ("X", "", 1), ("X", "x2", 1), ("X", "a b", 1), ("X", "(", 1),
        ("X", ",", 1), ("X", "x", 0),
    ],
)  # fmt: skip
def test_a_tool_that_could_not_be_written_is_refused(name, symbol, precedence):
    with pytest.raises(ValueError, match=r"^tool.*: got .*expected"):
        Tool(name, symbol, precedence, torch.add)


def test_tools_are_found_by_name_or_path():
    assert find_tools(["SUB", "MUL", "tests.strategies.MAX", MIN]) == (SUB, MUL, MAX, MIN)
    assert find_tools([tool.name for tool in TOOLS]) == TOOLS
    for path in ("DIV", "tests.strategies.NOPE", "tests.strategies.PLAIN"):
        with pytest.raises(ValueError, match=rf"^tools: got {path}, expected [^\n]*Tool"):
            find_tools(["MUL", path])
