"""Implementations of one and the same training update, each in a module of its own with a function ``make``."""

from importlib import import_module
from importlib.util import find_spec

from benchmarks.contestants.contestant import Contestant

LABELS = {
    "this_project": "this project",
    "python_loop": "Python loop",
    "two_pass": "two passes",
    "jax_update": "JAX",
}
REQUIRED = {"jax_update": "jax"}
LARGEST_BATCH = {"python_loop": 4096}  # it builds a tensor of B * B * d numbers


def reason_to_skip(name: str, batch: int) -> str | None:
    """Why a contestant cannot take part, or None."""
    package = REQUIRED.get(name)
    if package and find_spec(package) is None:
        return f"{package} is not installed"
    if batch > LARGEST_BATCH.get(name, batch):
        return f"its memory grows with the square of the batch; measured up to {LARGEST_BATCH[name]}"
    return None


def make(name: str, batch: int, stage: int, seed: int, d: int) -> Contestant:
    """Build a contestant by the name of its module."""
    contestant: Contestant = import_module(f"benchmarks.contestants.{name}").make(batch, stage, seed, d)
    return contestant
