"""What watches a run: that its numbers are numbers, that its ranks agree, and how fast it is."""

import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from toolagent_pl.training.checkpoint_callback import Checkpoint
from toolagent_pl.training.metrics import log_metrics
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.schedule import Annealing, CurriculumCallback

GEMM_SIZES = {"cpu": 512, "cuda": 8192}  # rows of matrices whose product takes a device to its peak
GEMM_REPETITIONS = 3
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}  # by the first part of a precision's name

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite."""


class StopOnNonFinite(Callback):
    """Stops a run with a NaN or infinite gradient, and keeps the batch.

    A loss that is not finite gives such gradients. On a CPU the look at them comes before they reach the weights. A GPU
    would have to be waited for: there it comes when metrics are logged, and before a checkpoint is written, so that
    every checkpoint is good. With 16-mixed, gradients overflow now and then by design; there the run is stopped when
    they still do after all scaling is taken back.

    Attributes:
        folder: Where the batch is kept; None for the folder that the logger writes into.
    """

    folder: Path | None = None

    def __init__(self) -> None:
        self._batch: Any = None  # under way
        self._updates: list[tuple[int, Any, Tensor]] = []  # not looked at: batches seen before, problems, norm

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on a folder: ranks are asked for it, which cannot be done once one of them fails."""
        self._folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any) -> None:
        """Keep the batch until its gradients were looked at."""
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Look at the gradients, or note them; a ``NonFiniteError`` names step, batch and last checkpoint."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of the loss, in 16-mixed
        if scaler is not None and scaler.get_scale() > 1:
            return  # it leaves out updates whose gradients overflow, and halves its scale
        norm = pl_module.gradient_norm(optimizer)
        self._updates.append((pl_module.batches_seen, self._batch, norm))
        if norm.device.type == "cpu" or pl_module.is_logging_batch():
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not let bad weights be saved."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        updates, self._updates = self._updates, []
        if not updates or bool(torch.isfinite(torch.stack([norm for _, _, norm in updates])).all()):
            return
        step, batch, norm = next(update for update in updates if not torch.isfinite(update[2]))
        saved = [one.last_path for one in trainer.checkpoint_callbacks if isinstance(one, Checkpoint)]
        last = next((path for path in saved if path and path.exists()), "none was written yet")
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"not_finite_step{step}.rank{trainer.global_rank}.pt"
        torch.save({"step": step, "batch": batch._asdict()}, file)
        raise NonFiniteError(
            f"step {step}: loss or gradient is not finite (gradient norm {float(norm)}); the weights "
            f"of the steps before are good, last checkpoint: {last}; the batch is in {file}"
        )


class RanksDisagreeError(RuntimeError):
    """Ranks that should be equal are not."""


def checksum(weights: Iterable[Tensor]) -> int:
    """Sum of the bit patterns of all weights: equal weights have equal sums, in every order."""
    patterns = [weight.detach().contiguous().view(INTEGERS[weight.element_size()]) for weight in weights]
    return int(torch.stack([pattern.sum(dtype=torch.int64) for pattern in patterns]).sum()) if patterns else 0


def _state(trainer: Trainer, module: ToolAgent) -> dict[str, Any]:
    """What must be equal on all ranks, by name."""
    state: dict[str, Any] = {"weights": checksum(module.parameters()), "step": module.batches_seen}
    state["weight of the entropy"] = float(module.ent_coef)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set where Lightning connects them
        if isinstance(callback, CurriculumCallback):
            state["curriculum"] = callback.state_dict()
        elif isinstance(callback, Annealing):
            state["annealing"] = callback.state_dict() | {"averages": checksum(callback.averages)}
    return state


class RanksAgree(Callback):
    """Compares weights, step and curriculum over all ranks, at the start and after each validation."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare: ranks without a common file system could have resumed from different checkpoints.

        A curriculum that differs would not show in the weights: the gradients are averaged.

        Raises:
            RanksDisagreeError: On all ranks, if one differs from rank 0; names it, and what differs.
        """
        if trainer.world_size == 1:
            return
        states: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(states, _state(trainer, pl_module))
        first = states[0]
        if ranks := [str(rank) for rank, state in enumerate(states) if state != first]:
            differing = [name for name in first if any(state[name] != first[name] for state in states)]
            raise RanksDisagreeError(
                f"step {pl_module.batches_seen}: {' and '.join(differing)} of rank {', '.join(ranks)} differ "
                "from rank 0; the run is stopped, since its ranks no longer train one model"
            )

    on_validation_end = on_train_start


class Throughput(Callback):
    """Logs the speed of training since it was last logged; validation, and what else comes between, is left out.

    - ``throughput/tokens_per_second``: actions taken a second, over all ranks.
    - ``throughput/episodes_per_second``: episodes a second, over all ranks.
    - ``throughput/mfu``: model FLOP utilisation, the FLOP that training on those actions takes at least, over the
      FLOP that the devices could have done. Left out where the agent does not know it.

    (Lightning's ``ThroughputMonitor`` counts what is in a batch, not what came of it, and waits for a GPU after each.)

    Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, appendix B, and nanoGPT's
    ``estimate_mfu``: 6 FLOP for each weight and token, 2 forward and 4 backward.
    """

    def __init__(self) -> None:
        self._since = 0.0  # when the time that counts began
        self._seconds = 0.0  # before that
        self._problems = 0
        self._actions: Any = 0  # on the device
        self._peak: float | None = None  # FLOP/s of a rank

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time counts from here."""
        self._since = time.perf_counter()

    on_train_start = on_validation_end = on_train_epoch_start  # a run that goes on in an epoch does not begin it

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count an update, and log where Lightning does."""
        self._actions = self._actions + pl_module.actions_taken
        self._problems += len(batch.number) * pl_module.algorithm.samples_per_problem
        log = pl_module.batches_seen % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if log:
            counts = torch.stack([self._actions, torch.full_like(self._actions, self._problems)]).double()
            actions, problems = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # waits for the device
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        if not log:
            return
        rate = actions / self._seconds
        metrics = {"throughput/tokens_per_second": rate}
        metrics["throughput/episodes_per_second"] = problems / self._seconds
        if flop := pl_module.agent.flop_per_token():
            if self._peak is None:
                self._peak = peak_flops(pl_module.device, str(trainer.precision))
            metrics["throughput/mfu"] = rate * flop / (self._peak * trainer.world_size)
        log_metrics(trainer, metrics, pl_module.batches_seen - 1)
        self._seconds, self._problems, self._actions = 0.0, 0, 0
        self._since = time.perf_counter()


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that a device can do at most, by its data sheet, or else by the best of a few products of two matrices."""
    dtype = DTYPES.get(precision.partition("-")[0], torch.float32)
    if device.type == "cuda":
        with warnings.catch_warnings():  # of a card that Lightning does not know: that is measured
            warnings.filterwarnings("ignore", ".*FLOPs not found")
            if known := get_available_flops(device, dtype):
                return float(known)
    size, best = GEMM_SIZES[device.type], float("inf")
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(GEMM_REPETITIONS):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
