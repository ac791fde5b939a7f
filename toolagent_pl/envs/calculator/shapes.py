"""Right answers by the shape of the tree that an expression is."""

from collections import Counter
from collections.abc import Iterable
from itertools import compress
from typing import NamedTuple

from torch import Tensor

from toolagent_pl.envs.calculator.problems import Problems


class ShapeCount(NamedTuple):
    """How many problems of a shape were tried, and answered correctly."""

    shape: str
    right: int
    tried: int


def shapes(problems: Problems) -> list[str]:
    """Shape of each tree, every operand a dot and every operator with brackets: ``((..).)``."""
    written = []
    for tree, length in zip(problems.tree.tolist(), problems.length.tolist(), strict=True):
        parts = {(i, i + 1): "." for i in range(length)}
        for token, start, split, end in tree:
            if token:
                parts[start, end] = f"({parts.pop((start, split))}{parts.pop((split, end))})"
        written.append(parts[0, length])
    return written


def by_shape(answered: Iterable[tuple[Problems, Tensor]]) -> list[ShapeCount]:
    """Counts of all shapes in batches of problems, beside which stands whether they were answered, bool ``[B]``.

    The worst come first, by the rule of succession, (right + 1) / (tried + 2): few problems say little.
    """
    right, tried = Counter[str](), Counter[str]()
    for problems, correct in answered:
        names = shapes(problems)
        tried.update(names)
        right.update(compress(names, correct.tolist()))
    counts = [ShapeCount(name, right[name], count) for name, count in tried.items()]
    return sorted(counts, key=lambda one: (one.right + 1) / (one.tried + 2))
