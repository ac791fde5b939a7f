"""Counter-based random numbers: draw number ``i`` is a pure function of (seed, purpose, i).

There is no generator whose state must be carried along. Ranks, workers and resumed runs ask for other
counters of the same sequence, and the same counters give the same numbers on every device.

Source: SplitMix64, Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014,
figure 17 (the variant "mix64variant13" of David Stafford).
"""

from enum import IntEnum

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a sequence is for. Sequences of different purposes are unrelated."""

    STAGE = 1
    PROBLEM = 2
    ACTION = 3
    VALIDATION = 4
    TEST = 5
    PREDICT = 6
    PROBLEM_OPERANDS = 7
    VALIDATION_OPERANDS = 8
    TEST_OPERANDS = 9
    PREDICT_OPERANDS = 10
    HELD_OUT = 11
    MINIBATCH = 12
    EPISODE = 13
    REPLAY = 14


def _signed(value: int) -> int:
    """The int64 with the bit pattern of an unsigned 64-bit ``value``."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _key(seed: int, purpose: Purpose) -> int:
    """Start of the sequence of ``purpose``: one SplitMix64 output, far from those of other seeds."""
    z = ((seed << 8) + int(purpose)) * _GAMMA & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; ``>>`` on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_bits(seed: int, purpose: Purpose, counter: Tensor, bits: int = 64) -> Tensor:
    """Random bits for each counter.

    Args:
        seed: Seed of the run, from 0 to 2^56 - 1.
        purpose: Which sequence to draw from.
        counter: int64 tensor of any shape; which draws of the sequence.
        bits: How many; the first of 64.

    Returns:
        int64 tensor of the shape of ``counter``, uniform over all patterns of so many bits.
    """
    start = (_key(seed, purpose) + _GAMMA) & _MASK
    # In place: a draw for every (problem, step) is made in each update, and int64 products wrap as needed.
    z = counter * _signed(_GAMMA)
    z += _signed(start)
    z ^= _shift_right(z, 30)
    z *= _signed(_MIX_1)
    z ^= _shift_right(z, 27)
    z *= _signed(_MIX_2)
    z ^= _shift_right(z, 31)
    return z if bits == 64 else _shift_right(z, 64 - bits)


def random_below(seed: int, purpose: Purpose, counter: Tensor, bound: Tensor) -> Tensor:
    """Uniform integers in ``[0, bound)``, biased by less than ``bound / 2^63``.

    Args:
        bound: int64, positive, broadcastable to ``counter``.

    Returns:
        int64 tensor of the shape of ``counter``.
    """
    return random_bits(seed, purpose, counter, bits=63) % bound


def random_uniform(seed: int, purpose: Purpose, counter: Tensor) -> Tensor:
    """Uniform float32 numbers strictly between 0 and 1: the centres of 2^23 equal intervals.

    23 bits and a half step are what float32 holds exactly, so that no rounding reaches 0 or 1.
    """
    return random_bits(seed, purpose, counter, bits=23).to(torch.float32).add_(0.5).mul_(2.0**-23)
