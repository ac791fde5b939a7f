"""``python -m toolagent_pl``."""

import gc

gc.disable()  # collecting while the libraries load, and again at exit, takes a fifth of the start-up

from toolagent_pl.cli import main

gc.freeze()
gc.enable()
main()
