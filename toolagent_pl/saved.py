"""Agents in files: a folder as model hubs have it, or a checkpoint of a run with its configuration."""

import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolagent_pl import __version__
from toolagent_pl.agents import Agent
from toolagent_pl.card import model_card
from toolagent_pl.envs import CalculatorEnv, Env
from toolagent_pl.tools import TOOLS, find_tools

PRETRAINED = Path(__file__).parent / "pretrained"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"  # as on the Hugging Face Hub
FILES = (CONFIG, WEIGHTS, CARD)  # all that there is of an agent
LARGEST_CONFIG = 1_000_000  # bytes
RUNS = "lightning_logs/version_*/checkpoints/last.ckpt"
_OWN_FIELDS = ("agent", "env", "tools", "trained_stages", "toolagent_pl")


class SavedAgent(NamedTuple):
    """What files hold of an agent.

    Attributes:
        description: What ``config.json`` holds: classes and arguments of ``agent`` and ``env``, names of ``tools`` and
            ``trained_stages``, and any facts about the training.
        weights: By name.
    """

    description: dict[str, Any]
    weights: dict[str, Tensor]


def build(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[Agent, Env[Any]]:
    """An agent with these weights, and its environment, with a step limit that follows from the expression.

    Raises:
        ValueError: If the description is not one of an agent that can be built here, or the weights do not fit it.
    """
    kinds = [_class_and_arguments(description, part) for part in ("agent", "env")]
    tools, stages = (_names(description, part) for part in ("tools", "trained_stages"))
    (agent_path, agent_arguments), (env_path, env_arguments) = kinds
    _allow_own([agent_path, env_path, *tools])
    make_env, make_agent = _found(env_path, Env), _found(agent_path, Agent)
    try:
        env: Env[Any] = make_env(**env_arguments).with_tools(find_tools(tools))
        if isinstance(env, CalculatorEnv):
            env.max_steps = "auto"
        with torch.random.fork_rng(devices=[]):  # to draw weights that are replaced is nobody's business
            agent: Agent = make_agent(env.spec(len(stages)), **agent_arguments).eval()
        agent.load_state_dict(dict(weights))
    except Exception as error:  # classes and arguments may come from anyone
        raise ValueError(f"agent: got {agent_path}, which cannot be built ({_line(error)})") from error
    return agent, env


def read(path: str | Path | None) -> SavedAgent:
    """Read an agent. Nothing but tensors and plain values is read.

    Args:
        path: A folder that ``write`` has written; or a checkpoint, with the ``config.yaml`` of its run one folder above
            it or beside it; None for the agent that comes with the package.

    Raises:
        ValueError: If there is no such agent.
        OSError: If a file cannot be read.
    """
    if path is None:
        if not (PRETRAINED / CONFIG).is_file():
            raise ValueError("ckpt_path: got none, expected one: no agent comes with this installation")
        path = PRETRAINED
    path = Path(path).expanduser()
    if os.path.isdir(path):  # pathlib would raise an error for a name that is too long
        return _read_folder(path)
    if not os.path.isfile(path):
        raise ValueError(f"ckpt_path: got {path}, expected a checkpoint, or a folder with {CONFIG}")
    return _read_checkpoint(path)


def write(directory: str | Path, agent: SavedAgent, facts: Mapping[str, Any]) -> None:
    """Write ``config.json``, ``model.safetensors`` and a model card.

    Args:
        directory: Made if it is not there.
        facts: About the training; those that are known already are kept.

    Raises:
        ValueError: If a fact has a name that the format uses otherwise.
        OSError: If it cannot be written.
    """
    from safetensors.torch import save_file

    if reserved := [name for name in facts if name in _OWN_FIELDS]:
        raise ValueError(f"facts: got {', '.join(reserved)}, expected names other than {', '.join(_OWN_FIELDS)}")
    own = {name: agent.description[name] for name in _OWN_FIELDS[:-1]}
    known = {name: value for name, value in agent.description.items() if name not in _OWN_FIELDS}
    known = {"command": "", "seed": None, "figures": {}, **known, **facts}
    description = {**own, **known, "toolagent_pl": __version__}
    text = json.dumps(description, indent=2)
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in agent.weights.items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")
    (directory / CARD).write_text(model_card(description, sum(w.numel() for w in weights.values())), encoding="utf-8")


def check_new(option: str, files: Iterable[Path], otherwise: str = "--overwrite") -> None:
    """Refuse to write where files are already.

    Args:
        option: That says where to write.
        files: All that would be written.
        otherwise: What has them replaced.

    Raises:
        ValueError: If one of them is there.
    """
    for file in files:
        if file.is_file():
            raise ValueError(f"{option}: got {file}, which is there already; expected another place, or {otherwise}")


def newest_checkpoint() -> Path:
    """The checkpoint of the newest run below the working directory.

    Raises:
        ValueError: If there is none.
    """
    found = sorted(Path().glob(RUNS), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"ckpt_path: got last, expected a run, {RUNS}, in {Path.cwd()}")
    return found[-1]


def configuration_of(checkpoint: Path) -> Path | None:
    """The ``config.yaml`` of the run that a checkpoint is of, one folder above it or beside it; None without one."""
    places = [folder / "config.yaml" for folder in (checkpoint.parent.parent, checkpoint.parent)]
    return next((place for place in places if place.is_file()), None)


def _line(error: Exception) -> str:
    """An error as part of a line."""
    text = " ".join(str(error).split())
    return text[:300] if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"[:300]


def _class_and_arguments(description: Mapping[str, Any], part: str) -> tuple[str, dict[str, Any]]:
    """Path and arguments of the class of a part.

    Raises:
        ValueError: If there is something else.
    """
    value = description.get(part)
    named = value if isinstance(value, dict) else {}
    path, arguments = named.get("class_path"), named.get("init_args") or {}
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", path):
        raise ValueError(f"{part}: got {str(value)[:100]}, expected class_path, the dotted path of a class")
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"{part}: got {str(arguments)[:100]} as init_args, expected arguments by name")
    return path, arguments


