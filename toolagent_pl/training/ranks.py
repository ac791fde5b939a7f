"""What processes ask of the system; how ranks, which are processes, start, learn together, and end together."""

import ctypes
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from toolagent_pl.rl.replay import Successes

PROBLEMS_PER_THREAD = 1024  # of a batch
_MOST_THREADS = torch.get_num_threads()
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Keep memory that tensors give back: glibc would unmap it, and map it again for the next update.

    To touch it for the first time again takes a CPU as long as the computation. Does nothing without glibc.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class _Output(io.FileIO):
    """A file that goes on taking what nobody reads any more."""

    def write(self, content: Any) -> int:
        """Write, as long as somebody reads."""
        try:
            return super().write(content)
        except BrokenPipeError:
            with open(os.devnull, "wb") as sink:
                os.dup2(sink.fileno(), self.fileno())
            return len(content)


def outlive_readers() -> None:
    """Go on when whoever reads the output has left, as in ``fit | head -1``: a run is worth more than its lines."""
    for name in ("stdout", "stderr"):
        before: Any = getattr(sys, name)
        file = io.BufferedWriter(_Output(before.fileno(), "wb", closefd=False))
        options = {option: getattr(before, option) for option in ("encoding", "errors", "line_buffering")}
        setattr(sys, name, io.TextIOWrapper(file, **options, write_through=before.write_through))


@contextmanager
def threads_for(batch: int) -> Iterator[None]:
    """Within it, compute with as many threads as a batch of problems keeps busy, or PyTorch would take if that is less.

    Threads of OpenMP wait for each other by spinning: with one too many, beside other work on the machine, a run takes
    ten times as long. Whoever sets OMP_NUM_THREADS decides alone.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(_MOST_THREADS, max(1, batch // PROBLEMS_PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


PARENT = "TOOLAGENT_PL_PARENT"  # process id of the rank that starts the others
GRACE = 5.0  # seconds in which ranks must end after a rank that failed, or was told to stop
LOOK = 1.0  # seconds between two looks at the parent


def meet() -> None:
    """Let ranks that torchrun restarted find each other, on one node.

    All attempts share torchrun's store (as of PyTorch 2.13), which still holds the addresses of the dead. So rank 0
    makes one of its own, at another port.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if attempt and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + attempt)


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """Within it, a rank ends as soon as the rank, or the torchrun, that started it is gone, killed perhaps.

    Else it would wait for that one, on GPUs for half an hour, or go on writing where the run is soon resumed.
    """
    parent = os.environ.pop(PARENT, None)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = str(os.getppid())
    if parent and "LOCAL_RANK" in os.environ:
        threading.Thread(target=_end_after, args=(int(parent),), daemon=True).start()
    os.environ[PARENT] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(PARENT, None)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    print("error: the process that started this rank is gone", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread may be waiting for a rank that is gone


def wait_for_ranks(trainer: Trainer, failed: bool) -> None:
    """Wait for the ranks that this one started; if it failed, they have a few seconds to do the same."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    ranks = list(started)
    if failed:
        # Lightning watches the list, and would kill this process as soon as it sees that another ended early too.
        started.clear()
    deadline = time.monotonic() + GRACE
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()) if failed else None)
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def gathered(found: Successes, ranks: int, device: torch.device) -> list[Successes]:
    """What each rank has found, on this rank's device."""
    if ranks == 1:
        return [found]
    parts: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(parts, tuple(x.cpu() for x in found))
    return [Successes(*(x.to(device) for x in part)) for part in parts]


def unused_weights(loss: Tensor, weights: Iterable[Tensor]) -> list[Tensor]:
    """Those of the weights that a loss gives no gradient."""
    found, pending = set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending += [function for function, _ in node.next_functions]
    reached = {id(node.variable) for node in found if hasattr(node, "variable")}
    return [weight for weight in weights if weight.requires_grad and id(weight) not in reached]
