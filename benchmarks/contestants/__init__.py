"""What an update of the default run is compared with, each in a module of its own with a class ``Update``.

One update: fresh problems, episodes of the reader in the calculator, the minibatches of PPO with clipped gradients and
Adam. All have the weights of the agent that comes with the package, and a learning rate so low that it stays as it is.
The others take as many steps with every problem as the reference plans have on average.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, SupportsFloat

LABELS = {"reader": "this project", "jax_reader": "JAX", "products": "matrix products alone"}


class Contestant(Protocol):
    """One implementation, ready to train.

    Attributes:
        actions: Taken so far.
    """

    actions: Any

    def update(self) -> SupportsFloat:
        """Do one whole update, and return a number that is known once it is done: a float of it waits."""


def reason_to_skip(name: str) -> str | None:
    """Why a contestant cannot take part, or None."""
    return "jax is not installed" if name == "jax_reader" and find_spec("jax") is None else None


def make(name: str, batch: int, stage: str, width: int) -> Contestant:
    """Build a contestant by the name of its module."""
    made: Contestant = import_module(f"benchmarks.contestants.{name}").Update(batch, stage, width)
    return made
