"""What an environment is: a world that makes problems, executes what an agent does about them, and shows episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from toolagent_pl.rl.trees import tree_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PADDING = -1  # in place of an action: no step is taken

Observation = Any  # a named tuple of tensors, first dimension B
Record = Any  # a ``Rollout`` of rl/rollout.py, which is made with environments
T = TypeVar("T")


class Problems(Protocol):
    """A batch of ``B`` problems: any named tuple of tensors whose first dimension is ``B``, with these two."""

    @property
    def number(self) -> Tensor:
        """int64 ``[B]``, number of the problem in its run; the noise of actions is tied to it."""

    @property
    def stage(self) -> Tensor:
        """int64 ``[B]``, position of the problem's stage in ``(*env.stages, *env.unseen)``."""


class State(Protocol):
    """What there is in ``B`` episodes: any named tuple of tensors whose first dimension is ``B``, with these three."""

    @property
    def terminated(self) -> Tensor:
        """Bool ``[B]``, whether the episode has ended by itself."""

    @property
    def truncated(self) -> Tensor:
        """Bool ``[B]``, whether it has run into the step limit."""

    @property
    def steps(self) -> Tensor:
        """int64 ``[B]``, actions taken so far."""


@dataclass(frozen=True)
class Episode:
    """One episode as people and programs read it. Environments derive from it to tell more.

    Attributes:
        stage: Name of the problem's stage; None for a problem of no stage.
        problem: The problem, written.
        plan: Names of the actions taken.
        solved: Whether the problem is solved.
    """

    stage: str | None
    problem: str
    plan: list[str]
    solved: bool

    @property
    def story(self) -> str:
        """What happened, in a line."""
        return " ".join(self.plan)

    def as_dict(self) -> dict[str, Any]:
        """All attributes, ready for JSON."""
        return dict(vars(self))

    def __str__(self) -> str:
        return f"{self.problem}: {self.story}, {'right' if self.solved else 'wrong'}"


