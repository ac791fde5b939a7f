"""Configurations that come from anyone: read within bounds, and naming nothing but classes that a run is made of."""

import ast
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from toolagent_pl.envs import Env
from toolagent_pl.learning import Algorithm, Reward, SuccessReplay
from toolagent_pl.problems import Stage

PARSER_MODE = "bounded_yaml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_LENGTH = 2000  # of one value; a number of so many digits can still be written in a message
PARTS: tuple[type, ...] = (
    torch.nn.Module,  # agents are modules, and are made of modules
    Env, Reward, Algorithm, SuccessReplay, Stage, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler,
    Callback, Logger, Profiler, Strategy, Accelerator, Precision, CheckpointIO, ClusterEnvironment, LayerSync,
)  # fmt: skip


def load_yaml(text: str) -> Any:
    """Read a value, or a whole configuration.

    PyYAML would crash on ``[[[[...`` and fill the memory with aliases of aliases. Of a key that is there twice it would
    take the last.

    Raises:
        yaml.YAMLError: If it cannot be read, or is beyond the bounds, or a key is there twice, or empty.
    """
    _check_bounds(text)
    _check_keys(yaml.compose(text, Loader=LOADER))
    try:
        return get_loader("yaml")(text)
    except ValueError as error:  # what looks like a number and is none, as 5,000 digits or the time 1:99e9
        raise yaml.YAMLError(str(error)) from None


def _check_keys(node: yaml.Node | None) -> None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    keys = [key.value for key, _ in pairs]
    for i, (key, _) in enumerate(pairs):
        if key.value in ["", *keys[:i]]:
            found = f"found the key {key.value!r} again" if key.value else "found an empty key"
            raise yaml.constructor.ConstructorError(None, None, found, key.start_mark)
    inner = [value for _, value in pairs] if pairs else node.value if isinstance(node, yaml.SequenceNode) else ()
    for value in inner:
        _check_keys(value)


set_loader(PARSER_MODE, load_yaml, (yaml.YAMLError,))


ALLOWED = ["toolagent_pl", "torch.optim", "torch.nn", "lightning"]
set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=ALLOWED)


