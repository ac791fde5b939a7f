"""Streams of problems that do not depend on how the work is split.

Problem ``i`` of a run is a pure function of (seed, i) and of the mixture of stages at that time. Batch ``k`` of a
run consists of problems ``k * batch_size`` and following; ranks take equal parts of it, workers take turns in
whole batches, and a resumed run asks for the next ``k``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from toolagent_pl.problems.batch import Problems
from toolagent_pl.problems.stages import Ladder
from toolagent_pl.randomness import Purpose, random_below, random_uniform

LARGEST_BATCH = 2**24
LARGEST_EPOCH = 2**31 - 1  # in batches


def _spread(size: int) -> int:
    """A step through ``range(size)``, a power of ten, that hits every number once and jumps about evenly.

    The golden section of the range, made to share no factor with ten.
    """
    step = int(size * 0.618033988749895) | 1
    return step if step % 5 else step + 2


class ProblemStream(IterableDataset[Problems]):
    """Endless fresh problems, a batch at a time; one iteration yields one epoch of them.

    Position and mixture lie in shared memory, so that worker processes see what the main process sets.

    Args:
        ladder: Stages to draw from.
        seed: Seed of the run.
        batch_size: Problems in a batch, over all ranks.
        batches: Batches in an epoch.
        rank: This rank, from 0.
        ranks: How many ranks share each batch.
        device: Where the problems are made.

    Raises:
        ValueError: If a size is not positive, or the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        ladder: Ladder,
        seed: int,
        batch_size: int,
        batches: int,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or batch_size % ranks:
            raise ValueError(
                f"data.batch_size: got {batch_size}, expected a positive multiple of the number of ranks, {ranks}"
            )
        if batch_size > LARGEST_BATCH:
            raise ValueError(f"data.batch_size: got {batch_size}, expected at most {LARGEST_BATCH}")
        if not 1 <= batches <= LARGEST_EPOCH:
            raise ValueError(f"data.batches_per_epoch: got {batches}, expected at least 1 and at most {LARGEST_EPOCH}")
        self.ladder = ladder.to(device)
        self.seed, self.batch_size, self.batches = seed, batch_size, batches
        self.rank, self.ranks, self.device = rank, ranks, torch.device(device)
        self._position = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._mixture = torch.full((len(ladder),), 1.0 / len(ladder)).share_memory_()

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
        if len(weights) != len(self.ladder) or bool((weights < 0).any()) or not 0 < float(weights.sum()) < float("inf"):
            raise ValueError(f"mixture: got {shares}, expected {len(self.ladder)} shares, none of them negative")
        self._mixture.copy_(weights / weights.sum())

    def batch(self, position: int) -> Problems:
        """This rank's part of batch ``position`` of the run."""
        share = self.batch_size // self.ranks
        first = position * self.batch_size + self.rank * share
        number = torch.arange(first, first + share, device=self.device)
        uniform, stage = random_uniform(self.seed, Purpose.STAGE, number), torch.zeros_like(number)
        for share in self._mixture.cumsum(0)[:-1].tolist():  # as numbers: to copy a tensor, a GPU is waited for
            stage += uniform > share
        index = random_below(self.seed, Purpose.PROBLEM, number, self.ladder.sizes(stage))
        return self.ladder.problems(number, stage, index)

    def __iter__(self) -> Iterator[Problems]:
        worker = get_worker_info()
        offset, step = (worker.id, worker.num_workers) if worker else (0, 1)
        first = self.position
        end = first - first % self.batches + self.batches  # an iteration in mid-epoch yields the rest of it
        for position in range(first + offset, end, step):
            yield self.batch(position)


class FixedProblems:
    """Batches of the same problems each time, stage after stage; whole stages, or an even sample of each.

    Args:
        ladder: Stages to take.
        per_stage: Most problems of each stage, spread evenly over it; None for all of them.
        batch_size: Most problems in a batch of one rank. A batch never mixes stages.
        rank: This rank, from 0; the ranks share the problems, none twice.
        ranks: How many ranks there are.
        device: Where the problems are made.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        ladder: Ladder,
        per_stage: int | None,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= batch_size <= LARGEST_BATCH:
            raise ValueError(f"data.eval_batch_size: got {batch_size}, expected at least 1 and at most {LARGEST_BATCH}")
        if per_stage is not None and per_stage < 1:
            raise ValueError(f"data.val_problems, data.predict_problems: got {per_stage}, expected at least 1")
        self.ladder, self.device = ladder.to(device), torch.device(device)
        self.per_stage, self.batch_size = per_stage, batch_size
        self.rank, self.ranks = rank, ranks

    def _indices(self, stage: int) -> Tensor:
        size = self.ladder.stages[stage].size
        wanted = size if self.per_stage is None else min(self.per_stage, size)
        mine = torch.arange(self.rank, max(self.rank, wanted), self.ranks, device=self.device)
        return mine if wanted == size else (size // 3 + mine * _spread(size)) % size

    def __len__(self) -> int:
        return sum(-(-len(self._indices(stage)) // self.batch_size) for stage in range(len(self.ladder)))

    def __iter__(self) -> Iterator[Problems]:
        for stage in range(len(self.ladder)):
            for index in self._indices(stage).split(self.batch_size):
                if len(index):
                    yield self.ladder.problems(index, torch.full_like(index, stage), index)
