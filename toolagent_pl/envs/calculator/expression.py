"""Arithmetic expressions over tools: parsing, writing, and the reference plan.

An expression is read from left to right: its operands lie on a tape in the order in which they are written,
and each of its operators covers a span of that tape.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

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

    Args:
        text: Whole numbers, the tools' symbols, brackets and blanks; a tool whose symbol is a word may also be called,
            as in ``max(3,4)``.
        names: Accept one-letter names in place of numbers, for patterns, and nothing else.

    Raises:
        ExpressionError: If ``text`` is anything else.
    """
    parser = _Parser(text, vocabulary, names)
    return Expression(tuple(parser.leaves), tuple(parser.tree))


class _Parser:
    """Operator precedence parsing with an explicit stack, so that no depth of brackets is too much."""

    def __init__(self, text: str, vocabulary: Vocabulary, names: bool) -> None:
        self.text, self.vocabulary = text, vocabulary
        self.leaves: list[str] = []
        self.tree: list[Operator] = []
        # Where the values that wait for an operator begin on the tape; each ends where the next one begins.
        self._starts: list[int] = []
        self._pending: list[int] = []  # tokens of operators, OPEN for brackets, and -token for a call of a tool
        if len(text) > LONGEST_TEXT:
            self._fail(f"has {len(text)} characters, expected at most {LONGEST_TEXT}")
        symbols, precedence = vocabulary.symbols, vocabulary.precedences
        leaves, starts, pending = self.leaves, self._starts, self._pending
        words = vocabulary.pattern.findall(text.rstrip())
        operand_expected = True
        for i, word in enumerate(words):
            if operand_expected:
                if (_is_name(word) and word not in symbols) if names else "0" <= word[0] <= "9":
                    if len(word) > LONGEST_NUMBER:
                        self._fail(f"a number of {len(word)} digits might not fit into 64 bits")
                    starts.append(len(leaves))
                    leaves.append(word)
                    operand_expected = False
                elif word == "(":
                    pending.append(_OPEN)
                elif word in symbols and word[0].isalpha() and words[i + 1 : i + 2] == ["("]:
                    pending.append(-symbols[word])  # a call; its bracket comes next
                else:
                    self._fail(f"{self._shown(word)} where an operand should be")
            elif word in symbols:
                token = symbols[word]
                while pending and pending[-1] > 0 and precedence[pending[-1]] >= precedence[token]:
                    self._reduce()
                pending.append(token)
                operand_expected = True
            elif word == ")":
                self._close()
            elif word == ",":
                self._comma()
                operand_expected = True
            else:
                self._fail(f"{self._shown(word)} where an operator should be")
        if operand_expected:
            self._fail("ends where an operand should be" if leaves or pending else "is empty")
        while pending:
            if pending[-1] == _OPEN:
                self._fail("a bracket is not closed")
            self._reduce()

    def _fail(self, reason: str) -> None:
        symbols = " ".join(tool.symbol for tool in self.vocabulary.tools)
        raise ExpressionError(
            f"expression {quoted(self.text)}: {reason}; expected whole numbers, {symbols}, and brackets"
        )

    @staticmethod
    def _shown(word: str) -> str:
        return f"got {word!r}" if len(word) <= LONGEST_QUOTE else "got a long word"

    def _reduce(self) -> None:
        split = self._starts.pop()
        self.tree.append(Operator(self._pending.pop(), self._starts[-1], split, len(self.leaves)))

    def _until_bracket(self, reason: str) -> None:
        while self._pending and self._pending[-1] != _OPEN:
            self._reduce()
        if not self._pending:
            self._fail(reason)

    def _comma(self) -> None:
        self._until_bracket("got ',' outside of a call")
        if len(self._pending) < 2 or self._pending[-2] >= 0:
            self._fail("got ',' outside of a call with two operands")
        # What follows is the right operand: the call becomes an operator that only the bracket reduces.
        token = -self._pending[-2]
        self._pending[-2:] = [_CLOSE, token, _OPEN]

    def _close(self) -> None:
        self._until_bracket("a bracket closes that was not opened")
        self._pending.pop()
        if self._pending and self._pending[-1] < 0:
            self._fail("a call has one operand, expected two")
        if len(self._pending) >= 2 and self._pending[-2] == _CLOSE:
            self._reduce()
            self._pending.pop()


def _is_name(word: str) -> bool:
    return len(word) == 1 and ((word.isascii() and word.isalpha()) or word == "_")


def quoted(text: str) -> str:
    """The text, shortened where it would flood a message."""
    return repr(text) if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]!r}... of {len(text)} characters"


def written_tokens(text: str, vocabulary: Vocabulary) -> list[int]:
    """The prompt of an expression as it is written, brackets included: digits, operators, brackets, then CTX.

    Raises:
        ExpressionError: If it cannot be parsed. A call such as ``max(3,4)`` is written with brackets, ``3 max 4``.
    """
    expression = parse(text, vocabulary)
    if "," in text:
        return minimal_tokens(expression, vocabulary)
    tokens: list[int] = []
    symbols = {tool.symbol: vocabulary.token(tool) for tool in vocabulary.tools} | {"(": Token.OPEN, ")": Token.CLOSE}
    alternatives = "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
    for word in re.findall(rf"[0-9]|{alternatives}", text):
        tokens.append(int(word) if word.isdigit() else symbols[word])
    return [*tokens, Token.CTX]


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
    tokens.append(int(Token.CTX))
    return tokens


def text_of(tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    """A prompt as people write it, up to CTX."""
    tokens = list(tokens)
    end = tokens.index(Token.CTX) if Token.CTX in tokens else len(tokens)
    return "".join([vocabulary.written[token] for token in tokens[:end]])


def magnitude_bound(operands: Sequence[int]) -> int:
    """An upper bound of ``|value|`` over all programs, wrong ones included.

    A program uses each operand at most once, and ``a + b <= a * b`` where both are at least 2. Wrong programs
    count: one that overflowed could hit the target by wrapping around.
    """
    return math.prod(max(operand, 2) for operand in operands)


def value_bound(operands: Sequence[int], tree: Sequence[Operator]) -> int:
    """An upper bound of ``|value|`` over all parts of an expression, by what its tools can do at most."""
    bounds = list(operands)  # that of a span stands where the span begins
    most = max(bounds)
    for token, start, split, _ in tree:
        left, right = bounds[start], bounds[split]
        if token == Token.MUL:
            bounds[start] = left * right
        elif token in (Token.ADD, Token.SUB):
            bounds[start] = left + right
        else:  # see ``Tool``
            bounds[start] = max(left, 2) * max(right, 2)
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
