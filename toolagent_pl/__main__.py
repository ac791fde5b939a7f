"""``python -m toolagent_pl``."""

from toolagent_pl.cli import main

main()
