"""What the process asks of the system and of Python: memory, and threads."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

PROBLEMS_PER_THREAD = 1024  # of a batch
_MOST_THREADS = torch.get_num_threads()
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


class _Output:
    """A stream that goes on saying nothing once nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, as long as somebody reads."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._close(len(text))

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close(0)

    def _close(self, written: int) -> int:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, self._stream.fileno())
        os.close(sink)
        return written


def outlive_readers() -> None:
    """Go on when whoever reads the output has left, as in ``fit | head -1``: a run is worth more than its lines."""
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)  # type: ignore[assignment]


@contextmanager
def without_collecting() -> Iterator[None]:
    """Within it, Python does not look for garbage in cycles.

    It would again and again while many objects are made, and look at all that the libraries have loaded: that takes as
    long as to make a thousand episodes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def threads_for(batch: int) -> Iterator[None]:
    """Within it, compute with as many threads as a batch of problems keeps busy, or PyTorch would take if that is less.

    Threads of OpenMP wait for each other by spinning. One too many gains nothing, and beside other work on the machine,
    which takes the processor from one while the others spin, a run with it takes ten times as long. Whoever sets
    OMP_NUM_THREADS decides alone.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(_MOST_THREADS, max(1, batch // PROBLEMS_PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
