"""Errors in one line: what jsonargparse says in many, with the option first, the value, and what is accepted."""

import inspect
import pkgutil
import re
from collections.abc import Iterator

from toolagent_pl.agents import Agent
from toolagent_pl.configuration import PARTS

LONGEST_LINE = 1000
CLASS = r"Problem with given class_path '([^']*)':"
REQUIRED = r"the following arguments are required: (\w+)"
NOT_ALLOWED = "denied by"  # the list of modules: what is named is not made there
NOT_ACCEPTED = r"Option '([\w.]+)' is not accepted"


def one_line(message: str) -> str:
    """The telling part of an error message of several lines, with the option first, and of bounded length."""
    line = "".join(character if character.isprintable() else "?" for character in _telling_part(message))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..."


def names_option(message: str) -> bool:
    """Whether a message is a line of this project's own, that begins with the option it is about."""
    return re.match(r"[\w.]+: got ", message) is not None


def with_accepted(message: str, accepted: list[str]) -> str:
    """Tell, where an option of a class is unknown, which ones it has; ``one_line`` repeats it."""
    if not re.fullmatch(NOT_ACCEPTED, message):
        return message
    return f"{message}, expected {', '.join(accepted) or 'none'}"


def reason(message: str) -> tuple[str, str] | None:
    """Dotted path of the class that could not be made, and why, where jsonargparse has tried several types for it."""
    if match := re.search(rf"(?s){CLASS}\s*(.*?)\n *(?:- |Given value)", message):
        return match[1], " ".join(match[2].split())
    given = re.search(r"(?s)Errors:\n(.*)\n *Given value type.*?class_path='([^']*)'", message)
    errors = re.split(r"(?:^|\n) *- ", given[1]) if given else []
    of_types = ("Expected a", "Not a valid subclass", "a class path", "a dict")  # that were tried, too
    why = next((error for error in errors if error and not error.startswith(of_types)), None)
    return (given[2], " ".join(why.split())) if given and why else None


def _telling_part(message: str) -> str:
    if match := re.match(r"(?s)Unexpected config: (.*)", message):
        return f"config: got {' '.join(match[1].split()) or 'nothing'}, expected options and their values"
    if match := re.match(r"(?s)(?:Problems parsing config: |(?=Config file loop))(.*)", message):
        return f"config: cannot be read ({' '.join(match[1].split())})"
    if match := re.match(r'Key "(\w+)\.([\w.]+)" not found in namespace', message):
        return f"{match[1]}: got no {match[2]}, expected options and their values"
    if match := re.match(r"""Parser key "(\w+)":\s*Unable to load config ['"](.*)['"]\s""", message):
        return f"{match[1]}: got {match[2]}, expected a file with its options, or --{match[1]}.OPTION=VALUE"
    if own := re.findall(r"^[\s-]*([\w./+, ]+: got .*)$", message, re.MULTILINE):
        return own[-1]
    option, inner = _innermost(message)
    return _about(option, inner) if option else " ".join(inner.split())


def _innermost(message: str) -> tuple[str, str]:
    """The option that an error is about, of a class within a class, too; and what is said about it alone."""
    names = []
    while match := re.search(r'^( *).*?Parser key "([\w.]+)"(?: element \d+)?:(.*)$', message, re.MULTILINE):
        names.append(match[2].replace(".init_args", ""))
        lines = [match[3]]
        for line in message[match.end() + 1 :].split("\n"):
            if line.strip() and not line.startswith(match[1] + " "):  # beside it, or further out
                break
            lines.append(line)
        message = "\n".join(lines)
    return ".".join(names), message


def _about(option: str, message: str) -> str:
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", full := message).replace("NoneType", "null")
    message = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda found: found[1].replace("'", ""), message)
    value = re.search(r"(?:Given value|Got value|import path string): (.*?)(?:\. Got value: .*)?(?:\n|$)", message)
    nested = re.search(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)(?:\n|$)", message)
    kind = re.search(r"class_path '([^']*)'|class_path='([^']*)'", message)
    name = (kind[1] or kind[2]).rpartition(".")[2] if kind else ""
    if match := re.search(REQUIRED, message):
        return f"{option}.{match[1]}: got none, expected a value for {name}"
    bases = list(_bases(full)) or ([Agent] if option == "model.agent" else [])
    unnamed = any(base.__name__ == name for base in bases)  # an option of a class, before the class is named
    if not unnamed and (match := re.search(rf"{NOT_ACCEPTED}, expected ([^\n]*?)(?:\. Got value: |\n|$)", message)):
        given = re.search(rf"\b{match[1]}'?[=:] ?([^,)}}]*)", value[1]) if value else None
        got = nested[2] if nested else given[1].strip("'") if given else "it"
        return f"{option}.{match[1]}: got {got}, expected an option of {name}, which has {match[2]}"
    if nested:
        return f"{option}.{nested[1]}: got {nested[2]}, expected an option of a class, named by --{option}=CLASS"
    if re.search(CLASS, message) and (unmade := reason(message)) and NOT_ALLOWED not in unmade[1]:
        return f"{option}: got {unmade[0]}, expected a class that can be made here ({unmade[1]})"
    # What is said about paths is about files too, and about each kind in turn.
    of_paths = ("path but", "'", "dot import path", "import path", "function or", "Dict must", "instantiatable")
    kinds = dict.fromkeys(re.findall(r"Expected (?:an? )?([^.\n]*)", message))
    expected = [re.sub(r"^(Sequence|Iterable|list|tuple)\b", "a list", k) for k in kinds if not k.startswith(of_paths)]
    if classes := sorted({kind.__name__ for base in bases for kind in _descendants(base)}):
        expected = [kind for kind in expected if kind not in ("null", "a list")]
        expected.append(f"{', '.join(classes)}, or the dotted path of another class")
    if value is None or not expected:
        return f"{option}: {' '.join(message.split())}"
    got = re.sub(r"^Namespace\(class_path='([^']*)'.*", r"\1", value[1]).replace("None", "null")
    return f"{option}: got {got}, expected {' or '.join(expected)}"


def _bases(message: str) -> Iterator[type]:
    """The parts of a run that an option can be, as the message names its type."""
    for line in re.findall(r"Subtypes: .*|Type collections\.abc\.Callable.* expects", message):
        for path in re.findall(r"\w+(?:\.\w+)+", line):
            try:
                kind = pkgutil.resolve_name(path)
            except (ImportError, AttributeError):
                continue
            if isinstance(kind, type) and issubclass(kind, PARTS):
                yield kind


def _descendants(base: type) -> Iterator[type]:
    """Public classes of the same library derived from ``base``, and itself, that can be made."""
    pending = [base]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        ours = kind.__module__.partition(".")[0] == base.__module__.partition(".")[0]
        if ours and not inspect.isabstract(kind) and not kind.__name__.startswith("_"):
            yield kind
