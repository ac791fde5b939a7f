"""What an environment is: pure functions on batches of states."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from toolagent_pl.problems import Problems, Stages
from toolagent_pl.tools import TOOLS, Tool, Vocabulary

Feedback = Literal["none", "flags", "position", "spans"]
FLAGS = ("accumulator", "left operand", "memory", "applied")
PLACES = ("next operand", "accumulator", "top of memory", "left operand")


class Observation(NamedTuple):
    """What tools report before an action; never a number of the calculation.

    Attributes:
        flags: float32 ``[B, F]``: is there an accumulator, a left operand, something in memory; did the last call
            apply (true at the start). ``F`` is 4, or 0 without feedback.
        places: int64 ``[B, P]``, indices into the prompt: of the next operand, and of the last operand of the value in
            the accumulator, on top of memory and as left operand; -1 where there is none. ``P`` is 4 with ``spans``, 1
            with ``position``, else 0.
    """

    flags: Tensor
    places: Tensor


class Outcome(NamedTuple):
    """How ``B`` episodes ended.

    Attributes:
        answered: bool ``[B]``, whether ANS was called.
        answer: int64 ``[B]``, the value answered, 0 where there is none.
        valued: bool ``[B]``, whether there was a value to answer with.
        correct: bool ``[B]``, whether the problem was solved.
        steps: int64 ``[B]``, actions taken, ANS and calls that did not apply included.
    """

    answered: Tensor
    answer: Tensor
    valued: Tensor
    correct: Tensor
    steps: Tensor


class State(Protocol):
    """What every state offers, a named tuple of tensors whose first dimension is ``B``."""

    @property
    def value(self) -> Tensor:
        """Int64 ``[B]``, the accumulator; 0 where it is empty."""

    @property
    def valued(self) -> Tensor:
        """Bool ``[B]``, whether there is a value in the accumulator."""

    @property
    def terminated(self) -> Tensor:
        """Bool ``[B]``, whether the episode has ended with ANS."""

    @property
    def truncated(self) -> Tensor:
        """Bool ``[B]``, whether it has run into the step limit."""

    @property
    def steps(self) -> Tensor:
        """Int64 ``[B]``, actions taken so far."""

    @property
    def idle(self) -> Tensor:
        """Int64 ``[B]``, how many of them did not apply."""


S = TypeVar("S", bound=State)


class EnvSpec(NamedTuple):
    """What an agent has to know of the task to be built.

    Attributes:
        vocabulary: Tokens of prompts and actions.
        stages: How many stages there are to be told apart.
        flags: Width of ``Observation.flags``.
        places: Width of ``Observation.places``.
    """

    vocabulary: Vocabulary
    stages: int
    flags: int
    places: int


class Env(ABC, Generic[S]):
    """Executes tools, one call for each problem at a time. Its methods are pure, with no loop over problems.

    Derive from it and name your class in the configuration.
    """

    vocabulary = Vocabulary(TOOLS)
    flags = 0
    places = 0

    @abstractmethod
    def with_tools(self, tools: Sequence[Tool]) -> "Env[S]":
        """The same environment, for problems made of these tools.

        Raises:
            ValueError: If it cannot work with them.
        """

    @abstractmethod
    def check(self, stages: Stages, actions: Sequence[int]) -> None:
        """Refuse stages that no agent with these actions can solve here.

        Raises:
            ValueError: Names the option to change.
        """

    @abstractmethod
    def horizon(self, problems: Problems) -> int:
        """Most actions that any of these episodes can take.

        Raises:
            ValueError: If there is no limit.
        """

    @abstractmethod
    def reset(self, problems: Problems) -> S:
        """The state before the first action."""

    @abstractmethod
    def step(self, state: S, action: Tensor) -> S:
        """The state after an action.

        Args:
            action: int64 ``[B]``, tokens; a negative one is padding and takes no step. An episode that has ended stays
                as it is.
        """

    def observe(self, state: S) -> Observation:
        """What the tools report; nothing, unless an environment says otherwise."""
        nothing = torch.zeros(len(state.steps), 0, device=state.steps.device)
        return Observation(nothing, nothing.long())

    @abstractmethod
    def outcome(self, state: S) -> Outcome:
        """How the episodes ended, if they are left here."""

    def spec(self, stages: int) -> EnvSpec:
        """What an agent for this environment and a number of stages has to know."""
        return EnvSpec(self.vocabulary, stages, self.flags, self.places)


def execute(env: Env[S], problems: Problems, actions: Tensor) -> list[S]:
    """All states along given actions.

    Args:
        actions: int64 ``[B, T]``, tokens; negative entries are padding.

    Returns:
        ``T + 1`` states, the first of them before any action.

    Raises:
        ValueError: If the shapes do not fit, or actions are not integers.
    """
    if actions.ndim != 2 or actions.shape[0] != problems.size or actions.dtype != torch.int64:
        raise ValueError(
            f"actions: got {actions.dtype} of shape {list(actions.shape)}, "
            f"expected int64 of shape [{problems.size}, steps], a row for each problem"
        )
    states = [env.reset(problems)]
    for action in actions.T.contiguous():
        states.append(env.step(states[-1], action))
    return states


def check_rows(owner: object, method: str, name: str, tree: Any, size: int) -> None:
    """Refuse what a class of one's own returned, unless it is made of tensors with a row for each problem.

    Rows are taken out of it and put back, wherever episodes have ended.

    Raises:
        TypeError: Names class and method, and what is expected.
    """
    where = f"{type(owner).__name__}.{method}"
    for leaf in tree_leaves(tree):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{where}: got {type(leaf).__name__} in {name}, expected tensors only")
        if not leaf.ndim or leaf.shape[0] != size:
            raise TypeError(
                f"{where}: got shape {list(leaf.shape)} in {name}, expected a first dimension of {size}, the batch"
            )


def check_kept(owner: object, method: str, name: str, tree: Any, before: Any) -> None:
    """Refuse a state of another form than the one before.

    Raises:
        TypeError: Names class and method, and what is expected.
    """
    where = f"{type(owner).__name__}.{method}"
    now, then = tree_leaves(tree), tree_leaves(before)
    if type(tree) is not type(before) or len(now) != len(then):
        raise TypeError(f"{where}: got {type(tree).__name__} for {name}, expected {type(before).__name__} as before")
    for leaf, one in zip(now, then, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{where}: got {type(leaf).__name__} in {name}, expected tensors only")
        if leaf.shape != one.shape or leaf.dtype != one.dtype:
            got, expected = (f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}" for x in (leaf, one))
            raise TypeError(f"{where}: got {got} in {name}, expected {expected} as before")


def float_kind(value: Any) -> torch.dtype:
    """The type of a tensor of floating point, which differs with the precision of a run; float32 for all else."""
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else torch.float32


def check_returned(
    owner: object, method: str, name: str, tensor: Any, dtype: torch.dtype, shape: Sequence[int]
) -> None:
    """Refuse what a class of one's own returned.

    Raises:
        TypeError: If it is not a tensor of this type and shape; names class and method, and what is expected.
    """
    where = f"{type(owner).__name__}.{method}"
    expected = f"{str(dtype).removeprefix('torch.')} of shape {list(shape)}"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{where}: got {type(tensor).__name__} for {name}, expected a tensor, {expected}")
    if tensor.dtype != dtype or tensor.shape != torch.Size(shape):
        got = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
        raise TypeError(f"{where}: got {got} for {name}, expected {expected}")
