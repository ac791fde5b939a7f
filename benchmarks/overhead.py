"""What Lightning and logging cost: ``fit`` beside a bare loop of the same updates.

Run ``python -m benchmarks.overhead``. ``fit`` runs as it does from the command line, with its callbacks, TensorBoard
every 10 batches and a checkpoint every 50; validation and test come after what is timed. The loop has nothing but the
problems and the updates. They take turns in one process, and end with the same weights. What follows ``--`` is handed
on to ``fit``.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.bare import BareLoop
from benchmarks.environment import DOCUMENT, arguments_of, run_fit, started, warn_of_others, write_json
from toolagent_pl.training.monitors import checksum

WANTED = 0.08
TURN, WARMUP = 10, 20  # updates


class InTurns(Callback):
    """Times updates of ``fit``, and after every few of them as many of a bare loop.

    A machine that is slower for a while is then slower for both. An update of ``fit`` is timed from the start of its
    batch to the start of the next: all that happens in between counts.

    Args:
        turns: How often each is timed.
    """

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.fit: list[float] = []
        self.bare: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the module, and warm the copy up."""
        pl_module._trainer = None  # it cannot be copied
        module: Any = copy.deepcopy(pl_module)
        pl_module.trainer = trainer
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.loop = BareLoop(module, data.batch_size, pl_module.device, data.mixture)
        for _ in range(WARMUP):
            self.loop.update()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the other one have its turn."""
        timed = batch_idx - WARMUP
        if timed < 0 or timed % TURN:
            return
        now = time.perf_counter()
        if timed:
            self.fit.append((now - self.since) / TURN)
            for _ in range(TURN):
                self.loop.update()
            self.bare.append((time.perf_counter() - now) / TURN)
        if timed == self.turns * TURN:
            times = {"fit": self.fit, "bare": self.bare}
            same = bool(checksum(pl_module.parameters()) == checksum(self.loop.module.parameters()))
            Path(DOCUMENT).write_text(json.dumps(times | {"same_weights": same}))
        self.since = time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status, 1 if the two did not do the same work."""
    options = _parser().parse_args(arguments)
    console, facts = started()
    results: list[dict[str, Any]] = []
    for _ in range(options.repetitions):
        turns = {"turns": options.turns}
        done, times = run_fit(_words(options), "benchmarks.overhead.InTurns", turns, options.patience, options.threads)
        if done.error:
            console.print(f"failed: {done.error}", markup=False)
            return 1
        results.append(times | {"others": done.others})
    overheads = [statistics.mean(result["fit"]) / statistics.mean(result["bare"]) - 1 for result in results]
    for name in ("fit", "bare"):
        each = [1e3 * statistics.mean(result[name]) for result in results]
        console.print(f"{name}: {statistics.median(each):.2f} ms an update ({min(each):.2f} to {max(each):.2f})")
    overhead = statistics.median(overheads)
    console.print(
        f"Lightning, logs and checkpoints cost {overhead:.1%} with batches of {options.batch:,} "
        f"({min(overheads):.1%} to {max(overheads):.1%}), wanted less than {WANTED:.0%}"
    )
    same = all(result["same_weights"] for result in results)
    if not same:
        console.print("[red]The two ended with different weights: they did not do the same work.[/]")
    warn_of_others(console, [result["others"] for result in results])
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    measured = {"overhead": overhead, "overheads": overheads, "results": results}
    write_json(console, options.output, {**facts, "settings": settings, **measured})
    return 0 if same else 1


def _words(options: Any) -> list[str]:
    """Options of one long epoch."""
    return [
        "--trainer.accelerator=cpu",
        *options.fit_options,
        "--trainer.max_epochs=1",
        f"--data.batches_per_epoch={WARMUP + options.turns * TURN + 1}",
        f"--data.batch_size={options.batch}",
    ]


def _parser() -> Any:
    parser = arguments_of(__doc__, "overhead.json")
    parser.add_argument("--batch", type=int, default=1024, help="problems in an update")
    parser.add_argument("--turns", type=int, default=20, help="turns of 10 updates that are timed")
    parser.add_argument("--repetitions", type=int, default=5, help="processes")
    parser.add_argument("--threads", type=int, help="CPUs to use; as many as fit takes without it")
    parser.add_argument("fit_options", nargs="*", metavar="-- options of fit", help="handed on to fit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
