"""The rules of arithmetic, and an exact solver, for whole batches.

Values are floating-point numbers, which is exact here: whole numbers are, and a rounded quotient of two of them is
whole only if the division is exact, up to 2^53, or 2^24 in float32. NaN stands for what is not allowed, and whatever
comes of it is NaN.
"""

from collections.abc import Iterator
from math import inf

import torch
from torch import Tensor

SYMBOLS = ("+", "-", "*", "/")
AT_ONCE = {"cpu": 2**23}  # problems times 8^numbers: what is compared should stay in the cache


def combine(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the operations make of two numbers, in the order of ``SYMBOLS``, NaN where one is not allowed.

    The smaller number is subtracted from the larger one, and the larger one divided by the smaller one, if that is not
    0 and the result is whole.
    """
    quotient = torch.maximum(x, y) / torch.minimum(x, y)
    fraction = quotient.frac()  # NaN of what is infinite, and so is the root of what is negative
    return x + y, (x - y).abs_(), x * y, quotient + fraction.neg_().sqrt_()


def solvable(numbers: Tensor, target: Tensor, largest: float = inf) -> Tensor:
    """Whether all numbers of each row together can make its target, bool ``[B]``.

    Every way of splitting the numbers in two is tried: all values that can be made of each part are known, and two of
    them must make the target. It is exact.

    Args:
        numbers: int64 ``[B, n]``, none negative.
        target: int64 ``[B]``, positive.
        largest: No number or target is larger; with small ones it is faster.
    """
    count = numbers.shape[1]
    kind = torch.float32 if max(largest, 2) ** max(count - 1, 3) < 2**24 else torch.float64
    rows = max(16, AT_ONCE.get(numbers.device.type, 2**28) >> 3 * count)
    parts = zip(numbers.T.to(kind).split(rows, 1), target.to(kind).split(rows), strict=True)
    return torch.cat([_nearest(some, goal).eq(0) for some, goal in parts])


def _nearest(numbers: Tensor, target: Tensor) -> Tensor:
    """How near the numbers ``[n, B]`` come to the targets ``[B]`` with their last move, in what it needs; ``[B]``."""
    if len(numbers) == 1:
        return numbers[0] - target
    known: dict[int, Tensor] = {}
    found = []
    for one, other in _splits((1 << len(numbers)) - 1):
        x, y = _values(numbers, one, known)[:, None], _values(numbers, other, known)[None]
        # There are fewer of y. What x would have to be for each of them is soon said.
        divisor = y / y * y  # not 0
        wanted = target - y, target + y, y - target, target / divisor, target * divisor, divisor / target
        x = x.nan_to_num(-0.5)  # which is not wanted
        nearest = x.new_full((), inf)
        for value in wanted:
            nearest = torch.minimum(nearest, (x - value.nan_to_num(-1)).abs_())
        found.append(nearest.amin((0, 1)))
    return torch.stack(found).amin(0)


def _values(numbers: Tensor, part: int, known: dict[int, Tensor]) -> Tensor:
    """All values that can be made of the numbers whose bits are set in ``part``, ``[values, B]``."""
    if part & (part - 1) == 0:
        return numbers[None, part.bit_length() - 1]
    if part not in known:
        made: list[Tensor] = []
        for one, other in _splits(part):
            made += combine(_values(numbers, one, known)[:, None], _values(numbers, other, known)[None])
        known[part] = torch.cat([value.flatten(0, 1) for value in made])
    return known[part]


def _splits(part: int) -> Iterator[tuple[int, int]]:
    """All ways of splitting a set of bits in two that are not empty, each once, the larger set first."""
    one = (part - 1) & part
    while one:
        other = part ^ one
        if (one.bit_count(), one) > (other.bit_count(), other):
            yield one, other
        one = (one - 1) & part
