"""``python -m toolagent_pl``."""

import gc
import os

gc.disable()  # collecting while the libraries load, and again at exit, takes a fifth of the start-up
# PyTorch's threads wait for each other by spinning. With the default count they keep the processor from whatever
# the thread that they wait for competes with: on a busy machine a run then takes ten times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from toolagent_pl.cli import main

gc.freeze()
gc.enable()
main()
