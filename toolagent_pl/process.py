"""What the process asks of the system: memory, and threads."""

import ctypes
import os
import sys

import torch

PROBLEMS_PER_THREAD = 512  # of a batch
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Keep memory that tensors give back, instead of returning it to the system and asking again.

    glibc maps every large tensor anew and unmaps it when it is freed; then each update touches all of its
    memory for the first time again. On a CPU that takes as long as the computation. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def use_threads(batch: int) -> None:
    """Compute with as many threads as a batch of problems keeps busy, at most as many as PyTorch would take.

    Threads of OpenMP wait for each other by spinning. One too many gains nothing, and beside other work on the machine,
    which takes the processor from one while the others spin, a run with it takes ten times as long. Whoever sets
    OMP_NUM_THREADS decides alone.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, batch // PROBLEMS_PER_THREAD)))
