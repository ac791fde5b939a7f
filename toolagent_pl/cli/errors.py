"""How commands end when something is wrong: our own errors in a line, those of libraries in their own words.

An exception in a custom class shows its traceback.
"""

import difflib
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from toolagent_pl.cli.parser import USAGE_ERROR
from toolagent_pl.training.checkpoints import OWN_LINE
from toolagent_pl.training.trainer import NOT_OFFERED

# What jsonargparse says besides of a value that may be of several types, of which one is meant.
NOISE = re.compile(
    r"\W*(Does not validate|Subtypes|Errors|Given value|Expected a <class 'NoneType'>|Expected a path but)"
)
PACKAGE = str(Path(__file__).parents[1])


def own_error(error: BaseException | None) -> BaseException | None:
    """The line of this project, about an option or about what a custom class returned, that an error comes from."""
    while error is not None and not (isinstance(error, ValueError | TypeError) and OWN_LINE.match(str(error))):
        error = error.__cause__  # jsonargparse raises its own
    return error


def prefixed(error: BaseException, options: Mapping[str, Any], owners: Mapping[str, str]) -> str:
    """An error about an option, with the group that the option is in on the command line.

    Args:
        options: Values by full names.
        owners: Groups by the names of the classes that have the options; classes that are options need none.
    """
    name, _, rest = str(error).partition(": got ")
    known = [key.removesuffix(".class_path") for key in options]
    chosen = {str(options[key]).rpartition(".")[2]: key[:-11] for key in options if key.endswith(".class_path")}
    groups = {**owners, **chosen}
    objects = [type(frame.f_locals.get("self")).__name__ for frame, _ in traceback.walk_tb(error.__traceback__)]
    full = [name, *(f"{groups[one]}.{name}" for one in reversed(objects) if one in groups)]
    full += [key for key in known if key.endswith(f".{name}")]
    return f"{next((key for key in full if key in known), name)}: got {rest}"


def in_one_message(message: str, known: Iterable[str]) -> str:
    """A parser's error, which begins with the option.

    Args:
        known: Options that there are.
    """
    if match := re.search(r"[Uu]nrecognized arguments: --([\w.+-]+)|does not accept option '([\w.]+)'", message):
        unknown = match[1] or match[2]
        if reason := NOT_OFFERED.get(unknown.removeprefix("trainer.")):
            return f"{unknown}: not offered: {reason}"
        near = difflib.get_close_matches(unknown, known, n=2, cutoff=0.8)
        hint = f", did you mean --{' or --'.join(near)}?" if near else "; --help lists all of them"
        return f"unknown option --{unknown}{hint}"
    named = re.findall(r"""Parser key "([\w.]+)"|Option '(\w+)' is not accepted""", message)
    option = ".".join(one or other for one, other in named).replace("init_args.", "")
    lines = [line for line in message.splitlines() if line.strip() and not NOISE.match(line)]
    text = re.sub(r'^Parser key "[\w.]+":', "", "\n".join(lines)).strip(" -\n")
    return f"{option}: {text}" if option else text


def show_custom(error: BaseException | None) -> None:
    """Print where an error comes from, if that is code of the user's."""
    installed = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), PACKAGE, "<")
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        custom = [frame.filename for frame in frames if not frame.filename.startswith(installed)]
        if (custom and not custom[-1].endswith("__main__.py")) or isinstance(error, SyntaxError):
            traceback.print_exception(error)
            return
        error = error.__cause__ or error.__context__


def stop(message: object, status: int = USAGE_ERROR) -> NoReturn:
    """Print what is wrong and exit."""
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
