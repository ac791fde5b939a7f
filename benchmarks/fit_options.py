"""The command line of benchmarks that run ``fit``: what follows ``--`` is handed on to it."""

import argparse


def fit_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose result has ``fit_options``, the words after ``--``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("fit_options", nargs="*", metavar="-- options of fit", help="handed on to fit")
    return parser


def seeds_parser(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """The same for a run with each of several seeds, from 0, in quiet."""
    parser = fit_parser(description)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)), help="seeds to run with")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet before a run")
    return parser
