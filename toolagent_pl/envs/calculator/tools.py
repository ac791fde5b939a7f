"""Tools, and the vocabulary that follows from them.

A tool is a plain function of two integers. From a list of tools follow the tokens, the language of expressions, the
actions of an agent, the parser and the reference plan.
"""

import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
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


FIRST_OWN_TOKEN = len(Token)
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
_MEMORY = {"ANS": Token.ANS, "STO": Token.STO, "RCL": Token.RCL}


class Vocabulary:
    """The tokens of a list of tools: those of ``Token``, then one for each further tool in the order given.

    Args:
        tools: Without repetition of names or symbols.

    Raises:
        ValueError: If there are none, or two of them cannot be told apart.
    """

    def __init__(self, tools: Sequence[Tool] = TOOLS) -> None:
        self.tools = tuple(tools)
        names, symbols = [tool.name for tool in tools], [tool.symbol for tool in tools]
        reserved = {token.name for token in Token} - {tool.name for tool in TOOLS}
        if not tools or len(set(names)) < len(names) or len(set(symbols)) < len(symbols) or reserved & set(names):
            raise ValueError(f"tools: got {names} with symbols {symbols}, expected one or more that differ")
        known = {tool.name: Token[tool.name] for tool in TOOLS}
        own = [name for name in names if name not in known]
        self._token = {name: int(known.get(name, 0)) for name in names}
        self._token.update({name: FIRST_OWN_TOKEN + i for i, name in enumerate(own)})
        self.size = FIRST_OWN_TOKEN + len(own)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.tools == other.tools

    def __hash__(self) -> int:
        return hash(self.tools)

    def token(self, tool: Tool) -> int:
        """Token of one of the tools."""
        return self._token[tool.name]

    @cached_property
    def by_token(self) -> dict[int, Tool]:
        """The tools by their tokens."""
        return {self.token(tool): tool for tool in self.tools}

    @cached_property
    def operators(self) -> tuple[int, ...]:
        """Tokens of the tools, in order."""
        return tuple(self.token(tool) for tool in self.tools)

    @cached_property
    def actions(self) -> tuple[int, ...]:
        """Tokens that do something in an environment: the tools, then ANS, STO and RCL."""
        return (*self.operators, Token.ANS, Token.STO, Token.RCL)

    @cached_property
    def precedences(self) -> tuple[int, ...]:
        """Precedence of each token, 0 for those that are no operators."""
        return tuple(self.by_token[t].precedence if t in self.by_token else 0 for t in range(self.size))

    def name(self, token: int) -> str:
        """Name of a token; digits and brackets as they are written."""
        if token in self.by_token:
            return self.by_token[token].name
        if token <= Token.D9:
            return str(int(token))
        return {Token.OPEN: "(", Token.CLOSE: ")"}.get(Token(token), Token(token).name)

    def symbol(self, token: int) -> str:
        """A token as it is written in an expression."""
        return self.by_token[token].symbol if token in self.by_token else self.name(token)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all tokens, in order."""
        return tuple(self.name(token) for token in range(self.size))

    @cached_property
    def written(self) -> tuple[str, ...]:
        """All tokens, in order, as they stand in an expression: words with blanks around them."""
        symbols = [self.symbol(token) for token in range(self.size)]
        return tuple(f" {s} " if t in self.by_token and s[0].isalpha() else s for t, s in enumerate(symbols))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What an expression is made of: a number, a symbol of a tool, a word, or any other character."""
        symbol = "|".join(map(re.escape, sorted(self.symbols, key=len, reverse=True)))
        return re.compile(rf"\s*([0-9]+|{symbol}|[A-Za-z_]\w*|\S)")

    @cached_property
    def symbols(self) -> dict[str, int]:
        """Tokens of the tools by their symbols."""
        return {tool.symbol: self.token(tool) for tool in self.tools}

    def tokens(self, names: Sequence[str]) -> list[int]:
        """Tokens of these names.

        Raises:
            ValueError: If a name is unknown or repeated, or there is none.
        """
        known = {self.name(token): token for token in range(self.size) if token not in (Token.OPEN, Token.CLOSE)}
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
    built_in = {tool.name: tool for tool in TOOLS}
    found = []
    for given in tools:
        tool: Any = built_in.get(given, given) if isinstance(given, str) else given
        if isinstance(tool, str):
            try:
                if "." not in tool:
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
