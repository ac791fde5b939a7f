"""One measurement in a process of its own.

Each library brings its own pool of threads, which keep a CPU busy for a while when they have run out of work; two
of them in one process, or two processes at once, would slow one another. So measurements run one after the other,
each in a fresh process that may use a given number of CPUs.

Whatever else the machine does is worse: a thread that waits at a barrier of OpenMP spins, while the one that it waits
for does not get a CPU, and an update can take fifty times as long. So measurements wait for quiet, and are repeated
when they were disturbed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.environment import QUIET, ROOT, busy_cpu_seconds, child_environment, wait_until_quiet

# Libraries that multiply matrices for PyTorch: what torch.mm calls (mostly MKL), and oneDNN. Which of them is the
# faster one depends on the processor, and either can be twice as fast as the other.
GEMMS = ("gemm_mm", "gemm_onednn")
GEMM_SIZE = 2048
SLICES = 8  # of a measurement; whoever may compute ahead is waited for after each
ERROR_LINES = 3


class Work(NamedTuple):
    """What to measure."""

    contestant: str
    batch: int
    stage: int
    d: int
    threads: int
    seconds: float
    seed: int = 0


class MeasurementError(RuntimeError):
    """A measurement that came to no result."""


def measured(work: Work, patience: float) -> dict[str, float]:
    """Measure in a fresh process, and once more if something else was computing meanwhile.

    Args:
        patience: Seconds to wait for an undisturbed measurement; after that the least disturbed one must do.

    Returns:
        ``seconds`` of one update (or of one matrix product), ``peak_mb`` of memory, and ``others``, how many
        CPUs were busy with something else (0 where that cannot be told).

    Raises:
        MeasurementError: If the process does not end well.
    """
    arguments = ["-m", "benchmarks.measure", json.dumps(work._asdict())]
    return undisturbed(lambda: in_process(arguments, work.threads), patience)


def undisturbed(measure: Callable[[], dict[str, float]], patience: float) -> dict[str, float]:
    """Wait for quiet and measure, again and again until ``others`` is small, or ``patience`` seconds are over."""
    deadline = time.monotonic() + patience
    results: list[dict[str, float]] = []
    while not results or (results[-1]["others"] > QUIET and time.monotonic() < deadline):
        wait_until_quiet(deadline)
        results.append(measure())
    return min(results, key=lambda result: result["others"])


def in_process(arguments: list[str], threads: int, directory: Path = ROOT) -> dict[str, float]:
    """Run Python with these arguments; the last line that it prints is the result, as JSON.

    Raises:
        MeasurementError: If the process does not end well.
    """
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=child_environment() | limits | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-ERROR_LINES:])
        raise MeasurementError(last or f"exit status {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def use_cpus(threads: int) -> None:
    """Keep this process on so many CPUs; to be called before any library looks how many there are."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _measure(work: Work) -> dict[str, float]:
    use_cpus(work.threads)
    unit = _gemm(work) if work.contestant in GEMMS else _contestant(work)
    unit(1)  # compiles, or allocates
    slice_seconds = work.seconds / SLICES
    estimate = _timed(unit, 1, slice_seconds)["seconds"]
    return _timed(unit, max(1, int(slice_seconds / estimate)), work.seconds) | {"peak_mb": _peak_mb()}


def _timed(unit: Callable[[int], Any], count: int, seconds: float = 0.0) -> dict[str, float]:
    """Do ``count`` updates again and again, at least once, until the time is over."""
    busy, own, start, done = busy_cpu_seconds(), time.process_time(), time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        unit(count)
        done += count
    elapsed = time.perf_counter() - start
    own, busy_now = time.process_time() - own, busy_cpu_seconds()
    others = 0.0 if busy is None or busy_now is None else max(0.0, (busy_now - busy - own) / elapsed)
    return {"seconds": elapsed / done, "updates": done, "others": others}


def _contestant(work: Work) -> Callable[[int], Any]:
    from benchmarks.contestants import make

    contestant = make(work.contestant, work.batch, work.stage, work.seed, work.d)

    def unit(count: int) -> None:
        for _ in range(count):
            _, loss = contestant.update()
        float(loss)

    return unit


def _gemm(work: Work) -> Callable[[int], Any]:
    import torch

    torch.set_num_threads(work.threads)
    left, right = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    if work.contestant == "gemm_onednn":
        left, right = left.to_mkldnn(), right.to_mkldnn()
    multiply = torch.mm if work.contestant == "gemm_mm" else torch.nn.functional.linear

    def unit(count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                multiply(left, right)

    return unit


def gemm_gflops(seconds: float) -> float:
    """GFLOP/s of a matrix product that takes so long."""
    return 2 * GEMM_SIZE**3 / seconds / 1e9


def fastest_gemm(results: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The faster library: which one, its median GFLOP/s, and those of each repetition of both."""
    repetitions = {
        name: [gemm_gflops(result["seconds"]) for result in results[name]] for name in GEMMS if results.get(name)
    }
    medians = {name: statistics.median(gflops) for name, gflops in repetitions.items()}
    if not medians:
        raise MeasurementError("no matrix product could be measured")
    fastest = max(medians, key=lambda name: medians[name])
    return {
        "library": fastest,
        "gflops": medians[fastest],
        "medians_gflops": medians,
        "repetitions_gflops": repetitions,
    }


def _peak_mb() -> float:
    """Most memory that this process has held, libraries included."""
    try:  # not getrusage: on Linux a new process inherits the peak of the one that started it
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", help="what to measure, JSON with the fields of Work")
    print(json.dumps(_measure(Work(**json.loads(parser.parse_args().work)))))


if __name__ == "__main__":
    _main()
