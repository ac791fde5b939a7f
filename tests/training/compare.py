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


def checkpoint_of(directory: Path) -> Path:
    """Of the only run below a directory that has one; a run that ended before its first has none."""
    (path,) = directory.glob("lightning_logs/version_*/checkpoints/last.ckpt")
    return path


def end_of(directory: Path) -> dict:
    """All that a run has ended with and that must not depend on where it was stopped."""
    state = torch.load(checkpoint_of(directory), weights_only=True)
    callbacks = {name: of for name, of in state["callbacks"].items() if name not in ("Ends", "Timer")}
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "toolagent_pl")
    return {**{name: state[name] for name in names}, "callbacks": callbacks}


def curves(directory: Path) -> dict[str, list[tuple[int, str]]]:
    """Steps and values of training and validation; as text, since nothing equals what is not a number."""
    events = read(checkpoint_of(directory).parent.parent)
    names = [name for name in events.Tags()["scalars"] if name.startswith(("train/", "val/"))]
    return {name: [(event.step, repr(event.value)) for event in events.Scalars(name)] for name in names}
