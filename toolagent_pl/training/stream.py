"""Streams of problems that do not depend on how the work is split.

Problem ``i`` of a run is a pure function of (seed, i) and of the mixture of stages at that time. Batch ``k`` of a
run consists of problems ``k * batch_size`` and following; ranks take equal parts of it, workers take turns in
whole batches, and a resumed run asks for the next ``k``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from toolagent_pl.rl.env import Env
from toolagent_pl.rl.random_numbers import Purpose, random_uniform
from toolagent_pl.training.acceleration import GraphedCallable

MAX_BATCH = 2**24


@dataclass(eq=False)
class ProblemStream(IterableDataset[Any]):
    """Endless fresh problems, a batch at a time; one iteration yields one epoch of them.

    Position and mixture lie in shared memory, so that worker processes see what the main process sets. Problems that
    are held out are never drawn.
    """

    env: Env
    seed: int  # of the run
    batch_size: int  # problems, over all ranks
    batches: int  # in an epoch
    rank: int = 0
    ranks: int = 1  # that share each batch
    device: torch.device | str = "cpu"  # where the problems are made
    replay: bool = False  # whether a GPU captures how it makes a batch, and replays it

    def __post_init__(self) -> None:
        self._draw: Callable[[Tensor, Tensor], Any] = GraphedCallable(self._drawn) if self.replay else self._drawn
        self._position = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._mixture = torch.full((len(self.env.stages),), 1.0 / len(self.env.stages)).share_memory_()

    @property
    def position(self) -> int:
        """Number of the next batch of the run."""
        return int(self._position)

    @position.setter
    def position(self, batch: int) -> None:
        self._position.fill_(batch)

    @property
    def mixture(self) -> list[float]:
        """Share of each stage; from the next iteration on also in worker processes."""
        return self._mixture.tolist()

    @mixture.setter
    def mixture(self, shares: Sequence[float]) -> None:
        weights = torch.tensor(shares, dtype=torch.float32)
        self._mixture.copy_(weights / weights.sum())

    def batch(self, position: int) -> Any:
        """This rank's part of batch ``position`` of the run."""
        share = self.batch_size // self.ranks
        first = position * self.batch_size + self.rank * share
        number = torch.arange(first, first + share, device=self.device)
        uniform, stage = random_uniform(self.seed, Purpose.STAGE, number), torch.zeros_like(number)
        shares = self._mixture.tolist()  # numbers: to copy a tensor, a GPU is waited for
        last = max(i for i, share in enumerate(shares) if share)  # what comes behind it is not drawn, by no rounding
        for bound in self._mixture.cumsum(0)[:last].tolist():
            stage += uniform > bound
        return self._draw(number, stage)

    def _drawn(self, number: Tensor, stage: Tensor) -> Any:
        return self.env.problems(number, stage, self.seed, held_out=False)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        offset, step = (worker.id, worker.num_workers) if worker else (0, 1)
        first = self.position
        end = first - first % self.batches + self.batches  # an iteration in mid-epoch yields the rest of it
        for position in range(first + offset, end, step):
            yield self.batch(position)


class Sample(IntEnum):
    """Which held-out problems: seeds that no run has, so that samples are the same for all runs."""

    VALIDATION = 2**40 + 1
    TEST = 2**40 + 2
    PREDICT = 2**40 + 3


@dataclass(eq=False)
class FixedProblems:
    """Batches of the same problems each time, stage after stage: all of a stage, or a sample of those held out.

    Args:
        stages: How many stages of the environment, the first ones, problems are taken from.
        per_stage: Most problems of each stage.
        batch_size: Most problems in a batch of one rank; the ranks share the problems, none twice.
        whole: Take all problems of stages small enough to be enumerated, those that are trained on among them.
        most: With ``whole``, problems of a stage above which a sample is taken; None for as many as can be enumerated.
        mixed: Put samples of several stages into a batch: fewer and fuller ones, for what is done again and again.
    """

    env: Env
    stages: int
    sample: Sample
    per_stage: int
    batch_size: int
    whole: bool = False
    rank: int = 0
    ranks: int = 1
    device: torch.device | str = "cpu"
    most: int | None = None
    mixed: bool = False
    _kept: list[Any] = field(default_factory=list, init=False)  # batches of what is done again and again

    def _all_of(self, stage: int) -> int | None:
        """How many problems a stage has, where all of them are taken."""
        size = self.env.size(stage) if self.whole else None
        return size if size and (self.most is None or size <= self.most) else None

    def _parts(self) -> list[Tensor]:
        """Numbers and stages of the problems, int64 ``[2, n]``; no batch has problems of two parts."""
        parts = []
        for stage in range(self.stages):
            size = self._all_of(stage) or min(self.per_stage, self.most or self.per_stage)
            number = torch.arange(self.rank, max(self.rank, size), self.ranks, device=self.device)
            parts.append(torch.stack([number, torch.full_like(number, stage)]))
        return [torch.cat(parts, 1)] if self.mixed else parts

    def __len__(self) -> int:
        return sum(-(-part.shape[1] // self.batch_size) for part in self._parts())

    def __iter__(self) -> Iterator[Any]:
        if not self.mixed:
            return self._batches()
        self._kept = self._kept or list(self._batches())
        return iter(self._kept)

    def _batches(self) -> Iterator[Any]:
        for stage, part in enumerate(self._parts()):
            whole = not self.mixed and self._all_of(stage)
            for number, position in part.split(self.batch_size, 1) if part.shape[1] else ():
                if whole:
                    yield self.env.enumerated(number, position)
                else:
                    yield self.env.problems(number, position, self.sample, held_out=True)
