"""The folder that a run writes into, which no other run writes into meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # the system gives it back when the process ends, however it ends
GRACE = 8.0  # seconds: what a killed run leaves behind, such as workers that load data, looks for it every five


def take_next(root: Path) -> Path:
    """Make the next ``version_N``. Of runs that start together, the one that makes a folder has it.

    Args:
        root: Where the runs are; made if it is not there.

    Raises:
        OSError: If no folder can be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name[8:]) for path in root.glob("version_*") if path.name[8:].isdigit()]
    for number in count(max(taken, default=-1) + 1):
        with suppress(FileExistsError):
            (run := root / f"version_{number}").mkdir()
            return run
    raise AssertionError("numbers do not end")


@contextmanager
def writing_alone(folder: Path, option: str) -> Iterator[None]:
    """Within it, no other run writes its checkpoint into a folder, which is made if it is not there.

    Args:
        option: Names the folder.

    Raises:
        ValueError: If another run does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=GRACE)
    except Timeout:
        raise ValueError(f"{option}: got {folder}, where a run is under way; expected another, or its end") from None
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()
