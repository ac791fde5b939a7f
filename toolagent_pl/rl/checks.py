"""Checks of options and of what custom classes return: one line with the name, the value, and what is accepted."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_range(
    at_least: float | None = None, at_most: float | None = None, above: float | None = None, **options: float | None
) -> None:
    """Refuse options that are out of range; None is accepted.

    Raises:
        ValueError: Names the option, its value, and what is accepted.
    """
    bounds = {"at least": at_least, "more than": above, "at most": at_most}
    expected = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
    for name, value in options.items():
        if value is None:
            continue
        low = (at_least is None or value >= at_least) and (above is None or value > above)
        if not (low and (at_most is None or value <= at_most) and value < float("inf")):
            raise ValueError(f"{name}: got {value}, expected {expected}")


def check_tensor(owner: object, method: str, name: str, tensor: Any, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Refuse what a custom class returned, unless it is a tensor of this type and shape.

    Raises:
        TypeError: Names class and method, what it returned, and what is expected.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.shape != torch.Size(shape):
        got = f"{tensor.dtype} of shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        expected = f"{dtype} of shape {list(shape)}"
        raise TypeError(f"{type(owner).__name__}.{method}: got {got} for {name}, expected {expected}")


def float_type(value: Any) -> torch.dtype:
    """The type of a tensor of floating point, which differs with the precision of a run; float32 for all else."""
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else torch.float32
