"""``python -m toolagent_pl``, and the command ``toolagent_pl``."""

import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OWN_COMMANDS = ("solve", "export", "sweep")  # the others are those of Lightning
HELP = """\
usage: python -m toolagent_pl COMMAND ...

  solve EXPRESSION ...              answer expressions with a trained agent
  fit                               train an agent
  test --ckpt_path last             try an agent on the problems that are held out
  validate --ckpt_path last         try it on the sample that training validates on
  predict --ckpt_path last          write what it answers, one JSON object a problem
  export --format FORMAT            write an agent for other programs
  sweep --config FILE               search for good options of fit

Each of them tells its options: python -m toolagent_pl fit --help
"""


def run() -> None:
    """Run the command that the process was started with."""
    # How long a thread that waits for others keeps its processor busy. PyTorch's default is a hundred times as long,
    # and slows a run down tenfold wherever something else computes beside it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if sys.argv[1:] in (["--help"], ["-h"]):  # at once: what the commands need takes seconds to load
        print(HELP, end="")
        return
    try:
        if sys.argv[1:2] and sys.argv[1] in OWN_COMMANDS:  # without Lightning, which loads longer than an answer takes
            with _loading():
                command = importlib.import_module(f"toolagent_pl.cli.{sys.argv[1]}").main
            sys.exit(command(sys.argv[2:]))

        with _loading():
            from toolagent_pl.cli.main import main
            from toolagent_pl.training.ranks import outlive_readers

        outlive_readers()
        main()
    except KeyboardInterrupt:  # while there is nothing to save, or a second time
        sys.exit(130)


@contextmanager
def _loading() -> Iterator[None]:
    """While libraries load: collect no garbage, then or later, of what they make, and let Ctrl-C end the process.

    Collecting it, and again at exit, takes a fifth of the start-up. And libraries in C turn an interrupt that they meet
    while they load into any other error.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not to be ignored
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def script() -> None:
    """The command ``toolagent_pl``: as with ``python -m``, modules custom lie in the working directory."""
    sys.path.insert(0, os.getcwd())
    run()


if __name__ == "__main__":
    run()
