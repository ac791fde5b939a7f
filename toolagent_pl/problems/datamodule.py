"""Problems for Lightning: fresh ones to train on, fixed ones to validate on, all of them to test on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from toolagent_pl.graphs import can_record
from toolagent_pl.problems.batch import Problems
from toolagent_pl.problems.stages import Stage, Stages
from toolagent_pl.problems.stream import FixedProblems, ProblemStream
from toolagent_pl.randomness import Purpose
from toolagent_pl.tools import find_tools

MOST_WORKERS = 256


class StreamLoader:
    """Batches of a ``ProblemStream``; each iteration goes on where the run stands.

    The module's cursor is the only record of the position. A count of batches drawn would be ahead of it whenever
    workers prefetch.
    """

    def __init__(self, stream: ProblemStream, num_workers: int, position: Callable[[], int]) -> None:
        self.stream = stream
        self.position = position
        self.loader: Iterable[Problems] = stream
        if num_workers:
            self.loader = DataLoader(
                stream,
                batch_size=None,  # the stream yields whole batches
                num_workers=num_workers,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
            )

    def __len__(self) -> int:
        return self.stream.batches

    def __iter__(self) -> Iterator[Problems]:
        self.stream.position = self.position()
        return iter(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: with this, Lightning knows that the loader can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the position follows from the module's cursor."""


class ProblemDataModule(LightningDataModule):
    """Synthetic problems of a list of stages.

    Args:
        stages: Names, or stages of your own with a pattern or a number of operators; easiest first.
        unseen: Stages to be tested on, and never trained on.
        tools: What expressions are made of: MUL, ADD, SUB, or paths of tools of your own.
        batch_size: Problems in a training batch, over all ranks.
        batches_per_epoch: Training batches in an epoch.
        val_problems: Held-out problems of each stage to validate on.
        test_problems: Held-out problems of each stage to test on, where there are too many to try all of them.
        predict_problems: Held-out problems of each stage to predict.
        eval_batch_size: Most problems in a batch of one rank in validation, test and prediction.
        num_workers: Worker processes that make the training problems; with 0 they are made on the device
            that trains.
        seed: Seed of the training problems.

    Attributes:
        most_tested: Most problems of each stage to test on, by a sample where there are more; None for no limit.

    Raises:
        ValueError: If a stage is unknown or a number is out of range.
    """

    most_tested: int | None = None

    def __init__(
        self,
        stages: Sequence[str | Stage] = ("T0", "T1", "T2"),
        unseen: Sequence[str | Stage] = (),
        tools: Sequence[str] = ("MUL", "ADD", "SUB"),
        batch_size: int = 512,
        batches_per_epoch: int = 10,
        val_problems: int = 1000,
        test_problems: int = 10_000,
        predict_problems: int = 100,
        eval_batch_size: int = 4096,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        found = find_tools(tools)
        self.stages = Stages(stages, found)
        self.tested_stages = Stages([*stages, *unseen], found)
        if not 0 <= num_workers <= MOST_WORKERS:
            raise ValueError(f"data.num_workers: got {num_workers}, expected at least 0 and at most {MOST_WORKERS}")
        self.batch_size, self.batches_per_epoch = batch_size, batches_per_epoch
        self.val_problems, self.test_problems, self.predict_problems = val_problems, test_problems, predict_problems
        self.eval_batch_size, self.num_workers, self.seed = eval_batch_size, num_workers, seed
        self._mixture = [1.0 / len(self.stages)] * len(self.stages)
        self._stream = self._new_stream()  # validates the numbers, before any trainer is there
        self.val_dataloader(), self.test_dataloader(), self.predict_dataloader()

    @property
    def mixture(self) -> list[float]:
        """Share of each stage in the training problems; a change takes effect with the next epoch's first batch."""
        return self._mixture

    @mixture.setter
    def mixture(self, shares: Sequence[float]) -> None:
        self._mixture = list(shares)
        self._stream.mixture = self._mixture

    def _place(self) -> tuple[int, int, torch.device | str]:
        """Rank, number of ranks, and the device that batches are used on."""
        if self.trainer is None:
            return 0, 1, "cpu"
        return self.trainer.global_rank, self.trainer.world_size, self.trainer.strategy.root_device

    def _new_stream(self) -> ProblemStream:
        rank, ranks, device = self._place()
        device = device if self.num_workers == 0 else "cpu"
        module: Any = self.trainer and self.trainer.lightning_module
        replay = module is not None and can_record(torch.device(device)) and module.may_replay
        stream = ProblemStream(
            self.stages, self.seed, self.batch_size, self.batches_per_epoch, rank, ranks, device, replay
        )
        stream.mixture = self._mixture
        return stream

    def _fixed(
        self,
        stages: Stages,
        purpose: Purpose,
        per_stage: int,
        whole: bool = False,
        most: int | None = None,
        mixed: bool = False,
    ) -> FixedProblems:
        return FixedProblems(stages, purpose, per_stage, self.eval_batch_size, whole, *self._place(), most, mixed)

    def check_split(self, ranks: int) -> None:
        """Refuse a number of ranks that cannot share a batch evenly.

        Raises:
            ValueError: If they cannot.
        """
        ProblemStream(self.stages, self.seed, self.batch_size, self.batches_per_epoch, ranks=ranks)

    def setup(self, stage: str) -> None:
        """Split the work: the ranks are known from here on."""
        self._stream = self._new_stream()

    def train_dataloader(self) -> StreamLoader:
        """Fresh problems."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        return StreamLoader(self._stream, self.num_workers, lambda: module.batches_seen)

    def state_dict(self) -> dict[str, Any]:
        """What decides which problems a run sees, at a given number of steps."""
        return {option: getattr(self, option) for option in ("seed", "batch_size", "batches_per_epoch")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check, before training goes on, that it will see the problems that it would have seen.

        Raises:
            ValueError: If it would not.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        for option, now in self.state_dict().items():
            if now != state_dict.get(option):
                name = "seed_everything" if option == "seed" else f"data.{option}"
                raise ValueError(f"{name}: got {now}, expected {state_dict.get(option)} as in the checkpoint")

    def val_dataloader(self) -> FixedProblems:
        """A fixed sample of every stage that is trained on."""
        return self._fixed(self.stages, Purpose.VALIDATION, self.val_problems, mixed=True)

    def test_dataloader(self) -> FixedProblems:
        """Every problem of the stages that can be enumerated, a fixed sample of the others, unseen ones among them."""
        return self._fixed(self.tested_stages, Purpose.TEST, self.test_problems, whole=True, most=self.most_tested)

    def predict_dataloader(self) -> FixedProblems:
        """A fixed sample of every stage that is trained on."""
        return self._fixed(self.stages, Purpose.PREDICT, self.predict_problems)
