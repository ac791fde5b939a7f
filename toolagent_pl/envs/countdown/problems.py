"""Stages of Countdown, problems (numbers, and a target that they can make), and an exact solver for whole batches.

Values are float64, which is exact here: whole numbers are, and a rounded quotient of two of them is whole only if the
division is exact, up to 2^53. NaN stands for what is not allowed, and whatever comes of it is NaN.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.random_numbers import Purpose, random_below

MAX_NUMBERS, MAX_NUMBER, MAX_TARGET = 6, 400, 9999  # their products stay exact
SYMBOLS = ("+", "-", "*", "/")
EMPTY = -1
DRAWS = 2**17  # that are set aside for a problem, of 8 random numbers each
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
        check_range(at_most=MAX_NUMBER, high=self.high)
        check_range(at_least=1, at_most=MAX_TARGET, target_low=self.target_low, target_high=self.target_high)
        if not self.targets:
            raise ValueError(f"stages: got {self.name} without a target, expected a wider range")

    @property
    def targets(self) -> list[int]:
        """All targets that its problems can have."""
        every = range(self.target_low, self.target_high + 1)
        return [target for target in every if (target % 10 == NEW_DIGIT) == self.new_targets]

    @classmethod
    def find(cls, stage: "str | Mapping[str, Any] | Stage") -> "Stage":
        """A stage by its arguments, or by name: C and how many numbers, with ``_new`` behind it for new targets."""
        if not isinstance(stage, str):
            return stage if isinstance(stage, Stage) else cls(**stage)
        if match := re.fullmatch(rf"C([2-{MAX_NUMBERS}])(_new)?", stage):
            return cls(stage, int(match[1]), new_targets=match[2] is not None)
        raise ValueError(f"stages: got {stage!r}, expected C2 to C{MAX_NUMBERS}, C2_new ..., or a name with numbers")

    def problems(self, number: Tensor, seed: int, held_out: bool) -> tuple[Tensor, Tensor]:
        """Numbers ``[B, n]`` and targets ``[B]``: the first that are drawn, can be solved, and are of the right part.

        Raises:
            ValueError: If there are none among many, as of a stage that has no problems.
        """
        device, targets = number.device, torch.tensor(self.targets, device=number.device)
        numbers, target = number.new_zeros(len(number), self.numbers), torch.zeros_like(number)
        rows, first, count = torch.arange(len(number), device=device), 0, 4
        while len(rows):
            if first + count > DRAWS:
                raise ValueError(f"stages: got {self.name}, expected one of which a problem is found in {first} draws")
            draw = (number[rows, None] * DRAWS + torch.arange(first, first + count, device=device)).flatten() << 3
            columns = draw[:, None] + torch.arange(self.numbers, device=device)
            some = self.low + random_below(seed, Purpose.PROBLEM, columns, torch.tensor(self.high - self.low + 1))
            goal = targets[random_below(seed, Purpose.PROBLEM, draw + 7, torch.tensor(len(targets)))]
            good = is_held_out(some, goal).eq(held_out) | self.new_targets
            rest = good.nonzero()[:, 0]
            good[rest] = solvable(some[rest], goal[rest])
            chosen = good.view(-1, count).int().argmax(1) + torch.arange(0, len(good), count, device=device)
            numbers[rows], target[rows] = ascending(some[chosen]), goal[chosen]
            rows = rows[~good[chosen]]
            first, count = first + count, min(2 * count, 1024)
        return numbers, target


def ascending(numbers: Tensor) -> Tensor:
    """Numbers ``[B, K]`` in order, -1 in the last places."""
    ordered = numbers.masked_fill(numbers.eq(EMPTY), LAST).sort(1).values
    return ordered.masked_fill_(ordered.eq(LAST), EMPTY)


def is_held_out(numbers: Tensor, target: Tensor) -> Tensor:
    """Whether problems are of the tenth that is never trained on, bool ``[B]``; the order of numbers does not count."""
    key = target
    for column in ascending(numbers).unbind(1):
        key = torch.where(column.eq(EMPTY), key, key * MULTIPLIER + column)
    return random_below(0, Purpose.HELD_OUT, key, torch.tensor(10)).eq(0)


def read(line: str, width: int) -> list[int]:
    """Numbers, -1 up to ``width``, and target of a problem as people write it; ValueError if it is none."""
    match = re.fullmatch(r"\s*(\d{1,5}(?:[\s,]+\d{1,5})+)\s*=\s*(\d{1,5})\s*", line, re.ASCII)
    row, target = ([int(x) for x in re.split(r"[\s,]+", match[1])], int(match[2])) if match else ([], 0)
    if not 2 <= len(row) <= width or max(row) > MAX_NUMBER or not 1 <= target <= MAX_TARGET:
        raise ValueError(
            f"problem: got {line.strip()[:80]!r}, expected 2 to {width} numbers of at most {MAX_NUMBER} and a target, "
            "as in 25 7 4 = 72"
        )
    return [*row, *[EMPTY] * (width - len(row)), target]


def combine(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the operations make of two numbers, in the order of ``SYMBOLS``, NaN where one is not allowed.

    The smaller number is subtracted from the larger one, and the larger one divided by the smaller one, if that is not
    0 and the result is whole.
    """
    quotient = torch.maximum(x, y) / torch.minimum(x, y)
    fraction = quotient.frac()  # NaN of what is infinite, and so is the root of what is negative
    return x + y, (x - y).abs_(), x * y, quotient + fraction.neg_().sqrt_()


def solvable(numbers: Tensor, target: Tensor) -> Tensor:
    """Whether all numbers of each row, int64 ``[B, n]``, together can make its target, ``[B]``; bool ``[B]``.

    All values that can be made of each part of the numbers are known, and those of two parts must make the target.
    """
    count, found = numbers.shape[1], []
    rows = max(16, (2**23 if numbers.device.type == "cpu" else 2**28) >> 3 * count)  # they should stay in the cache
    for some, goal in zip(numbers.T.double().split(rows, 1), target.double().split(rows), strict=True):
        known = {1 << k: some[k, None] for k in range(count)}  # values ``[V, B]`` by the bits of what they are made of
        for part in range(1, (1 << count) - 1):
            if part not in known:
                made = [combine(known[one][:, None], known[other][None]) for one, other in _splits(part)]
                known[part] = torch.cat([value.flatten(0, 1) for values in made for value in values])
        found.append(some[0].eq(goal) & (count == 1))
        for one, other in _splits((1 << count) - 1):
            x, y = known[one][:, None], known[other][None]
            high, low = torch.maximum(x, y), torch.minimum(x, y)
            right = (x + y).eq(goal) | (high - low).eq(goal) | (x * y).eq(goal) | (low * goal).eq(high) & high.gt(0)
            found[-1] |= right.flatten(0, 1).any(0)
    return torch.cat(found)


def _splits(part: int) -> Iterator[tuple[int, int]]:
    """All ways of splitting a set of bits in two that are not empty, each once."""
    return ((one, part ^ one) for one in range(1, part) if one & part == one and one > part ^ one)
