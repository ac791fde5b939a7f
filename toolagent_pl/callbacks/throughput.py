"""How fast a run is: action tokens and problems a second, and the share of the hardware's peak that is used."""

import time
import warnings

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from toolagent_pl.metrics import log_metrics
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Problems

GEMM_SIZE = 512  # large enough for a CPU to reach its peak, and done in milliseconds
GEMM_REPETITIONS = 5


class Throughput(Callback):
    """Logs the speed of training since it was last logged; validation, and what else comes between, is left out.

    - ``throughput/tokens_per_second``: actions taken a second, over all ranks.
    - ``throughput/episodes_per_second``: episodes a second, over all ranks.
    - ``throughput/mfu``: model FLOP utilisation, the FLOP that training on those actions takes at least, over the
      FLOP that the devices could have done. Their peak is that of the data sheet where Lightning knows it (GPUs),
      else that of a matrix product, measured once.

    Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, appendix B, and nanoGPT's
    ``estimate_mfu``: 6 FLOP for each weight and token, 2 forward and 4 backward.
    """

    def __init__(self) -> None:
        self._since = 0.0  # when the time that counts began
        self._seconds = 0.0  # before that
        self._problems = 0
        self._actions: Tensor | int = 0  # on the device
        self._peak: float | None = None  # FLOP/s of a rank

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time counts from here."""
        self._since = time.perf_counter()

    on_train_start = on_validation_end = on_train_epoch_start  # a run that goes on in an epoch does not begin it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Problems, batch_idx: int
    ) -> None:
        """Count an update, and log where Lightning does."""
        assert isinstance(pl_module, ToolAgent)
        self._actions = self._actions + pl_module.actions_taken
        self._problems += batch.size * pl_module.algorithm.samples_per_problem
        log = pl_module.batches_seen % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if log:
            counts = torch.stack([self._actions, torch.full_like(self._actions, self._problems)]).double()
            actions, problems = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # waits for the device
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        if not log:
            return
        peak = self._peak_flops(trainer, pl_module) * trainer.world_size
        rate = actions / self._seconds
        log_metrics(
            trainer,
            {
                "throughput/tokens_per_second": rate,
                "throughput/episodes_per_second": problems / self._seconds,
                "throughput/mfu": rate * pl_module.agent.flop_per_token() / peak,
            },
            pl_module.batches_seen - 1,
        )
        self._seconds, self._problems, self._actions = 0.0, 0, 0
        self._since = time.perf_counter()

    def _peak_flops(self, trainer: Trainer, pl_module: LightningModule) -> float:
        if self._peak is None:
            kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
            kind = kinds.get(str(trainer.precision), torch.float32)
            known = None
            if pl_module.device.type == "cuda":
                with warnings.catch_warnings():  # of a card that it does not know: that is measured
                    warnings.filterwarnings("ignore", ".*FLOPs not found")
                    known = get_available_flops(pl_module.device, kind)
            self._peak = float(known) if known else measured_flops(pl_module.device, kind)
        return self._peak


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices, the best of a few."""
    left, right = (torch.rand(GEMM_SIZE, GEMM_SIZE, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(GEMM_REPETITIONS):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * GEMM_SIZE**3 / best