def _names(description: Mapping[str, Any], part: str) -> list[str]:
    """A list of names.

    Raises:
        ValueError: If there is something else.
    """
    names = description.get(part)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{part}: got {str(names)[:100]}, expected a list of names")
    return names


def _is_ours(path: str) -> bool:
    return path.startswith("toolagent_pl.") or path in {tool.name for tool in TOOLS}


def _allow_own(paths: Sequence[str]) -> None:
    """Allow the import of modules of the user's own, if they make what is named, as the command line does."""
    if own := [path for path in paths if not _is_ours(path)]:
        from toolagent_pl.configuration import allow_own_modules  # loads Lightning

        allow_own_modules(own)


def _found(path: str, base: type) -> Any:
    """The class of a dotted path.

    Raises:
        ValueError: If there is none, or it does not derive from ``base``.
    """
    try:
        if _is_ours(path):
            module, _, name = path.rpartition(".")
            found = getattr(importlib.import_module(module), name)
        else:
            from jsonargparse._util import import_object  # the one that obeys the list of what may be imported

            found = import_object(path)
    except Exception as error:  # a module of one's own may fail in any way
        raise ValueError(f"{base.__name__.lower()}: got {path}, which cannot be imported ({_line(error)})") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{base.__name__.lower()}: got {path}, expected a class derived from {base.__name__}")
    return found


def _read_folder(folder: Path) -> SavedAgent:
    """What ``write`` has written.

    Raises:
        ValueError: If they are something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / CONFIG
    for needed in (file, folder / WEIGHTS):
        if not needed.is_file():
            raise ValueError(f"ckpt_path: got {folder}, expected a folder with {CONFIG} and {WEIGHTS}")
    if file.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"ckpt_path: got {file}, expected at most {LARGEST_CONFIG} bytes")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict):
        raise ValueError(f"ckpt_path: got {file}, expected the description of an agent in JSON")
    try:
        return SavedAgent(description, load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"ckpt_path: got {folder / WEIGHTS}, expected weights ({_line(error)})") from None


def _read_checkpoint(path: Path) -> SavedAgent:
    """The agent of a checkpoint, and what the configuration of its run says of it.

    Raises:
        ValueError: If they are something else.
    """
    import yaml

    from toolagent_pl.checkpoint_io import AtomicCheckpointIO, check_origin
    from toolagent_pl.configuration import load_yaml

    file = configuration_of(path)
    if file is None:
        raise ValueError(f"ckpt_path: got {path}, expected the config.yaml of its run in {path.parent.parent}")
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    header = check_origin(checkpoint)
    try:
        config = load_yaml(file.read_text(encoding="utf-8"))
        agent, env, tools = config["model"]["agent"], dict(config["model"]["env"]), config["data"]["tools"]
        env["init_args"] = {name: value for name, value in (env.get("init_args") or {}).items() if name != "tools"}
        weights = checkpoint["state_dict"].items()
        own = {name.removeprefix("agent."): value for name, value in weights if name.startswith("agent.")}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"ckpt_path: got {path} with {file}, expected the configuration of its run") from None
    stages, seed = header.get("stages"), config.get("seed_everything")
    description = {"agent": agent, "env": env, "tools": tools, "trained_stages": stages, "seed": seed}
    return SavedAgent(description, own)
