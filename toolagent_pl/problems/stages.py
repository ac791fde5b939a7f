"""Stages: named, numbered sets of problems, and ladders of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from toolagent_pl.problems.batch import Problems
from toolagent_pl.problems.expression import INT64_MAX, Expression, evaluate, magnitude_bound, parse, shortest_program
from toolagent_pl.tokens import Token

BASE = 10  # operands are the digits 0-9


@dataclass(frozen=True)
class Stage:
    """All problems of one form: every letter of the template is a digit.

    Problem ``i`` of a stage writes ``i`` in decimal, first operand first, so the stage has
    ``10 ** operands`` problems and each of them is reached by its number.

    Raises:
        ValueError: If the template cannot be read, or a value might not fit into int64.
    """

    name: str
    template: str

    def __post_init__(self) -> None:
        if not all(leaf.isalpha() for leaf in self.expression.leaves):
            raise ValueError(f"stage {self.name}: got {self.template!r}, expected letters for all operands")
        if self.size > INT64_MAX or magnitude_bound([BASE - 1] * self.operands) > INT64_MAX:
            raise ValueError(f"stage {self.name}: the problems of {self.template!r} might not fit into 64 bits")

    @cached_property
    def expression(self) -> Expression:
        """The parsed template."""
        return parse(self.template)

    @property
    def operands(self) -> int:
        """Number of operands."""
        return len(self.expression.leaves)

    @property
    def size(self) -> int:
        """Number of different problems."""
        return BASE**self.operands

    def written(self, operands: Sequence[int]) -> str:
        """The problem with these operands, written out."""
        letters = iter(operands)
        return "".join(str(next(letters)) if c.isalpha() else c for c in self.template)

    @property
    def program(self) -> list[Token]:
        """The shortest program that solves every problem of the stage."""
        return shortest_program(self.expression.tree)


STAGES = {stage.name: stage for stage in (Stage("T0", "a*b+c"), Stage("T1", "(a*b+c)-d"), Stage("T2", "(a*b+c)-(d*e)"))}


class Ladder:
    """An ordered list of stages, easiest first, that makes batches mixed from all of them.

    Args:
        names: Names of stages, without repetition.

    Raises:
        ValueError: If a name is unknown or repeated, or there is none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        known = ", ".join(STAGES)
        for name in names:
            if name not in STAGES:
                raise ValueError(f"data.stages: got unknown {name!r}, expected some of {known}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"data.stages: got {list(names)}, expected one or more of {known}, each at most once")
        self.stages = tuple(STAGES[name] for name in names)
        self.width = max(stage.operands for stage in self.stages)
        operators = max(len(stage.expression.tree) for stage in self.stages)
        self._size = torch.tensor([stage.size for stage in self.stages])
        self._length = torch.tensor([stage.operands for stage in self.stages])
        places = [[BASE**j for j in reversed(range(stage.operands))] for stage in self.stages]
        # Place value of each operand in the number of its problem; past the tape so much that the digit is 0.
        self._place = torch.tensor([place + [INT64_MAX] * (self.width - len(place)) for place in places])
        # What is read after the operands, and 0 in their places.
        self._end = torch.tensor(
            [[0] * len(place) + [Token.CTX] + [Token.EOS] * (self.width - len(place)) for place in places]
        )
        self._tree = torch.zeros(len(self.stages), operators, 4, dtype=torch.int64)
        for row, stage in zip(self._tree, self.stages, strict=True):
            row[: len(stage.expression.tree)] = torch.tensor(stage.expression.tree)

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages, in order."""
        return tuple(stage.name for stage in self.stages)

    def to(self, device: torch.device | str) -> "Ladder":
        """The same ladder, making its batches on ``device``."""
        moved = Ladder(self.names)
        for table in ("_size", "_length", "_place", "_end", "_tree"):
            setattr(moved, table, getattr(self, table).to(device))
        return moved

    def sizes(self, stage: Tensor) -> Tensor:
        """How many problems each stage has; int64, of the shape of ``stage``."""
        return self._size.index_select(0, stage)

    def problems(self, number: Tensor, stage: Tensor, index: Tensor) -> Problems:
        """Problem ``index`` of stage ``stage`` for each row.

        Args:
            number: int64 ``[B]``, number of the problem in its run.
            stage: int64 ``[B]``, positions in the ladder.
            index: int64 ``[B]``, ``0 <= index < sizes(stage)``.
        """
        operands = index[:, None] // self._place.index_select(0, stage) % BASE  # [B, N]
        columns = operands.unbind(1)
        target = torch.zeros_like(index)
        for i, one in enumerate(self.stages):
            target = torch.where(stage == i, evaluate(one.expression.tree, columns[: one.operands]), target)
        observation = torch.nn.functional.pad(operands, (0, 1)) + self._end.index_select(0, stage)  # [B, N + 1]
        length, tree = self._length.index_select(0, stage), self._tree.index_select(0, stage)
        return Problems(number, stage, observation, operands, length, target, tree)
