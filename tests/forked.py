"""Commands in processes of their own, forked from a server that has loaded the libraries already.

Loading them takes four seconds of a processor, which a new interpreter for each command would have to spend again.
"""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from lightning.fabric.plugins.environments.lightning import find_free_network_port

_FORKED = multiprocessing.get_context("forkserver")  # a fork of a process that computed could hang
_FORKED.set_forkserver_preload(["toolagent_pl.cli.main", __name__])


def _run(directory: str, output: str, args: list[str], variables: dict[str, str]) -> None:
    os.chdir(directory)
    os.environ.update(variables)
    sys.path.insert(0, directory)
    sys.argv = ["toolagent_pl", *args]
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)

    from toolagent_pl.__main__ import run

    run()


class Forked:
    """``python -m toolagent_pl`` with these words, in a directory; to be used like ``subprocess.Popen``."""

    def __init__(self, directory: Path, args: list[str], **variables: str) -> None:
        file, name = tempfile.mkstemp(".txt", "output", directory)
        os.close(file)
        self.output = Path(name)
        self.process = _FORKED.Process(target=_run, args=(str(directory), str(self.output), args, variables))
        self.process.daemon = True
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for the number of a signal; None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """Exit status; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Tell it something."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for its end; what it printed."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            raise TimeoutError(self.output.read_text())
        return self.output.read_text(), None


def start_ranks(directory: Path, ranks: int, args: list[str], **variables: str) -> list[Forked]:
    """As many ranks, each started from outside as a cluster does; a single one is a plain run."""
    if ranks == 1:
        return [Forked(directory, args, **variables)]
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    args = [*args, f"--trainer.devices={ranks}", "--trainer.strategy=ddp"]
    return [Forked(directory, args, LOCAL_RANK=str(rank), **variables) for rank in range(ranks)]
