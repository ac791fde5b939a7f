"""What processes ask of the system; how ranks, which are processes, start, learn together, and end together."""

import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore

from toolagent_pl.rl.replay import Successes

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


PARENT = "TOOLAGENT_PL_PARENT"  # process id of the rank that starts the others
GRACE = 5.0  # seconds in which ranks must end after a rank that failed, or was told to stop
LOOK = 1.0  # seconds between two looks at the parent


def meet(trainer: Trainer) -> None:
    """Have the ranks find each other, those that torchrun restarted, too.

    Raises:
        ValueError: If they could not; names the variable of the environment.
    """
    _check_meeting_place(trainer.world_size)
    _check_restarts()
    _meet_again(trainer.strategy)


def _check_meeting_place(ranks: int) -> None:
    """Refuse a place to meet at that is none, which would be looked for until PyTorch gives up."""
    port = os.environ.get("MASTER_PORT", "")
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"MASTER_PORT: got {port}, expected a number from 1 to {2**16 - 1}")
    address = os.environ.get("MASTER_ADDR", "")
    if address and ranks > 1:
        try:
            socket.getaddrinfo(address, None)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"MASTER_ADDR: got {address}, expected a host that can be found ({error})") from error


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """Within it, a rank ends as soon as the rank, or the torchrun, that started it is gone.

    What is killed cannot take the ranks that it started with it. They would wait for it, on GPUs for half an hour,
    or go on writing where the run is soon resumed.
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
    """Wait for the ranks that this one started.

    Args:
        failed: Whether this rank ends early. The others then have a few seconds to do the same.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    ranks = list(launcher.procs)
    if failed:
        # Lightning watches the list, and would kill this process as soon as it sees that another ended early too.
        launcher.procs.clear()
    deadline = time.monotonic() + GRACE
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()) if failed else None)
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _check_restarts() -> None:
    """Refuse restarts by torchrun on several nodes that shares its store with the ranks."""
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    if several and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and _uses_store_of_torchrun():
        raise ValueError(
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE: got 0, expected 1 in the environment of torchrun on several nodes "
            "with --max-restarts: ranks that it restarts could not find each other"
        )


def _meet_again(strategy: object) -> None:
    """Connect ranks that torchrun restarted.

    The store through which they find each other is the same for all attempts (as PyTorch 2.13 has it), and still
    holds the addresses of the dead. So each attempt uses names of its own. On several nodes, each torchrun counts
    for itself, and so restarts are refused there.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if not attempt or not _uses_store_of_torchrun() or not isinstance(strategy, DDPStrategy):
        return
    environment, device = strategy.cluster_environment, strategy.root_device
    assert environment is not None
    store = TCPStore(environment.main_address, environment.main_port, is_master=False)
    _init_dist_connection(  # what DDPStrategy does, which cannot be given a store
        environment,
        strategy._get_process_group_backend(),
        store=PrefixStore(f"attempt{attempt}", store),
        timeout=strategy._timeout,
        device_id=device if device.type != "cpu" else None,
    )


def _uses_store_of_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


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
