"""Implementations of one and the same training update, each in a module of its own with a class ``Update``."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

LABELS = {
    "this_project": "this project, blind agent",
    "reader": "this project, reader",
    "two_pass": "nn.GRU, two passes",
    "jax_update": "JAX",
}


def reason_to_skip(name: str) -> str | None:
    """Why a contestant cannot take part, or None."""
    if name == "jax_update" and find_spec("jax") is None:
        return "jax is not installed"
    return None


def make(name: str, batch: int, stage: int, seed: int, d: int) -> Any:
    """Build a contestant by the name of its module."""
    return import_module(f"benchmarks.contestants.{name}").Update(batch, stage, seed, d)
