"""Options: what the user gave, what the default run has, and what is dropped."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader

PARSER_MODE = "yaml_without_repetition"
DEFAULT_ENV = "toolagent_pl.envs.calculator.CalculatorEnv"
GROUPS: tuple[str, ...] = ("trainer", "env", "model", "data")
GROUPS += ("curriculum", "annealing", "solved", "checkpoint", "samples", "pictures", "predictions")


def load_yaml(text: str) -> Any:
    """Read a value, or a whole configuration.

    Raises:
        yaml.YAMLError: If it cannot be read, or a key is there twice, of which PyYAML would take the last.
    """
    _check_keys(yaml.compose(text, Loader=yaml.SafeLoader))
    try:
        return get_loader("yaml")(text)
    except (ValueError, TypeError) as error:  # what looks like a number or a mapping and is none
        raise yaml.YAMLError(str(error)) from None


def _check_keys(node: yaml.Node | None) -> None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    keys = [key.value for key, _ in pairs]
    for i, (key, _) in enumerate(pairs):
        if key.value in keys[:i]:
            raise yaml.constructor.ConstructorError(None, None, f"found the key {key.value!r} again", key.start_mark)
    for value in [v for _, v in pairs] or (node.value if isinstance(node, yaml.SequenceNode) else ()):
        _check_keys(value)


set_loader(PARSER_MODE, load_yaml, (yaml.YAMLError,))


def default_run() -> dict[str, Any]:
    """The default run, ``default.yaml``."""
    found: dict[str, Any] = yaml.safe_load(files("toolagent_pl.cli").joinpath("default.yaml").read_text())
    return found


def default_options() -> dict[str, Any]:
    """The same by option; a class with its options is one."""
    groups = {name: options for name, options in default_run().items() if isinstance(options, dict)}
    found = {f"{name}.{key}": value for name, options in groups.items() for key, value in options.items()}
    return {**{key: value for key, value in found.items() if not key.startswith("env.")}, "env": groups["env"]}


def given(words: Sequence[str]) -> dict[str, Any]:
    """What the user gave, on the command line or in configurations, by option; later ones replace earlier ones.

    Raises:
        ValueError: If a configuration gives one value for a whole group, which jsonargparse would ignore.
    """
    found: dict[str, Any] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, joined, value = word.partition("=")
        if not option.startswith("--"):
            continue
        name, value = _bare(option), value if joined else after
        found[name] = value
        if name == "config":
            text = Path(value).read_text(encoding="utf-8") if Path(value).is_file() else value
            found.update(_flat(load_yaml(text)))
        elif value.startswith("{"):  # a class with its options
            found.update(_flat(load_yaml(value), name))
    return found


def _flat(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items() if isinstance(config, Mapping) else ():
        name = f"{path}.{key}".replace(".init_args", "").strip(".")
        if name in GROUPS and not isinstance(value, dict | str):
            raise ValueError(f"{name}: got {value}, expected options and their values")
        yield name, value
        yield from _flat(value, name)


def _bare(option: str) -> str:
    return option.removeprefix("--").removesuffix("+").replace(".init_args", "")


def by_name(options: Namespace) -> dict[str, Any]:
    """Values by the full names that they have on the command line; ``GROUP.class_path`` says which class it is."""
    return {_bare(key): value for key, value in vars(options.clone().as_flat()).items()}


def named_env(options: Mapping[str, Any]) -> str:
    """Dotted path or name of the environment's class among what the user gave."""
    env = options.get("env.class_path", options.get("env", DEFAULT_ENV))
    return env if isinstance(env, str) else DEFAULT_ENV


def check_dropped(words: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse an option of a class that another one took the place of: jsonargparse would drop it.

    Args:
        words: Of the command line.
        options: What came of them, by full name.

    Raises:
        ValueError: Names the option, and those that the class has.
    """
    for name in (_bare(word.partition("=")[0]) for word in words if word.startswith("--") and "." in word):
        group = name.rpartition(".")[0]
        if f"{group}.class_path" in options or options.get(group, ...) is None:
            there = [key.removeprefix(f"{group}.") for key in options if key.startswith(f"{group}.")][1:]
            if not any(f"{one}.".startswith(f"{name.rpartition('.')[2]}.") for one in there):
                kind = str(options.get(f"{group}.class_path", "null")).rpartition(".")[2]
                has = ", ".join(there) or "none"
                raise ValueError(f"{name}: got an option that {group}={kind} drops, expected one that it has: {has}")
