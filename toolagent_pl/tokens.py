"""The vocabulary that problems are written in and that agents act with."""

from enum import IntEnum


class Token(IntEnum):
    """One token of the shared vocabulary: what an agent reads is also what it may emit.

    Compare tensors with it by ``eq``, ``ne``, ``ge``, as in ``action.eq(Token.ANS)``: ``torch.compile`` takes
    ``action == Token.ANS`` for False.
    """

    D0, D1, D2, D3, D4, D5, D6, D7, D8, D9 = range(10)
    CTX = 10
    MUL = 11
    ADD = 12
    SUB = 13
    ANS = 14
    STO = 15
    RCL = 16
    EOS = 17
    OPEN = 18
    CLOSE = 19

    def __str__(self) -> str:
        """Digits as themselves, brackets as written, everything else by name."""
        if self <= Token.D9:
            return str(int(self))
        return {Token.OPEN: "(", Token.CLOSE: ")"}.get(self, self.name)


STAGED_VOCABULARY = 18  # tokens 0-17: problems that a stage describes
EXPRESSION_VOCABULARY = 20  # tokens 0-19: problems that are written out with brackets

TOOLS = (Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL)
TOOL_NAMES = tuple(str(tool) for tool in TOOLS)
PADDING = -1  # stands where no action was taken
