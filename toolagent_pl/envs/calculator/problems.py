"""A batch of problems as tensors."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.envs.calculator.expression import (
    INT64_MAX,
    Expression,
    magnitude_bound,
    minimal_tokens,
    parse,
    refused,
    written_tokens,
)
from toolagent_pl.envs.calculator.tools import TOOLS, Token, Tool, Vocabulary

NO_STAGE = -1


class Problems(NamedTuple):
    """A batch of ``B`` problems. All tensors are int64 and on one device.

    Attributes:
        number: ``[B]`` number of the problem in its run; draws of action noise are tied to it.
        stage: ``[B]`` position of the problem's stage in the list of stages, or ``NO_STAGE``.
        prompt: ``[B, L]`` tokens that a reader is told: the expression, CTX, then EOS as padding.
        prompt_length: ``[B]`` how many of them there are, CTX included.
        operands: ``[B, N]`` the operand tape, zeros past its length.
        positions: ``[B, N]`` where each operand stands in the prompt, the index of its last digit; -1 past the length.
        length: ``[B]`` how many operands are on the tape.
        target: ``[B]`` the right answer.
        tree: ``[B, M, 4]`` operators in post-order as (token, start, split, end) of the spans of the tape
            that they join; rows of zeros are padding.
    """

    number: Tensor
    stage: Tensor
    prompt: Tensor
    prompt_length: Tensor
    operands: Tensor
    positions: Tensor
    length: Tensor
    target: Tensor
    tree: Tensor

    @property
    def size(self) -> int:
        """Number of problems, ``B``."""
        return self.length.shape[0]

    @property
    def device(self) -> torch.device:
        """Device that all tensors are on."""
        return self.length.device

    @property
    def reference_length(self) -> Tensor:
        """Actions of ``reference_plan``, int64 ``[B]``; STO and RCL where a right operand is calculated first."""
        token, _, split, end = self.tree.unbind(2)
        operators = token.ne(0).sum(1)
        return torch.where(operators.eq(0), 3, operators + 1 + 2 * (end - split).gt(1).sum(1))

    @property
    def memory_needed(self) -> Tensor:
        """Most values that the reference plan has in memory at a time, int64 ``[B]``.

        It is the depth to which right operands that are calculated first are nested: the left ones wait in memory.
        """
        _, _, split, end = self.tree.unbind(2)
        position = torch.arange(self.operands.shape[1], device=self.device)
        within = (position >= split[..., None]) & (position < end[..., None]) & (end - split).gt(1)[..., None]
        return within.sum(1).amax(1) if self.tree.shape[1] else torch.zeros_like(self.length)

    @classmethod
    def from_expressions(
        cls, expressions: Sequence[str], tools: Sequence[Tool] = TOOLS, *, minimal_brackets: bool = False
    ) -> "Problems":
        """Build a batch from written expressions, for example ``["3*4+5", "1-(2-(3*4))"]``.

        Args:
            tools: Those that the expressions are made of.
            minimal_brackets: Leave out of the prompts brackets that say nothing, as stages do; else only where an
                expression has a call such as ``max(3,4)``, which a prompt has as ``3 max 4``.

        Raises:
            ExpressionError: If an expression cannot be read, or its value might not fit into int64.
        """
        if isinstance(expressions, str) or not expressions:
            raise ValueError(f"expressions: got {expressions!r}, expected a non-empty list of strings")
        vocabulary = Vocabulary(tools)
        prompts, trees = [], []
        for text in expressions:
            trees.append(tree := parse(text, vocabulary))
            minimal = minimal_brackets or "," in text
            prompts.append(minimal_tokens(tree, vocabulary) if minimal else written_tokens(text, vocabulary))
            if magnitude_bound([int(leaf) for leaf in tree.leaves]) > INT64_MAX:
                raise refused(text, "a value on the way might not fit into 64 bits")
        return cls.from_trees(prompts, trees, vocabulary)

    @classmethod
    def from_trees(
        cls, prompts: Sequence[Sequence[int]], trees: Sequence[Expression], vocabulary: Vocabulary
    ) -> "Problems":
        """Build a batch from expressions that are parsed already, and their prompts."""
        tapes = [[int(leaf) for leaf in expression.leaves] for expression in trees]
        operands, length = _padded(tapes, 0), torch.tensor([len(tape) for tape in tapes])
        tree = _padded([list(chain.from_iterable(expression.tree)) for expression in trees], 0).view(len(trees), -1, 4)
        prompt = _padded(prompts, int(Token.EOS))
        return cls(
            number=torch.arange(len(trees)),
            stage=torch.full((len(trees),), NO_STAGE),
            prompt=prompt,
            prompt_length=torch.tensor([len(tokens) for tokens in prompts]),
            operands=operands,
            positions=_padded([_last_digits(tokens) for tokens in prompts], -1),
            length=length,
            target=evaluate(tree, operands, vocabulary),
            tree=tree,
        )


def evaluate(tree: Tensor, operands: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Values of expressions, int64 ``[B]``.

    Args:
        tree: int64 ``[B, M, 4]``, as in ``Problems``.
        operands: int64 ``[B, N]``.
    """
    # The value of a span stands where the span begins: by the time it is read, those inside it are not needed.
    values = operands
    for token, start, split, _ in tree.permute(1, 2, 0):
        pair = values.gather(1, torch.stack([start, split], 1))
        joined = vocabulary.apply(token, pair[:, 0], pair[:, 1])
        values = values.scatter(1, start[:, None], joined[:, None])
    return values[:, 0]


def running_sum(values: Tensor) -> Tensor:
    """Sums along rows ``[B, n]``, each element included, int64 for integers."""
    # A GPU takes ten times as long along short rows; a CPU five times as long across them.
    return values.cumsum(1) if values.device.type == "cpu" else values.T.contiguous().cumsum(0).T


def _last_digits(tokens: Sequence[int]) -> list[int]:
    last = int(Token.D9)  # members of an enumeration are slow to compare
    return [i for i, token in enumerate(tokens) if token <= last < tokens[i + 1]]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different lengths as one int64 tensor ``[B, longest]``."""
    longest = max(map(len, rows))
    whole = [[*row, *[value] * (longest - len(row))] for row in rows]
    return torch.tensor(whole, dtype=torch.int64).view(len(rows), longest)
