"""Stages of Countdown, and problems: numbers, and a target that they can make."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.random_numbers import Purpose, random_below

MAX_NUMBERS, MAX_NUMBER, MAX_TARGET = 6, 400, 9999  # their products stay exact
EMPTY = -1
LAST = 2**62  # comes behind all numbers
NEW_DIGIT = 3  # targets that end with it are never trained on
MULTIPLIER = 0x5851F42D4C957F2D  # of a linear congruential generator, Knuth's MMIX


class Problems(NamedTuple):
    """A batch of ``B`` problems, int64.

    Attributes:
        number: ``[B]`` number of the problem in its run.
        stage: ``[B]`` position of its stage, or -1.
        numbers: ``[B, K]``, ascending, then -1.
        target: ``[B]``.
    """

    number: Tensor
    stage: Tensor
    numbers: Tensor
    target: Tensor


@dataclass(frozen=True)
class Stage:
    """A set of problems: numbers and targets uniform in a range, of which those are kept that can be solved.

    Args:
        name: Shown in tables, and used in the names of metrics.
        numbers: How many numbers.
        low, high: Smallest and largest number.
        target_low, target_high: Smallest and largest target.
        new_targets: Whether targets are those that are never trained on, which end with 3; else all others.

    Raises:
        ValueError: If a number is out of range, or there is no target.
    """

    name: str
    numbers: int
    low: int = 1
    high: int = 99
    target_low: int = 10
    target_high: int = 100
    new_targets: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w{1,40}", self.name):
            raise ValueError(f"stages: got name {self.name!r}, expected letters and digits")
        check_range(at_least=2, at_most=MAX_NUMBERS, numbers=self.numbers)
        check_range(at_least=0, at_most=self.high, low=self.low)
        check_range(at_least=1, at_most=MAX_NUMBER, high=self.high)
        check_range(at_least=1, at_most=self.target_high, target_low=self.target_low)
        check_range(at_most=MAX_TARGET, target_high=self.target_high)
        if not self.targets:
            raise ValueError(f"stages: got {self.name} without a target, expected a wider range")

    @property
    def targets(self) -> list[int]:
        """All targets that its problems can have."""
        every = range(self.target_low, self.target_high + 1)
        return [target for target in every if (target % 10 == NEW_DIGIT) == self.new_targets]


def find_stage(stage: "str | Mapping[str, Any] | Stage") -> Stage:
    """A stage by name: C and how many numbers, with ``_new`` behind it for targets that are never trained on.

    Raises:
        ValueError: If there is none of this name.
    """
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, Mapping):
        return Stage(**stage)
    if match := re.fullmatch(rf"C([2-{MAX_NUMBERS}])(_new)?", stage):
        return Stage(stage, int(match[1]), new_targets=match[2] is not None)
    raise ValueError(f"stages: got {stage!r}, expected C2 to C{MAX_NUMBERS}, C2_new ..., or a name with numbers")


def ascending(numbers: Tensor) -> Tensor:
    """Numbers ``[B, K]`` in order, -1 in the last places."""
    ordered = numbers.masked_fill(numbers.eq(EMPTY), LAST).sort(1).values
    return ordered.masked_fill_(ordered.eq(LAST), EMPTY)


def is_held_out(numbers: Tensor, target: Tensor) -> Tensor:
    """Whether problems are of the tenth that is never trained on, bool ``[B]``; the order of numbers does not count."""
    key = target
    for column in ascending(numbers).unbind(1):
        key = torch.where(column.eq(EMPTY), key, key * MULTIPLIER + column)
    return random_below(0, Purpose.HELD_OUT, key, torch.full_like(key, 10)).eq(0)


def read(line: str, width: int) -> list[int]:
    """Numbers, -1 up to ``width``, and target of a problem as people write it.

    Raises:
        ValueError: If the line is something else, or a number is too large.
    """
    match = re.fullmatch(r"\s*(\d{1,5}(?:[\s,]+\d{1,5})+)\s*=\s*(\d{1,5})\s*", line, re.ASCII)
    row, target = ([int(x) for x in re.split(r"[\s,]+", match[1])], int(match[2])) if match else ([], 0)
    if not 2 <= len(row) <= width or max(row) > MAX_NUMBER or not 1 <= target <= MAX_TARGET:
        raise ValueError(
            f"problem: got {line.strip()[:80]!r}, expected 2 to {width} numbers of at most {MAX_NUMBER} and a target, "
            "as in 25 7 4 = 72"
        )
    return [*row, *[EMPTY] * (width - len(row)), target]
