"""Options: what the user gave, what the default run has, and what is dropped."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

DEFAULT_ENV = "toolagent_pl.envs.calculator.CalculatorEnv"


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice, of which PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                raise yaml.constructor.ConstructorError(problem=f"{key.value} again", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def default_run() -> dict[str, Any]:
    """The default run, ``default.yaml``."""
    found: dict[str, Any] = yaml.safe_load(files("toolagent_pl.cli").joinpath("default.yaml").read_text())
    return found


GROUPS = [name for name, options in default_run().items() if isinstance(options, dict)]


def default_options() -> dict[str, Any]:
    """The same by option; a class with its options is one."""
    run = default_run()
    options = {f"{name}.{key}": value for name in GROUPS for key, value in run[name].items() if name != "env"}
    return {"env": run["env"], **options}


def given(words: Sequence[str]) -> dict[str, Any]:
    """What the user gave, on the command line or in configurations, by option; later ones replace earlier ones.

    Raises:
        ValueError: If YAML cannot be read, or gives one value for a whole group, which jsonargparse would ignore.
    """
    found: dict[str, Any] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, joined, value = word.partition("=")
        if not option.startswith("--"):
            continue
        name, value = _bare(option), value if joined else after
        found[name] = value
        if name == "config" or value.startswith("{"):  # options, or a class with its options
            is_file = name == "config" and Path(value).is_file()
            try:
                read = yaml.load(Path(value).read_text(encoding="utf-8") if is_file else value, _UniqueKeys)
            except Exception as error:  # a file of anything
                raise ValueError(f"{name}: got {value}, expected YAML ({error})") from error
            found.update(_flat(read, "" if name == "config" else name))
    return found


def _flat(config: Any, path: str) -> Iterator[tuple[str, Any]]:
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


def has_default_env(options: Mapping[str, Any]) -> bool:
    """Whether the environment is the default one after what the user gave."""
    env = options.get("env.class_path", options.get("env"))
    return not isinstance(env, str) or env.rpartition(".")[2] == DEFAULT_ENV.rpartition(".")[2]


def check_dropped(words: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse an option of a class that another one took the place of: jsonargparse would drop it.

    Args:
        words: Of the command line.
        options: What came of them, by full name.

    Raises:
        ValueError: Names the option, and those that there are in its place.
    """
    for name in (_bare(word.partition("=")[0]) for word in words if word.startswith("--")):
        group = name.rpartition(".")[0]
        kind = options.get(f"{group}.class_path")
        there = [key for key in options if key.startswith(f"{group}.") and key != f"{group}.class_path"]
        replaced = kind or options.get(group, "") is None
        if replaced and not any(f"{key}.".startswith(f"{name}.") for key in there):
            dropped = f"an option that {group}={str(kind or 'null').rpartition('.')[2]} drops"
            raise ValueError(f"{name}: got {dropped}, expected one that it has: {', '.join(there) or 'none'}")
