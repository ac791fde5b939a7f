"""Whether a long run grows: memory, open files and threads of ``fit`` over time. ``SOAK_MINUTES`` says how long.

It is the default run with all that it writes, but it never stops by itself.
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc"),
]
MINUTES = float(os.environ.get("SOAK_MINUTES", "3"))
ENDLESS = ["--trainer.max_epochs=-1", "--solved.accuracy=null", "--annealing.at=null", "--trainer.accelerator=cpu"]
WARM_UP = 0.1  # share of the time that does not count, but not more than two minutes
EVERY = 1.0  # seconds between two samples
EDGE = 0.2  # share of the samples that the first and the last value are from
MAX_GROWTH = 0.05  # of memory


class Sample(NamedTuple):
    """What the process holds at one time."""

    seconds: float
    megabytes: float
    handles: int
    threads: int


def observe(pid: int, seconds: float) -> Sample:
    """What a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(seconds, int(status["VmRSS"].split()[0]) / 2**10, handles, int(status["Threads"]))


def grown(samples: list[Sample]) -> list[str]:
    """What grew from the first samples to the last."""
    edge = max(2, int(len(samples) * EDGE))
    first, last = samples[:edge], samples[-edge:]
    before, after = (statistics.median(sample.megabytes for sample in part) for part in (first, last))
    faults = [f"memory grew from {before:.0f} to {after:.0f} MB"] if after > (1 + MAX_GROWTH) * before else []
    for name in ("handles", "threads"):
        # The fewest: a handle that is open for a moment is not leaked, one that is leaked is there in each sample.
        before, after = (min(getattr(sample, name) for sample in part) for part in (first, last))
        faults += [f"{name} grew from {before} to {after}"] if after > before else []
    return faults


def test_a_long_run_does_not_grow(tmp_path):
    seconds = 60 * MINUTES
    samples = []
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "toolagent_pl", "fit", *ENDLESS],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        start = time.monotonic()
        try:
            while (passed := time.monotonic() - start) < seconds and process.poll() is None:
                if re.search(r"step \d+:", (tmp_path / "printed").read_text()[-2000:]):  # before it there are imports
                    samples.append(observe(process.pid, passed))
                time.sleep(EVERY)
        finally:
            ended = process.poll()
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert ended is None, (tmp_path / "printed").read_text()[-2000:]
    assert process.returncode == 128 + signal.SIGTERM
    warm = [sample for sample in samples if sample.seconds >= min(120, WARM_UP * seconds)]
    assert len(warm) > 10, "too short"
    print(warm[0], warm[-1])
    assert grown(warm) == []
