"""Arithmetic expressions over tools: parsing, writing, and the reference plan.

Operands lie on a tape in the order in which they are written, and each operator covers a span of that tape.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from toolagent_pl.envs.calculator.tools import Token, Vocabulary

INT64_MAX = 2**63 - 1
LONGEST_QUOTE = 60
LONGEST_TEXT = 10_000
LONGEST_NUMBER = 19  # digits of 2^63
_OPEN, _CLOSE = int(Token.OPEN), int(Token.CLOSE)  # members of an enumeration are slow to compare


class Operator(NamedTuple):
    """One operator of an expression: ``tape[start:split] tool tape[split:end]``."""

    token: int
    start: int
    split: int
    end: int


class Expression(NamedTuple):
    """A parsed expression.

    Attributes:
        leaves: The operands as written, in the order of the tape: digits, or letters in a pattern.
        tree: The operators in post-order (operands before the operator that uses them).
    """

    leaves: tuple[str, ...]
    tree: tuple[Operator, ...]


class ExpressionError(ValueError):
    """A text that is no expression."""


def parse(text: str, vocabulary: Vocabulary, *, names: bool = False) -> Expression:
    """Parse with the usual precedence, equals from left to right. The text is never evaluated as a program.

    Operators wait on a stack of its own, so that no depth of brackets is too much.

    Args:
        text: Whole numbers, the tools' symbols, brackets and blanks; a tool whose symbol is a word may also be called,
            as in ``max(3,4)``.
        names: Accept one-letter names in place of numbers, for patterns, and nothing else.

    Raises:
        ExpressionError: If ``text`` is anything else.
    """

    def fail(reason: str) -> NoReturn:
        expected = " ".join(vocabulary.symbols)
        raise refused(text, f"{reason}; expected whole numbers, {expected}, and brackets")

    def shown(word: str) -> str:
        return f"got {word!r}" if len(word) <= LONGEST_QUOTE else "got a long word"

    def join(token: int) -> None:
        split = starts.pop()
        tree.append(Operator(token, starts[-1], split, len(leaves)))

    def reduce(precedence: int) -> None:
        """Carry out what waits behind the last bracket and binds at least so tightly."""
        while waiting and binds[waiting[-1]] >= precedence:
            join(waiting.pop())

    if len(text) > LONGEST_TEXT:
        fail(f"has {len(text)} characters, expected at most {LONGEST_TEXT}")
    symbols, size = vocabulary.symbols, vocabulary.size
    leaves: list[str] = []
    tree: list[Operator] = []
    starts: list[int] = []  # where the values that wait for an operator begin on the tape
    # Operators; OPEN; and in place of the bracket of a call its token + size, behind the comma its token + 2 size.
    waiting: list[int] = []
    binds = (*vocabulary.precedences, *[0] * (2 * size))
    operand_expected = True
    words = iter(vocabulary.pattern.findall(text.rstrip()))
    for word in words:
        if operand_expected:
            if re.fullmatch("[A-Za-z_]", word) and word not in symbols if names else "0" <= word[0] <= "9":
                if len(word) > LONGEST_NUMBER:
                    fail(f"a number of {len(word)} digits might not fit into 64 bits")
                starts.append(len(leaves))
                leaves.append(word)
                operand_expected = False
            elif word == "(":
                waiting.append(_OPEN)
            elif word in symbols and word[0].isalpha() and next(words, "") == "(":
                waiting.append(symbols[word] + size)
            else:
                fail(f"{shown(word)} where an operand should be")
        elif word in symbols:
            reduce(binds[symbols[word]])
            waiting.append(symbols[word])
            operand_expected = True
        elif word == ")":
            reduce(1)
            if not waiting:
                fail("a bracket closes that was not opened")
            call, token = divmod(waiting.pop(), size)
            if call == 1:
                fail("a call has one operand, expected two")
            if call == 2:
                join(token)
        elif word == ",":
            reduce(1)
            if not waiting or waiting[-1] // size != 1:
                fail("got ',' outside of a call with two operands")
            waiting[-1] += size
            operand_expected = True
        else:
            fail(f"{shown(word)} where an operator should be")
    if operand_expected:
        fail("ends where an operand should be" if leaves or waiting else "is empty")
    reduce(1)
    if waiting:
        fail("a bracket is not closed")
    return Expression(tuple(leaves), tuple(tree))


def refused(text: str, reason: str) -> ExpressionError:
    """The error that names a text, shortened where it would flood the message."""
    quoted = repr(text) if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]!r}... of {len(text)} characters"
    return ExpressionError(f"expression {quoted}: {reason}")


def written_tokens(text: str, vocabulary: Vocabulary) -> list[int]:
    """The prompt of a text without calls that can be parsed: digits, operators, brackets as they stand, then CTX."""
    known, tokens = {**vocabulary.symbols, "(": _OPEN, ")": _CLOSE}, list[int]()
    for word in vocabulary.pattern.findall(text.rstrip()):
        tokens += [known[word]] if word in known else map(int, word)
    return [*tokens, int(Token.CTX)]


def minimal_tokens(expression: Expression, vocabulary: Vocabulary) -> list[int]:
    """The prompt of an expression with brackets only where precedence and left association need them."""
    leaves, tree = expression
    precedence = vocabulary.precedences
    # All by the operand where something stands: brackets before and behind it, the operator before it, and the
    # precedence of the value that begins with it; by the time that is read, those inside that value are not needed.
    opens, closes, before = ([0] * len(leaves) for _ in range(3))
    binds = [max(precedence) + 1] * len(leaves)
    for token, start, split, end in tree:
        if binds[start] < precedence[token]:
            opens[start] += 1
            closes[split - 1] += 1
        if binds[split] <= precedence[token]:
            opens[split] += 1
            closes[end - 1] += 1
        binds[start] = precedence[token]
        before[split] = token
    tokens: list[int] = []
    for leaf, operator, opened, closed in zip(leaves, before, opens, closes, strict=True):
        if operator:
            tokens.append(operator)
        tokens += [_OPEN] * opened
        tokens += map(int, leaf)
        tokens += [_CLOSE] * closed
    return [*tokens, int(Token.CTX)]


def text_of(tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    """A prompt as people write it, up to CTX."""
    tokens = list(tokens)
    end = tokens.index(Token.CTX) if Token.CTX in tokens else len(tokens)
    return "".join([vocabulary.written[token] for token in tokens[:end]])


def magnitude_bound(operands: Sequence[int]) -> int:
    """An upper bound of ``|value|`` over all programs: each operand is used once, and ``a + b <= a * b`` from 2 on.

    Wrong programs count: one that overflowed could hit the target by wrapping around.
    """
    return math.prod(max(operand, 2) for operand in operands)


def value_bound(operands: Sequence[int], tree: Sequence[Operator]) -> int:
    """An upper bound of ``|value|`` over all parts of an expression, by what its tools can do at most."""
    bounds = list(operands)  # that of a span stands where the span begins
    most = max(bounds)
    for token, start, split, _ in tree:
        left, right = bounds[start], bounds[split]
        if token in (Token.ADD, Token.SUB):
            bounds[start] = left + right
        else:  # see ``Tool`` for those that are not MUL
            bounds[start] = left * right if token == Token.MUL else max(left, 2) * max(right, 2)
        most = max(most, bounds[start])
    return most


def reference_plan(tree: Sequence[Operator]) -> list[int]:
    """The textbook's left-to-right plan, which carries out just the operators of the expression, and answers.

    With ``L tool R`` and R an operand: L, tool. With only L an operand: STO, R, RCL, tool. With neither:
    L, STO, R, RCL, tool. A lone operand is stored and recalled, the only way to take it up. It may need
    more memory than an environment has; and laws of arithmetic may allow less, as ``(1+2)+3`` for ``1+(2+3)``.
    """
    if not tree:
        return [Token.STO, Token.RCL, Token.ANS]
    plan: dict[tuple[int, int], list[int]] = {}
    for token, start, split, end in tree:
        left = plan.pop((start, split), [])
        right = plan.pop((split, end), [])
        plan[start, end] = [*left, Token.STO, *right, Token.RCL, token] if right else [*left, token]
    return [*plan[0, tree[-1].end], Token.ANS]
