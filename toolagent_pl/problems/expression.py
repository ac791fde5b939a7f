"""Arithmetic expressions over ``*``, ``+``, ``-``: parsing, evaluation, and the shortest program of tools.

An expression is read from left to right: its operands lie on a tape in the order in which they are written,
and each of its operators covers a span of that tape.
"""

import ast
import math
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from toolagent_pl.tokens import Token

INT64_MAX = 2**63 - 1
LONGEST_QUOTE = 200
_TOOL_OF: dict[type[ast.operator], Token] = {ast.Mult: Token.MUL, ast.Add: Token.ADD, ast.Sub: Token.SUB}
_CHARACTER: dict[str, Token] = {
    "*": Token.MUL,
    "+": Token.ADD,
    "-": Token.SUB,
    "(": Token.OPEN,
    ")": Token.CLOSE,
}

Number = TypeVar("Number", int, Tensor)


class Operator(NamedTuple):
    """One operator of an expression: ``tape[start:split] tool tape[split:end]``."""

    tool: Token
    start: int
    split: int
    end: int


class Expression(NamedTuple):
    """A parsed expression.

    Attributes:
        leaves: The operands as written, in the order of the tape: digits, or letters in a template.
        tree: The operators in post-order (operands before the operator that uses them).
    """

    leaves: tuple[str, ...]
    tree: tuple[Operator, ...]


def parse(text: str) -> Expression:
    """Parse with the usual precedence: ``*`` binds tighter than ``+`` and ``-``, equals from left to right.

    Args:
        text: Non-negative decimal integers or one-letter names, ``* + -``, brackets and blanks.

    Raises:
        ValueError: If ``text`` is anything else.
    """
    expected = "whole numbers, * + -, and brackets"
    # Python would also read 0b11 and 1or 2; here a letter stands alone.
    if not re.fullmatch(r"[0-9a-z*+\-() ]+", text) or re.search(r"[0-9a-z][a-z]|[a-z][0-9]", text):
        raise ValueError(f"expression {quoted(text)}: expected only {expected}")
    try:
        root = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"expression {quoted(text)}: cannot be read ({error}); expected {expected}") from None

    leaves: list[str] = []
    tree: list[Operator] = []
    starts: list[int] = []  # start of the span of each finished sub-expression that waits for its operator
    # Explicit stack instead of recursion: a long expression must not hit Python's recursion limit.
    pending: list[ast.AST] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.BinOp) and type(node.op) in _TOOL_OF:
            pending += [node.op, node.right, node.left]
        elif isinstance(node, ast.operator):
            split = starts.pop()
            tree.append(Operator(_TOOL_OF[type(node)], starts[-1], split, len(leaves)))
        elif isinstance(node, ast.Constant) and type(node.value) is int and str(node.value).isdigit():
            starts.append(len(leaves))
            leaves.append(str(node.value))
        elif isinstance(node, ast.Name) and len(node.id) == 1:
            starts.append(len(leaves))
            leaves.append(node.id)
        else:
            raise ValueError(f"expression {quoted(text)}: something in it is not an operand; expected {expected}")
    return Expression(tuple(leaves), tuple(tree))


def quoted(text: str) -> str:
    """A text from anywhere, as it stands in a message."""
    return repr(text) if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]!r}... of {len(text)} characters"


def written_tokens(text: str) -> list[Token]:
    """The expression as an agent reads it: a token for each digit, operator and bracket, then CTX."""
    return [_CHARACTER[c] if c in _CHARACTER else Token(int(c)) for c in text if c != " "] + [Token.CTX]


def apply_operator(tool: Token, left: Number, right: Number) -> Number:
    """``left tool right`` for integers or integer tensors."""
    if tool is Token.MUL:
        return left * right
    return left + right if tool is Token.ADD else left - right


def evaluate(tree: Sequence[Operator], operands: Sequence[Number]) -> Number:
    """Value of an expression. Operands may be integers or whole columns ``[B]`` of a batch."""
    value = {(i, i + 1): operand for i, operand in enumerate(operands)}
    for tool, start, split, end in tree:
        value[start, end] = apply_operator(tool, value[start, split], value[split, end])
    return value[0, len(operands)]


def magnitude_bound(largest: Sequence[int]) -> int:
    """An upper bound of ``|value|`` over all programs, wrong ones included, given one for each operand.

    A program uses each operand at most once, and ``a + b <= a * b`` where both are at least 2. Wrong programs
    count: one that overflowed could hit the target by wrapping around.
    """
    return math.prod(max(operand, 2) for operand in largest)


def shortest_program(tree: Sequence[Operator]) -> list[Token]:
    """The shortest program that carries out just the operators of the expression, and answers.

    With ``L tool R`` and R an operand: L, tool. With only L an operand: STO, R, RCL, tool. With neither:
    L, STO, R, RCL, tool. A lone operand is stored and recalled, the only way to take it up. It may need
    more memory than a machine has; and laws of arithmetic may allow less, as ``(1+2)+3`` for ``1+(2+3)``.
    """
    if not tree:
        return [Token.STO, Token.RCL, Token.ANS]
    program: dict[tuple[int, int], list[Token]] = {}
    for tool, start, split, end in tree:
        left = program.pop((start, split), [])
        right = program.pop((split, end), [])
        program[start, end] = [*left, Token.STO, *right, Token.RCL, tool] if right else [*left, tool]
    return [*program[0, tree[-1].end], Token.ANS]
