"""Tools, plain functions of two integers; and what follows from a list of them: tokens, and what can be written."""

import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Token(IntEnum):
    """The tokens that every vocabulary has.

    Compare tensors with them by ``eq``, ``ne``, ``ge``, as in ``action.eq(Token.ANS)``: ``torch.compile`` takes
    ``action == Token.ANS`` for False.
    """

    D0, D1, D2, D3, D4, D5, D6, D7, D8, D9 = range(10)
    CTX = 10  # end of the prompt, and the first token that an agent decodes from
    MUL = 11
    ADD = 12
    SUB = 13
    ANS = 14  # answer with the accumulator
    STO = 15  # push onto the memory
    RCL = 16  # pop from the memory
    EOS = 17  # padding of prompts
    OPEN = 18
    CLOSE = 19


FLAGS = ("accumulator", "left operand", "memory", "applied")  # what tools may report: is there one, did a call apply
POSITIONS = ("next operand", "accumulator", "top of memory", "left operand")  # and where in the prompt


@dataclass(frozen=True)
class Tool:
    """An operator that an agent can call.

    The magnitude of its result must not exceed ``max(|a|, 2) * max(|b|, 2)``: with that, no program over operands that
    were accepted leaves int64.

    Attributes:
        name: Of its token, in capitals, for example ``MAX``.
        symbol: Written between its operands, ``a*b``, or, if it is a word, also as a call, ``max(a,b)``.
        precedence: Binds tighter the higher it is; equals from left to right. ``+`` has 1, ``*`` has 2.
        function: Of two int64 tensors of the same shape.
    """

    name: str
    symbol: str
    precedence: int
    function: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not (self.name.isidentifier() and self.name.isupper()):
            raise ValueError(f"tool: got name {self.name!r}, expected an identifier in capitals")
        if not self.symbol or any(c.isdigit() or c.isspace() or c in "()," for c in self.symbol):
            raise ValueError(
                f"tool {self.name}: got symbol {self.symbol!r}, expected no digit, blank, bracket or comma"
            )
        if self.precedence < 1:
            raise ValueError(f"tool {self.name}: got precedence {self.precedence}, expected at least 1")


MUL = Tool("MUL", "*", 2, torch.mul)
ADD = Tool("ADD", "+", 1, torch.add)
SUB = Tool("SUB", "-", 1, torch.sub)
TOOLS = (MUL, ADD, SUB)
_NAMES = (*map(str, range(Token.CTX)), *[token.name for token in Token if Token.CTX <= token < Token.OPEN], "(", ")")


class Vocabulary:
    """The tokens of a list of tools: those of ``Token``, then one for each further tool in the order given.

    Attributes:
        size: How many tokens there are.
        by_token: The tools by their tokens, and ``symbols`` the tokens by their symbols.
        operators: Tokens of the tools, in order.
        actions: Tokens that do something in an environment: the tools, then ANS, STO and RCL.
        names: Names of all tokens; digits and brackets as they are written.
        written: All tokens as they stand in an expression: words with blanks around them.
        precedences: Of all tokens, 0 for those that are no operators.
        pattern: What an expression is made of: a number, a symbol of a tool, a word, or any other character.

    Raises:
        ValueError: If there are no tools, or two of them cannot be told apart.
    """

    def __init__(self, tools: Sequence[Tool] = TOOLS) -> None:
        self.tools = tuple(tools)
        names, symbols = [tool.name for tool in tools], [tool.symbol for tool in tools]
        built_in = [tool.name for tool in TOOLS]
        reserved = {token.name for token in Token} - set(built_in)
        if not tools or len(set(names)) < len(names) or len(set(symbols)) < len(symbols) or reserved & set(names):
            raise ValueError(f"tools: got {names} with symbols {symbols}, expected one or more that differ")
        self.names = (*_NAMES, *[name for name in names if name not in built_in])
        self.size = len(self.names)
        self.operators = tuple(map(self.names.index, names))
        self.actions = (*self.operators, Token.ANS, Token.STO, Token.RCL)
        self.by_token = dict(zip(self.operators, self.tools, strict=True))
        self.symbols = dict(zip(symbols, self.operators, strict=True))
        blanks = {token: f" {symbol} " if symbol[0].isalpha() else symbol for symbol, token in self.symbols.items()}
        self.written = tuple(blanks.get(token, name) for token, name in enumerate(self.names))
        self.precedences = tuple(self.by_token[t].precedence if t in self.by_token else 0 for t in range(self.size))
        symbol = "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
        self.pattern = re.compile(rf"\s*([0-9]+|{symbol}|[A-Za-z_]\w*|\S)")

    def token(self, tool: Tool) -> int:
        """Token of one of the tools."""
        return self.symbols[tool.symbol]

    def name(self, token: int) -> str:
        """Name of a token."""
        return self.names[token]

    def symbol(self, token: int) -> str:
        """A token as it is written in an expression, without blanks."""
        return self.written[token].strip()

    def tokens(self, names: Sequence[str]) -> list[int]:
        """Tokens of these names.

        Raises:
            ValueError: If a name is unknown or repeated, or there is none.
        """
        known = {name: token for token, name in enumerate(self.names) if name not in "()"}
        for name in names:
            if name not in known:
                raise ValueError(f"actions: got unknown {name!r}, expected some of {', '.join(known)}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"actions: got {list(names)}, expected one or more tokens, each at most once")
        return [known[name] for name in names]

    def apply(self, token: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """``left tool right`` for each row; ``left`` where ``token`` is no tool. int64, all of one shape."""
        result = left
        for value, tool in self.by_token.items():
            result = torch.where(token.eq(value), tool.function(left, right), result)
        return result


def find_tools(tools: Sequence[str | Tool]) -> tuple[Tool, ...]:
    """Tools as they are, by name (MUL, ADD, SUB), or by dotted path, as in ``mine.MAX``.

    Raises:
        ValueError: If there is no such tool.
    """
    built_in, found = {tool.name: tool for tool in TOOLS}, []
    for given in tools:
        tool: Any = built_in.get(given, given) if isinstance(given, str) else given
        if isinstance(tool, str):
            try:
                if "." not in tool:  # that would be a module, which to import runs its code
                    raise ValueError("no dotted path")
                tool = pkgutil.resolve_name(tool)
            except (ImportError, AttributeError, ValueError) as error:
                raise ValueError(
                    f"tools: got {given}, expected MUL, ADD, SUB or the path of a Tool ({error})"
                ) from None
        if not isinstance(tool, Tool):
            raise ValueError(f"tools: got {given}, expected a Tool, and it is a {type(tool).__name__}")
        found.append(tool)
    return tuple(found)
