"""``python -m toolagent_pl``, and the command ``toolagent_pl``."""

import gc
import importlib
import os
import sys

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
    gc.disable()  # collecting while the libraries load, and again at exit, takes a fifth of the start-up
    # How long a thread that waits for others keeps its processor busy. PyTorch's default is a hundred times as long,
    # and slows a run down tenfold wherever something else computes beside it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if sys.argv[1:] in (["--help"], ["-h"]):  # at once: what the commands need takes seconds to load
        print(HELP, end="")
        return
    try:
        if sys.argv[1:2] and sys.argv[1] in OWN_COMMANDS:  # without Lightning, which loads longer than an answer takes
            command = importlib.import_module(f"toolagent_pl.commands.{sys.argv[1]}").main
            _collect_again()
            sys.exit(command(sys.argv[2:]))

        from toolagent_pl.cli import main
        from toolagent_pl.process import outlive_readers

        _collect_again()
        outlive_readers()
        main()
    except KeyboardInterrupt:  # before there is anything to save, or a second time
        sys.exit(130)


def _collect_again() -> None:
    """Collect garbage from here on, and none of what was loaded."""
    gc.freeze()
    gc.enable()


def script() -> None:
    """The command ``toolagent_pl``: as with ``python -m``, modules of one's own lie in the working directory."""
    sys.path.insert(0, os.getcwd())
    run()


if __name__ == "__main__":
    run()