def allow_own_modules(words: Sequence[str]) -> None:
    """Allow the import of modules of one's own that the command line or its configuration files name.

    To look whether what they hold will do, they must be imported, which runs them. So they are read first: what is
    named must be made there, as a class that derives from something, or as a tool.

    Args:
        words: Of the command line.
    """
    texts = list(words)
    for word in words:
        path = Path(word.partition("=")[2] or word)
        if path.suffix in (".yaml", ".yml") and path.is_file() and path.stat().st_size <= MAX_CHARACTERS:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    named = {tuple(match.split(".")) for text in texts for match in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", text)}
    own = {
        ".".join(parts[:-1])
        for parts in named
        if parts[0] not in ("toolagent_pl", "torch", "lightning") and _is_made(parts)
    }
    if own:
        set_parsing_settings(import_path_allowlist=[*ALLOWED, *sorted(own)])


def _is_made(parts: Sequence[str]) -> bool:
    """Whether a file on the path makes what a dotted path names."""
    *module, name = parts
    folders = [Path(folder or ".", *module) for folder in sys.path]
    for file in (file for folder in folders for file in (folder / "__init__.py", folder.with_suffix(".py"))):
        if not file.is_file() or file.stat().st_size > MAX_CHARACTERS:
            continue
        try:
            body = ast.parse(file.read_text(encoding="utf-8")).body
        except (SyntaxError, ValueError):
            return True  # it will be imported, and its error shown
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.bases]
        targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
        targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
        aliases = [alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
        found = [node.name for node in classes] + [target.id for target in targets if isinstance(target, ast.Name)]
        return name in found + [alias.asname or alias.name for alias in aliases]
    return False


def _check_bounds(text: str) -> None:
    """Count what there will be, aliases written out, without building it."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"got {len(text)} characters, expected at most {MAX_CHARACTERS}")
    sizes: dict[str, int] = {}  # of what has an anchor
    open_anchors: list[tuple[str | None, int]] = []  # of what is not complete yet, and how much was before
    total = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"got *{event.anchor}, expected the name of something complete that came before")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_LENGTH:
                raise yaml.YAMLError(f"got a value of {len(event.value)} characters, expected at most {MAX_LENGTH}")
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor:
                sizes[anchor] = total - before
        if len(open_anchors) > MAX_DEPTH:
            raise yaml.YAMLError(f"got more than {MAX_DEPTH} levels, one in another")
        if total > MAX_VALUES:
            raise yaml.YAMLError(f"got more than {MAX_VALUES} values")


def check_groups(words: Sequence[str], groups: Sequence[str]) -> None:
    """Refuse a configuration that gives one value for a whole group of options: jsonargparse would ignore it.

    Args:
        words: Of the command line, with paths of configurations, or configurations.

    Raises:
        ValueError: If there is such a group.
    """
    pairs = zip(words, [*words[1:], ""], strict=True)
    given = [word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == "--config"]
    for text in given:
        config = load_yaml(Path(text).read_text(encoding="utf-8") if os.path.isfile(text) else text)
        for group in groups:
            if group in config and not isinstance(config[group], dict | str):  # a text is the path of a file with them
                raise ValueError(f"{group}: got {config[group]}, expected options and their values")


def check_options_of_classes(words: Sequence[str], options: Namespace) -> None:
    """Refuse an option of a class that another one took the place of: jsonargparse would drop it.

    Args:
        words: Of the command line.
        options: What came of them.

    Raises:
        ValueError: Names the option, and those that the class has.
    """
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, given, value = word.partition("=")
        *within, last = option.removeprefix("--").replace(".init_args", "").split(".")
        found: Any = options if option.startswith("--") else Namespace()
        kind = None  # of the class that the option is one of
        for name in within:
            found, kind = found.get(name, found) if isinstance(found, Namespace) else found, None
            if isinstance(found, Namespace) and "class_path" in found:
                kind, found = found.class_path.rpartition(".")[2], found.get("init_args", Namespace())
        if kind and last not in (*vars(found), "class_path", "dict_kwargs"):
            expected = f"an option of {kind}, which has {', '.join(vars(found)) or 'none'}"
        elif within and found is None:
            expected = f"an option of a class, named by --{'.'.join(within)}=CLASS"
        else:
            continue
        raise ValueError(f"{'.'.join([*within, last])}: got {value if given else after}, expected {expected}")


def check_parts(config: Any, option: str = "") -> None:
    """Refuse everything that would be called, unless it is a class that a run is made of.

    The types of the options alone do not see to it: where a function is asked for that makes an agent, any
    function with arguments given would do, and be called.

    Raises:
        ValueError: If there is something else; names the option.
    """
    if isinstance(config, Namespace | dict):
        entries = vars(config) if isinstance(config, Namespace) else config
        if "class_path" in entries:
            path = entries["class_path"]
            if not _is_part(_imported(path)):
                raise ValueError(f"{option}: got {path}, expected a class derived from {_names()}")
        for key, value in entries.items():
            name = str(key).removeprefix("init_args")
            check_parts(value, ".".join(filter(None, [option, name])))
    elif isinstance(config, list | tuple | set):
        for value in config:
            check_parts(value, option)
    elif callable(config) and not isinstance(config, (os.PathLike, *PARTS)) and not _is_part(config):
        raise ValueError(f"{option}: got {_path(config)}, expected no function; only classes can be named")


def _imported(path: Any) -> Any:
    """What a dotted path names; jsonargparse has imported it before."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError, TypeError):
        return None


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PARTS)


def _names() -> str:
    *names, last = ["Agent", *(part.__name__ for part in PARTS)]
    return f"{', '.join(names)} or {last}"


def _path(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
