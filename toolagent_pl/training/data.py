"""Problems for Lightning: fresh ones to train on, fixed ones to validate on, all of them to test on."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import Env
from toolagent_pl.training.acceleration import can_capture
from toolagent_pl.training.stream import MAX_BATCH, FixedProblems, ProblemStream, Sample

MAX_WORKERS = 256
MAX_EPOCH = 2**31 - 1  # in batches


class StreamLoader:
    """Batches of a ``ProblemStream``; each iteration goes on where the run stands, with the mixture that is set then.

    The module's cursor tells where: a count of batches drawn would be ahead of it whenever workers prefetch.
    """

    def __init__(self, stream: ProblemStream, data: "ProblemDataModule", module: Any) -> None:
        self.stream, self.data, self.module = stream, data, module
        self.loader: Iterable[Any] = stream
        if data.num_workers:
            self.loader = DataLoader(
                stream,
                batch_size=None,  # the stream yields whole batches
                num_workers=data.num_workers,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
            )

    def __len__(self) -> int:
        return self.stream.batches

    def __iter__(self) -> Iterator[Any]:
        self.stream.position, self.stream.mixture = self.module.batches_seen, self.data.mixture
        return iter(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Nothing; with these two, Lightning knows that the loader can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


class ProblemDataModule(LightningDataModule):
    """Problems of an environment's stages.

    Args:
        env: Makes the problems.
        batch_size: Problems in a training batch, over all ranks.
        batches_per_epoch: Training batches in an epoch.
        val_problems: Held-out problems of each stage to validate on.
        test_problems: Held-out problems of each stage to test on, where there are too many to try all of them.
        predict_problems: Held-out problems of each stage to predict.
        eval_batch_size: Most problems in a batch of one rank in validation, test and prediction.
        num_workers: Worker processes that make the training problems; with 0 they are made on the device that trains.
        seed: Seed of the training problems.

    Attributes:
        mixture: Share of each stage in the training problems; a change takes effect with the next epoch's first batch.
        most_tested: Most problems of each stage to test on, by a sample where there are more; None for no limit.
    """

    most_tested: int | None = None

    def __init__(
        self,
        env: Env,
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
        check_range(at_least=0, at_most=MAX_WORKERS, num_workers=num_workers)
        check_range(at_least=1, at_most=MAX_EPOCH, batches_per_epoch=batches_per_epoch)
        sizes = {"batch_size": batch_size, "val_problems": val_problems, "test_problems": test_problems}
        sizes |= {"predict_problems": predict_problems, "eval_batch_size": eval_batch_size}
        check_range(at_least=1, at_most=MAX_BATCH, **sizes)
        self.env, self.batch_size, self.batches_per_epoch = env, batch_size, batches_per_epoch
        self.val_problems, self.test_problems, self.predict_problems = val_problems, test_problems, predict_problems
        self.eval_batch_size, self.num_workers, self.seed = eval_batch_size, num_workers, seed
        self.mixture: Sequence[float] = [1.0 / len(env.stages)] * len(env.stages)

    def __str__(self) -> str:  # Lightning's looks at the loaders, which a trainer makes
        return f"{type(self).__name__}({type(self.env).__name__}, stages={list(self.env.stages)})"

    def _place(self) -> dict[str, Any]:
        """Rank, number of ranks, and the device that batches are used on."""
        if self.trainer is None:
            return {}
        device = self.trainer.strategy.root_device
        return {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size, "device": device}

    def check_split(self, ranks: int) -> None:
        """Raise a ValueError for a number of ranks that cannot share a batch evenly."""
        if self.batch_size % ranks:
            got = f"got {self.batch_size}, expected a multiple of {ranks}, the number of ranks"
            raise ValueError(f"batch_size: {got}")

    def train_dataloader(self) -> StreamLoader:
        """Fresh problems."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        place = self._place()
        self.check_split(place["ranks"])
        if self.num_workers:
            place["device"] = "cpu"
        elif can_capture(place["device"]):
            place["replay"] = module.acceleration.may_capture and not self.env.problems_wait
        stream = ProblemStream(self.env, self.seed, self.batch_size, self.batches_per_epoch, **place)
        return StreamLoader(stream, self, module)

    def state_dict(self) -> dict[str, Any]:
        """What decides which problems a run sees, at a given number of steps."""
        return {option: getattr(self, option) for option in ("seed", "batch_size", "batches_per_epoch")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise a ValueError if training that goes on would see other problems than it would have seen."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        for option, now in self.state_dict().items():
            if now != state_dict.get(option):
                raise ValueError(f"{option}: got {now}, expected {state_dict.get(option)} as in the checkpoint")

    def _fixed(self, stages: Sequence[str], sample: Sample, per_stage: int, **options: Any) -> FixedProblems:
        options |= self._place()
        return FixedProblems(self.env, len(stages), sample, per_stage, self.eval_batch_size, **options)

    def val_dataloader(self) -> FixedProblems:
        """A fixed sample of every stage that is trained on."""
        return self._fixed(self.env.stages, Sample.VALIDATION, self.val_problems, mixed=True)

    def test_dataloader(self) -> FixedProblems:
        """Every problem of the stages that can be enumerated, a fixed sample of the others, unseen ones among them."""
        return self._fixed(self.env.all_stages, Sample.TEST, self.test_problems, whole=True, most=self.most_tested)

    def predict_dataloader(self) -> FixedProblems:
        """A fixed sample of every stage that is trained on."""
        return self._fixed(self.env.stages, Sample.PREDICT, self.predict_problems)
