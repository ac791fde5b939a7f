"""A stopwatch for updates, in a loop or as a callback of ``fit``."""

import time
from typing import Any, ClassVar, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.environment import busy_cpu_seconds
from toolagent_pl.callbacks.agreement import checksum


class Reading(NamedTuple):
    """Seconds of time, of CPU time of this process, and of CPU time of the whole machine."""

    wall: float
    own: float
    busy: float | None

    @classmethod
    def now(cls) -> "Reading":
        """Look at all clocks."""
        return cls(time.perf_counter(), time.process_time(), busy_cpu_seconds())

    def until(self, end: "Reading", updates: int) -> dict[str, float]:
        """``seconds`` of one update, and ``others``, how many CPUs were busy with something else."""
        wall, others = end.wall - self.wall, 0.0
        if self.busy is not None and end.busy is not None:
            others = max(0.0, (end.busy - self.busy - (end.own - self.own)) / wall)
        return {"seconds": wall / updates, "others": others}


class Stopwatch(Callback):
    """Times training batches, each from its start to the start of the next: all that happens in between counts.

    Args:
        warmup: Batches before the first that is timed.
        updates: Batches that are timed.

    Attributes:
        results: Of all stopwatches of this process: what ``Reading.until`` says, and a checksum of the weights.
    """

    results: ClassVar[list[dict[str, float]]] = []

    def __init__(self, warmup: int, updates: int) -> None:
        self.warmup, self.updates = warmup, updates

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start or stop."""
        if batch_idx == self.warmup:
            self._start = Reading.now()
        elif batch_idx == self.warmup + self.updates:
            result = self._start.until(Reading.now(), self.updates)
            self.results.append(result | {"weights": int(checksum(pl_module))})
