"""``python -m toolagent_pl``."""

import gc
import os
import sys

gc.disable()  # collecting while the libraries load, and again at exit, takes a fifth of the start-up
# How long a thread that waits for others keeps its processor busy. PyTorch's default is a hundred times as long, and
# slows a run down tenfold wherever something else computes beside it.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if sys.argv[1:2] == ["solve"]:  # without Lightning, which takes longer to load than an answer takes
    from toolagent_pl.commands.solve import main as solve

    gc.freeze()
    gc.enable()
    sys.exit(solve(sys.argv[2:]))

if sys.argv[1:2] == ["sweep"]:
    from toolagent_pl.commands.sweep import main as sweep

    gc.freeze()
    gc.enable()
    sys.exit(sweep(sys.argv[2:]))

from toolagent_pl.cli import main

gc.freeze()
gc.enable()
main()
