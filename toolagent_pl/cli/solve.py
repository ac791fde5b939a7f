"""``python -m toolagent_pl solve``: a trained agent solves expressions before your eyes.

It loads torch and no more: Lightning and its command line take longer to load than the answer takes.
"""

import argparse
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolagent_pl.cli.parser import CommandParser, agent_path, failed
from toolagent_pl.envs.calculator.solver import Solution, Solver
from toolagent_pl.envs.calculator.text import LEGEND, draw, page
from toolagent_pl.rl.files import check_new

MAX_DRAWN = 1000  # expressions on a page
CHUNK = 10_000  # lines that are read before they are solved
FIELDS = ("numbers", "target", "expression")  # of problems that are no expressions, as JSON
UNLIMITED = 100_000  # columns, where nobody looks
EXAMPLES = """\
examples:
  python -m toolagent_pl solve "2*(3+4)"
  python -m toolagent_pl solve "1-(2-3)*4" "5*6+7" --html plans.html
  python -m toolagent_pl solve --json - < expressions.txt
  python -m toolagent_pl solve --env=countdown "25 7 4 3 = 216"
"""


def _parser() -> argparse.ArgumentParser:
    about = "Solve arithmetic expressions with a trained agent, and show how it does it."
    parser = CommandParser("solve", about, EXAMPLES)
    parser.add_argument(
        "expressions",
        nargs="+",
        metavar="EXPRESSION",
        help="whole numbers with operators and brackets, or numbers = target for Countdown, in quotes; - for the lines "
        "of standard input",
    )
    parser.add_argument(
        "--env",
        choices=("calculator", "countdown"),
        default="calculator",
        help="whose agent of the package solves, without --ckpt_path",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each expression, a line each")
    parser.add_argument("--html", metavar="FILE", help="also write a page in which to step through the plans")
    parser.add_overwrite()
    parser.add_ckpt_path()
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command with these words, and return its exit status."""
    # An expression that begins with a minus is none, and shall be told so: argparse would take it for an option.
    words = [f" {word}" if re.match(r"-[\d(.]", word) else word for word in arguments]
    parser = _parser()
    options = parser.parse_args(words)
    if unknown := [word for word in options.expressions if re.match("--[a-z]", word)]:
        parser.error(f"unrecognized arguments: {unknown[0]}")  # argparse takes one with a space in it for no option
    try:
        if options.html and not options.overwrite:
            check_new("html", [Path(options.html).expanduser()])
        solver = Solver.from_checkpoint(agent_path(options.ckpt_path) or options.env, options.allow_custom)
    except (ValueError, OSError) as error:
        return failed(error)
    try:
        status = _solve(options, solver)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # nobody reads on, as in ``| head -1``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 0


def _solve(options: argparse.Namespace, solver: Any) -> int:
    status, solved = 0, 0
    drawn: list[tuple[str, Any]] = []
    width = shutil.get_terminal_size((UNLIMITED, 0)).columns
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for chunk in _chunks(options.expressions):
        for (place, text), result in zip(chunk, solver.attempt([text for _, text in chunk]), strict=True):
            if isinstance(result, ValueError):
                status = failed(f"{place}{result}")
                continue
            solved += 1
            if isinstance(solver, Solver):
                if options.json:
                    print(json.dumps(Solution.of(text, result).as_dict()))
                else:
                    print(draw(text, result, solver.env.vocabulary, width=width, colour=colour), end="\n\n")
            else:
                found = {name: value for name, value in result.as_dict().items() if name in FIELDS}
                print(json.dumps({**found, "correct": result.solved}) if options.json else result)
            if options.html:
                drawn.append((text, result))
        sys.stdout.flush()
    if solved and not options.json and isinstance(solver, Solver) and solver.env.positions:
        print(f"Looked at before a call: {LEGEND}")
    if drawn:
        try:
            if solved > MAX_DRAWN:
                raise ValueError(f"html: got {solved} expressions, expected at most {MAX_DRAWN} on a page")
            given = [text for text, _ in drawn]
            episodes = [episode for _, episode in drawn]
            written = page(given, episodes, solver.env) if isinstance(solver, Solver) else solver.page(given)
            Path(options.html).expanduser().write_text(written, encoding="utf-8")
        except (ValueError, OSError) as error:
            return failed(error)
    return status


def _chunks(expressions: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """What is to be solved at a time: the words of the command line, and lines where a word is ``-``.

    Before each text stands what to say of its place in a message about it.
    """
    for is_input, words in itertools.groupby(expressions, lambda word: word == "-"):
        if not is_input:
            yield [("", word.removeprefix(" ") if word.startswith(" -") else word) for word in words]
            continue
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="backslashreplace")
        numbered = enumerate(sys.stdin, start=1)
        lines = ((f"line {number}: ", line.rstrip("\n")) for number, line in numbered if not line.isspace())
        size = 1 if sys.stdin.isatty() else CHUNK  # whoever types a line waits for the answer
        while chunk := list(itertools.islice(lines, size)):
            yield chunk
