"""What the commands that are not Lightning's share: how their words are read, and how they end."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

RUNS = "lightning_logs/version_*/checkpoints/last.ckpt"
USAGE_ERROR = 2


class CommandParser(argparse.ArgumentParser):
    """Reads what stands behind ``python -m toolagent_pl COMMAND``; says in one line what is wrong."""

    def __init__(self, command: str, description: str, epilog: str) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        prog = f"python -m toolagent_pl {command}"
        super().__init__(prog, None, description, epilog, formatter_class=kind, allow_abbrev=False)
        self.command = command

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with code 2."""
        self.exit(USAGE_ERROR, f"error: {message}; see {self.command} --help\n")

    def add_overwrite(self) -> None:
        """Let files be replaced."""
        self.add_argument("--overwrite", action="store_true", help="replace files that are there already")

    def add_ckpt_path(self) -> None:
        """Let an agent be named; ``agent_path`` says where it is."""
        self.add_argument(
            "--ckpt_path",
            metavar="PATH",
            help="a checkpoint, or last for that of the newest run here, or the folder of a saved agent, or the name "
            "of one that comes with the package: calculator, countdown, countdown-ahead (default: calculator)",
        )
        self.add_argument(
            "--allow_custom",
            action="store_true",
            help="run code from outside of the package that the agent is made of: its class, its environment, tools",
        )


def agent_path(path: str | None) -> str | Path | None:
    """Where an agent is that was named; ``last`` is that of the newest run.

    Raises:
        ValueError: If there is no run.
    """
    if path != "last":
        return path
    found = Path().glob(RUNS)
    if newest := max(found, key=lambda run: run.stat().st_mtime, default=None):
        return newest
    raise ValueError(f"ckpt_path: got last, expected a run, {RUNS}, in {Path.cwd()}")


def failed(error: Exception | str) -> int:
    """Say what is wrong in one line, behind what was printed before it; the exit status."""
    sys.stdout.flush()
    print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    return USAGE_ERROR
