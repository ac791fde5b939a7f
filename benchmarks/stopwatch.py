"""A stopwatch for ``fit`` and a bare loop that take turns."""

import time
from typing import Any, ClassVar, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.bare import BareLoop
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

    def others(self, end: "Reading") -> float:
        """How many CPUs were busy with something else until then; 0 where that cannot be told."""
        if self.busy is None or end.busy is None:
            return 0.0
        return max(0.0, (end.busy - self.busy - (end.own - self.own)) / (end.wall - self.wall))


class InTurns(Callback):
    """Times updates of ``fit``, and after every few of them as many of a bare loop.

    A machine that is slower for a while is then slower for both. An update of ``fit`` is timed from the start of its
    batch to the start of the next: all that happens in between counts.

    Args:
        batch: Problems in an update.
        warmup: Updates of each before the first that is timed.
        updates: Updates of each that are timed, a multiple of ``turn``.
        turn: Updates in a turn.

    Attributes:
        results: Of all stopwatches of this process: seconds of each turn (``fit``, ``bare``), how many CPUs were
            busy with something else (``others``), and whether both have the same weights in the end
            (``same_weights``).
    """

    results: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, batch: int, warmup: int, updates: int, turn: int = 10) -> None:
        self.batch, self.warmup, self.updates, self.turn = batch, warmup, updates, turn
        self.fit: list[float] = []
        self.bare: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warm the bare loop up."""
        self.loop = BareLoop(self.batch)
        for _ in range(self.warmup):
            self.loop.update()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the other one have its turn."""
        timed = batch_idx - self.warmup
        if timed < 0 or timed % self.turn:
            return
        now = time.perf_counter()
        if timed == 0:
            self.begun = Reading.now()
        else:
            self.fit.append(now - self.since)
            for _ in range(self.turn):
                self.loop.update()
            self.bare.append(time.perf_counter() - now)
        if timed == self.updates:
            self.results.append(
                {
                    "fit": self.fit,
                    "bare": self.bare,
                    "others": self.begun.others(Reading.now()),
                    "same_weights": bool(checksum(pl_module) == checksum(self.loop.module)),
                }
            )
        self.since = time.perf_counter()
