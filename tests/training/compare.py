"""Whether two runs are bit for bit the same."""

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def difference(one, other, name: str = "checkpoint") -> str | None:
    """Name of the first thing that differs in two nested containers of tensors, to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if one.dtype == other.dtype and torch.equal(one, other) else name
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(filter(None, (difference(one[key], other[key], f"{name}.{key}") for key in one)), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(a, b, f"{name}[{i}]") for i, (a, b) in pairs)), None)
    return None if type(one) is type(other) and one == other else name


def read(directory: str | Path) -> EventAccumulator:
    """All curves of a run."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return events
