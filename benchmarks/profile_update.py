"""Where the time of one training update of this project goes, by operator, as PyTorch's profiler sees it.

Run ``python -m benchmarks.profile_update``. ``benchmarks/contestants/contestant.py`` says what one update is.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.contestants.this_project import make
from benchmarks.environment import available_cpus, environment, headline
from benchmarks.environment import console as wide_console
from benchmarks.throughput import positive
from toolagent_pl import kernels

WARM_UP = 5
STAGE = 2  # T2
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
KERNEL = "kernel::"
ADAM = ("Optimizer.", "aten::_fused_adam_", "aten::linalg_vector_norm", "aten::_foreach")


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch", type=positive, nargs="+", default=[192, 1024, 4096], help="problems in an update")
    parser.add_argument("--threads", type=positive, default=available_cpus(), help="CPUs to use")
    parser.add_argument("--updates", type=positive, default=20, help="to average over")
    options = parser.parse_args(arguments)
    console = wide_console()
    console.print(headline(environment()))
    torch.set_num_threads(options.threads)
    if (compiled := kernels.compiled()) is not None:
        recorded = _Recorded(compiled)
        kernels.compiled = lambda: recorded  # type: ignore[assignment]
    table = Table(box=box.SIMPLE_HEAD, title="One update, milliseconds of each kind of operator", title_justify="left")
    for column in (
        "batch",
        "compiled kernels",
        "matrix products",
        "slices and views",
        "clipping and Adam",
        "other",
        "all",
        "calls",
    ):
        table.add_column(column, justify="right")
    for batch in options.batch:
        table.add_row(f"{batch:,}", *_profiled(batch, options.updates))
    console.print(table)
    return 0


class _Recorded:
    """Compiled kernels whose time the profiler sees."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.LANES = module, module.LANES

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.module, name)

        def recorded(*arguments: Any) -> Any:
            with record_function(KERNEL + name):
                return kernel(*arguments)

        return recorded


def _profiled(batch: int, updates: int) -> list[str]:
    contestant = make(batch, STAGE, seed=0)
    for _ in range(WARM_UP):
        contestant.update()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(updates):
            contestant.update()
    kinds = {"kernels": 0.0, "products": 0.0, "views": 0.0, "adam": 0.0, "other": 0.0}
    calls = 0
    for event in profiler.key_averages():
        if event.key.startswith(KERNEL):
            kind = "kernels"
        elif event.key in PRODUCTS:
            kind = "products"
        elif event.key in ("aten::select", "aten::slice", "aten::as_strided", "aten::narrow", "aten::split"):
            kind = "views"
        elif event.key.startswith(ADAM):
            kind = "adam"
        else:
            kind = "other"
        kinds[kind] += event.self_cpu_time_total / 1e3 / updates
        calls += event.count // updates
    return [*(f"{time:.2f}" for time in kinds.values()), f"{sum(kinds.values()):.2f}", f"{calls:,}"]


if __name__ == "__main__":
    sys.exit(main())
