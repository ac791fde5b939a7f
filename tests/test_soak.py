"""Whether the soak test would notice what grows."""

import mmap
import os
from pathlib import Path

import pytest

from benchmarks.soak import Sample, grown, observe, summarize


def samples(megabytes=0.0, handles=0.0, threads=0.0):
    """A run of 20 minutes that starts big, breathes, and grows by so much a second after its warm-up."""
    found = []
    for seconds in range(0, 1200, 5):
        late = max(0, seconds - 120)
        breath = 3 * (seconds % 2)
        size = 400 + breath + megabytes * late - 100 * (seconds < 60)
        found.append(
            Sample(seconds, size, 12 + (seconds % 7 == 0) + int(handles * late), 4 + int(threads * late), 9 * seconds)
        )
    return found


@pytest.mark.parametrize(
    ("growth", "named"),
    [
        ({}, []),
        ({"megabytes": 0.01}, []),
        ({"megabytes": 0.04}, ["memory"]),
        ({"handles": 0.01}, ["open handles"]),
        ({"threads": 0.01}, ["threads"]),
    ],
)
def test_what_grows_is_named(growth, named):
    summary = summarize(samples(**growth), warm_up=120)
    assert [fault.split(" grew")[0] for fault in grown(summary)] == named
    assert summary.first_steps_per_second == summary.last_steps_per_second == 9


def test_a_run_shorter_than_its_warm_up_is_refused():
    with pytest.raises(ValueError, match="expected at least 4"):
        summarize(samples()[:25], warm_up=120)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_memory_and_handles_of_a_process_are_seen():
    before = observe(os.getpid(), 0, 1)
    with open(os.devnull), open(os.devnull):
        ballast = mmap.mmap(-1, 2**26)  # never from memory that the process held already
        for _ in range(64):
            ballast.write(bytes(2**20))
        after = observe(os.getpid(), 1, 2)
    assert after.handles == before.handles + 2
    assert after.resident_mb - before.resident_mb == pytest.approx(len(ballast) / 2**20, abs=16)