class Env(ABC):
    """A world. Its methods are pure functions on batches, with no Python loop over problems, on any device.

    Derive from it and name your class: ``--env=mine.Room``. All that is learned, measured and shown elsewhere is
    learned, measured and shown by means of this.

    Attributes:
        stages: Names of the stages that are trained on, easiest first.
        unseen: Names of stages that are tested on only.
        actions: Names of the actions; an action is a number below ``len(actions)``.
        static_shapes: Whether batches of problems must all have one shape, which compiled functions need; else they
            may be cut to what the longest problem of a batch needs.
        runs_foreign_code: Whether it calls functions that are not its own, which might do more than a GPU can replay.
        problems_wait: Whether the device is waited for where problems are made, as where they are drawn until they are
            good: a GPU cannot capture that.
        default_agent: Dotted path of the agent that learns here if no other is named.
    """

    stages: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    actions: tuple[str, ...]
    static_shapes = False
    runs_foreign_code = False
    problems_wait = False
    default_agent = "toolagent_pl.rl.mlp.MLPAgent"

    def check(self) -> None:
        """Refuse options with which nothing can be learned, before anything is.

        Raises:
            ValueError: Names the option.
        """

    @abstractmethod
    def problems(self, number: Tensor, stage: Tensor, seed: int, *, held_out: bool) -> Any:
        """The problems of these numbers, a pure function of the arguments; ``rl.random_numbers`` has the noise.

        Args:
            number: int64 ``[B]``.
            stage: int64 ``[B]``, positions in ``(*stages, *unseen)``.
            seed: From 0 to 2^56 - 1.
            held_out: Draw from the part of all problems that is never drawn without it.
        """

    def size(self, stage: int) -> int | None:
        """How many problems a stage has, where ``enumerated`` gives all of them; else None."""
        return None

    def enumerated(self, number: Tensor, stage: Tensor) -> Any:
        """Problems of stages that have a size, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__}.enumerated")

    @abstractmethod
    def reset(self, problems: Any) -> Any:
        """The state before the first action."""

    @abstractmethod
    def step(self, state: Any, action: Tensor) -> Any:
        """The state after an action; an episode that has ended stays as it is (see ``keep_ended``).

        Args:
            action: int64 ``[B]``; a negative one is padding and takes no step.
        """

    @abstractmethod
    def observe(self, state: Any) -> Observation:
        """What the agent gets to see."""

    @abstractmethod
    def solved(self, state: Any) -> Tensor:
        """Whether the problems are solved, if the episodes are left here; bool ``[B]``."""

    @abstractmethod
    def horizon(self, problems: Any) -> int:
        """Most actions that any of these episodes can take."""

    def reference_length(self, problems: Any) -> Tensor | None:
        """Steps of a good solution, int64 ``[B]``, which the agent's are compared with; None if it is not known."""
        return None

    def action_mask(self, state: Any) -> Tensor | None:
        """Which actions may be taken, bool ``[B, A]``, at least one in each row; None if all may."""
        return None

    def observation_bounds(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest number of fields of ``observe``, by name, for algorithms that ask for them.

        Fields that are not named are taken for any float32.
        """
        return {}

    def metrics(self, rollout: Record) -> dict[str, Tensor]:
        """Curves of training besides those that every environment has, scalars by name, averaged over ranks."""
        return {}

    def read(self, lines: Sequence[str]) -> Any:
        """Problems as people write them, of stage -1, for ``rl.solver.ProblemSolver``.

        Raises:
            ValueError: If one cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")

    def explain(self, observation: Observation, row: int) -> tuple[str, Sequence[str]]:
        """What is seen in a row, and what each action would do there, in words, for the page of ``ProblemSolver``."""
        return "", self.actions

    def episodes(self, rollout: Record) -> Sequence[Episode]:
        """The episodes of a rollout, one by one."""
        columns = (rollout.problems.stage, rollout.problems.number, rollout.visible_actions, rollout.solved)
        return [
            Episode(self.stage_name(stage), f"number {number}", [self.actions[a] for a in plan if a >= 0], solved)
            for stage, number, plan, solved in zip(*(x.tolist() for x in columns), strict=True)
        ]

    def figures(self, rollouts: Sequence[Record]) -> dict[str, Figure]:
        """Pictures of what an agent does, by name, from a rollout for each stage that is trained on."""
        from toolagent_pl.rl.figures import general_figures  # matplotlib takes half a second to load

        names = [str(self.stage_name(int(rollout.problems.stage[0]))) for rollout in rollouts]
        return general_figures(names, self.actions, rollouts)

    @property
    def all_stages(self) -> tuple[str, ...]:
        """Names of all stages, in the order that problems count them by."""
        return (*self.stages, *self.unseen)

    def stage_name(self, stage: int) -> str | None:
        """Name of a stage by its position; None for a problem of no stage."""
        return self.all_stages[stage] if 0 <= stage < len(self.all_stages) else None


def over(state: State) -> Tensor:
    """Whether the episodes have ended, bool ``[B]``."""
    return state.terminated | state.truncated


def keep_ended(before: Any, after: T, action: Tensor) -> T:
    """``after``, but ``before`` where an episode had ended by then or the action is padding."""
    stays = over(before) | action.lt(0)

    def kept(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(stays.view(-1, *[1] * (new.ndim - 1)), old, new)

    return tree_map(kept, after, before)


def execute(env: Env, problems: Any, actions: Tensor) -> list[Any]:
    """All states along given actions.

    Args:
        actions: int64 ``[B, T]``; negative entries are padding.

    Returns:
        ``T + 1`` states, the first of them before any action.
    """
    states = [env.reset(problems)]
    for action in actions.T.contiguous():
        states.append(env.step(states[-1], action))
    return states


def select(tree: T, index: Tensor | slice | int) -> T:
    """The rows at ``index`` of all tensors of a named tuple, or of any other tree of tensors."""
    return tree_map(lambda x: x[index], tree)


class VectorObservation(NamedTuple):
    """The plainest observation: a vector of numbers, float32 ``[B, F]``."""

    vector: Tensor
