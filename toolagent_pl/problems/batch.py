"""A batch of problems as tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.problems.expression import INT64_MAX, evaluate, magnitude_bound, parse, quoted, written_tokens
from toolagent_pl.tokens import Token

NO_STAGE = -1


class Problems(NamedTuple):
    """A batch of ``B`` problems. All tensors are int64 and on one device.

    Attributes:
        number: ``[B]`` number of the problem in its run; draws of action noise are tied to it.
        stage: ``[B]`` position of the problem's stage in the ladder, or ``NO_STAGE``.
        observation: ``[B, L]`` tokens that the agent reads: the problem, CTX, then EOS as padding.
        operands: ``[B, N]`` the operand tape, zeros past its length.
        length: ``[B]`` how many operands are on the tape.
        target: ``[B]`` the right answer.
        tree: ``[B, M, 4]`` operators in post-order as (tool, start, split, end) of the spans of the tape
            that they join; rows of zeros are padding.
    """

    number: Tensor
    stage: Tensor
    observation: Tensor
    operands: Tensor
    length: Tensor
    target: Tensor
    tree: Tensor

    @property
    def size(self) -> int:
        """Number of problems, ``B``."""
        return self.target.shape[0]

    @property
    def device(self) -> torch.device:
        """Device that all tensors are on."""
        return self.target.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Problems":
        """The same problems on another device."""
        return Problems(*(x.to(device, non_blocking=non_blocking) for x in self))

    def select(self, index: Tensor | slice) -> "Problems":
        """The problems at ``index``."""
        return Problems(*(x[index] for x in self))

    @classmethod
    def from_expressions(cls, expressions: Sequence[str]) -> "Problems":
        """Build a batch from written expressions, for example ``["3*4+5", "1-(2-(3*4))"]``.

        The agent reads the expressions themselves, and no stage is given.

        Raises:
            ValueError: If an expression cannot be read, or its value might not fit into int64.
        """
        if isinstance(expressions, str) or not expressions:
            raise ValueError(f"expressions: got {expressions!r}, expected a non-empty list of strings")
        rows = []
        for text in expressions:
            leaves, tree = parse(text)
            if not all(leaf.isdigit() for leaf in leaves):
                raise ValueError(f"expression {quoted(text)}: names are for stages only; expected whole numbers")
            operands = [int(leaf) for leaf in leaves]
            if magnitude_bound(operands) > INT64_MAX:
                raise ValueError(f"expression {quoted(text)}: a value on the way might not fit into 64 bits")
            rows.append((written_tokens(text), operands, evaluate(tree, operands), tree))
        tokens, tapes, targets, trees = zip(*rows, strict=True)
        return cls(
            number=torch.arange(len(rows)),
            stage=torch.full((len(rows),), NO_STAGE),
            observation=_padded(tokens, Token.EOS),
            operands=_padded(tapes, 0),
            length=torch.tensor([len(tape) for tape in tapes]),
            target=torch.tensor(targets),
            tree=_padded([sum(tree, ()) for tree in trees], 0).view(len(rows), -1, 4),
        )


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different lengths as one int64 tensor ``[B, longest]``."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64).view(
        len(rows), longest
    )
