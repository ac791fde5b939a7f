"""Ranks that run as processes end together: none outlives the others, none is cut short by them."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PARENT = "TOOLAGENT_PL_PARENT"  # process id of the rank that starts the others
GRACE = 5.0  # seconds in which ranks must end after a rank that failed, or was told to stop
LOOK = 1.0  # seconds between two looks at the parent


def check_meeting_place(ranks: int) -> None:
    """Refuse a place to meet at that is none, which would be looked for until PyTorch gives up.

    Args:
        ranks: How many meet.

    Raises:
        ValueError: Names the variable of the environment.
    """
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


def wait_for_ranks(started: list[subprocess.Popen[bytes]], failed: bool) -> None:
    """Wait for the ranks that this one started.

    Args:
        started: Their processes, the list of Lightning's launcher itself.
        failed: Whether this rank ends early. The others then have a few seconds to do the same.
    """
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
