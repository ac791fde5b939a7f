"""Agents in files: folders as model hubs have them, checkpoints of runs with their configurations, and the Hub."""

import itertools
import json
import os
import pkgutil
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolagent_pl import __version__
from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.files import check_new, read_tensors

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"  # as on the Hugging Face Hub
FILES = (CONFIG, WEIGHTS, CARD)  # all that there is of an agent
ENVS = Path(__file__).parents[1] / "envs"  # each with its agents, in pretrained/ and pretrained-NAME/
MAX_CONFIG = 1_000_000  # bytes
MAX_PARTS = 10_000  # of a configuration written as JSON, aliases of YAML written out
RESERVED = ("env", "agent", "toolagent_pl")
USAGE = """\
from toolagent_pl.rl import saved

agent, env = saved.build(saved.read("this folder"))
"""


class SavedAgent(NamedTuple):
    """What files hold of an agent.

    Attributes:
        description: What ``config.json`` holds: ``class_path`` and ``init_args`` of ``env`` and ``agent``, and facts
            about the training. No ``agent`` stands for the environment's default agent.
        weights: By name.
    """

    description: dict[str, Any]
    weights: dict[str, Tensor]


def build(saved: SavedAgent, allow_custom: bool = False) -> tuple[Agent, Env]:
    """An agent with these weights, in evaluation mode, and its environment.

    Args:
        allow_custom: Import what the description names outside of this package: classes, tools. It runs that code.

    Raises:
        ValueError: If the description is not one of an agent that can be built here, or the weights do not fit it.
    """
    description = saved.description
    parts = [description.get("env"), description.get("agent")]
    if not allow_custom and (custom := next(_custom(parts), None)):
        raise ValueError(
            f"agent: got {custom[:100]}, code from outside of toolagent_pl; to run it, if you trust it, give "
            "--allow_custom, or allow_custom=True in Python"
        )
    env: Env = _built("env", Env, parts[0])
    with torch.random.fork_rng(devices=[]):  # to draw weights that are replaced is nobody's business
        agent: Agent = _built("agent", Agent, parts[1] or {"class_path": env.default_agent}, env)
    try:
        agent.load_state_dict(dict(saved.weights))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"agent: got weights that do not fit {type(agent).__name__} ({_line(error)})") from error
    return agent.eval(), env


def read(path: str | Path) -> SavedAgent:
    """Read an agent. Nothing but tensors and plain values is read.

    Args:
        path: A folder that ``write`` has written; or a checkpoint, with the ``config.yaml`` of its run one folder above
            it or beside it; or the name of an agent that comes with the package: ``calculator``, ``countdown`` ...

    Raises:
        ValueError: If there is no such agent.
        OSError: If a file cannot be read.
    """
    path = Path(path).expanduser()
    if os.path.isdir(path):  # pathlib would raise an error for a name that is too long
        return _read_folder(path)
    if os.path.isfile(path):
        return _read_checkpoint(path)
    if shipped := _shipped().get(str(path)):
        return _read_folder(shipped)
    names = ", ".join(_shipped())
    raise ValueError(f"ckpt_path: got {path}, expected a checkpoint, or a folder with {CONFIG}, or one of {names}")


def _shipped() -> dict[str, Path]:
    """Folders of the agents that come with the package, by name: ``countdown`` and ``countdown-ahead``."""
    folders = sorted(ENVS.glob("*/pretrained*"))
    return {folder.name.replace("pretrained", folder.parent.name): folder for folder in folders}


def download(name: str, **options: Any) -> Path:
    """The folder of an agent on the Hugging Face Hub, downloaded unless it was before.

    Args:
        name: ``owner/name``.
        options: Of ``huggingface_hub.snapshot_download``: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        ValueError: If ``huggingface_hub`` is not installed.
    """
    return Path(_hub(name).snapshot_download(name, allow_patterns=[*FILES], **options))


def write(
    directory: str | Path,
    agent: Agent,
    env: Env,
    description: Mapping[str, Any],
    facts: Mapping[str, Any],
    overwrite: bool = False,
    usage: str = USAGE,
    dtype: torch.dtype | None = None,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and a model card.

    Args:
        directory: Made if it is not there.
        description: See ``SavedAgent``.
        facts: About the training: ``command``, ``seed``, ``license``, ``figures`` (by stage, as in ``{"E5": {"right":
            9998, "tried": 10000, "note": "..."}}``), or any others; those that are in the description already are kept.
        overwrite: Replace these files where they are there already.
        usage: Lines of Python that the card shows.
        dtype: That matrices are rounded to; None for what they have.

    Raises:
        ValueError: If a fact has a name that the format uses otherwise, or a file is there already.
        OSError: If it cannot be written.
    """
    from safetensors.torch import save_file

    directory = Path(directory).expanduser()
    if reserved := [name for name in facts if name in RESERVED]:
        raise ValueError(f"facts: got {', '.join(reserved)}, expected names other than {', '.join(RESERVED)}")
    if not overwrite:
        check_new("directory", (directory / name for name in FILES), "overwrite=True")
    known = {name: value for name, value in description.items() if name not in RESERVED}
    config = {
        "env": description["env"],
        "agent": description.get("agent") or {"class_path": env.default_agent, "init_args": {}},
        **{"command": "", "seed": None, "figures": {}, **known, **facts},
        "toolagent_pl": __version__,
    }
    text = json.dumps(config, indent=2)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in agent.state_dict().items()}
    if dtype is not None:
        weights |= {name: weight.detach().to(dtype) for name, weight in agent.named_parameters() if weight.ndim > 1}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")
    (directory / CARD).write_text(_card(config, agent, env, usage), encoding="utf-8")


def push(
    name: str,
    agent: Agent,
    env: Env,
    description: Mapping[str, Any],
    facts: Mapping[str, Any],
    usage: str = USAGE,
    private: bool | None = None,
    token: str | None = None,
) -> None:
    """Write an agent to the Hugging Face Hub, into a repository that is made if it is not there.

    Args:
        name: ``owner/name``.
        description, facts, usage: As for ``write``.
        private: Whether a new repository is; None for what the owner's default is.
        token: To be known by; None for that of ``hf auth login``.

    Raises:
        ValueError: If ``huggingface_hub`` is not installed, or as for ``write``.
    """
    api = _hub(name).HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(folder, agent, env, description, facts, usage=usage)
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"name: got {name}, which needs the Hub's client: pip install 'toolagent_pl[hub]'") from None
    return huggingface_hub


def _custom(value: Any) -> Iterator[str]:
    """All within a description that looks like a dotted path, and leads out of this package."""
    if isinstance(value, str):
        if ("." in value or ":" in value) and not value.startswith("toolagent_pl."):
            yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _custom(part)


def _built(part: str, base: type, given: Any, *arguments: Any) -> Any:
    """An object of the class that a part of a description names.

    Raises:
        ValueError: If there is no such class, or it refuses its arguments.
    """
    named = given if isinstance(given, dict) else {}
    path, options = named.get("class_path"), named.get("init_args") or {}
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", path) or not isinstance(options, dict):
        raise ValueError(f"{part}: got {str(given)[:100]}, expected class_path and init_args of a class")
    try:
        found = pkgutil.resolve_name(path)
        if isinstance(found, type) and issubclass(found, base):
            return found(*arguments, **options)
    except Exception as error:  # classes and arguments may come from anyone
        raise ValueError(f"{part}: got {path}, which cannot be built ({_line(error)})") from error
    raise ValueError(f"{part}: got {path}, expected a class derived from {base.__name__}")


def _line(error: Exception) -> str:
    """An error as part of a line."""
    text = " ".join(str(error).split())
    return text[:300] if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"[:300]


def _read_folder(folder: Path) -> SavedAgent:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / CONFIG
    for needed in (file, folder / WEIGHTS):
        if not needed.is_file():
            raise ValueError(f"ckpt_path: got {folder}, expected a folder with {CONFIG} and {WEIGHTS}")
    try:
        description = json.loads(_text(file))
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict):
        raise ValueError(f"ckpt_path: got {file}, expected the description of an agent in JSON")
    try:
        return SavedAgent(description, load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"ckpt_path: got {folder / WEIGHTS}, expected weights ({_line(error)})") from None


def _read_checkpoint(path: Path) -> SavedAgent:
    """The agent of a checkpoint, and what the configuration of its run says of it."""
    import yaml

    places = [folder / "config.yaml" for folder in (path.parent.parent, path.parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"ckpt_path: got {path}, expected the config.yaml of its run in {places[0].parent}")
    checkpoint = read_tensors(path)
    try:
        config = yaml.safe_load(_text(file))
        found = {"env": config["env"], "agent": config["model"]["agent"], "seed": config.get("seed_everything")}
        plain = itertools.islice(json.JSONEncoder().iterencode(found), MAX_PARTS)
        weights = checkpoint["state_dict"].items()
        own = {name.removeprefix("agent."): value for name, value in weights if name.startswith("agent.")}
        return SavedAgent(json.loads("".join(plain)), own)
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"ckpt_path: got {path} with {file}, expected a run's checkpoint and configuration") from None


def _text(file: Path) -> str:
    if file.stat().st_size > MAX_CONFIG:
        raise ValueError(f"ckpt_path: got {file}, expected at most {MAX_CONFIG} bytes")
    return file.read_text(encoding="utf-8")


def _card(config: Mapping[str, Any], agent: Agent, env: Env, usage: str) -> str:
    """A model card in Markdown, with the header that the Hugging Face Hub reads."""
    weights = sum(weight.numel() for weight in agent.state_dict().values())
    rights = f"license: {str(config['license']).lower()}\n" if config.get("license") else ""
    about = (type(env).__doc__ or "").strip().partition("\n")[0]
    command, seed = config.get("command"), config.get("seed")
    said = f" Command: `{command}`" + (f", seed {seed}." if seed is not None else ".") if command else ""
    parts = [
        f"---\n{rights}library_name: toolagent_pl\npipeline_tag: reinforcement-learning\n---\n\n"
        f"# {type(agent).__name__} for {type(env).__name__}\n",
        f"An agent of {weights:,} weights. Its environment: {about} Its actions: {', '.join(env.actions)}. It learned "
        "by reinforcement, from what episodes paid.\n",
        f"## Use\n\n```python\n{usage}```\n",
        f"## Training\n\nStages: {', '.join(env.stages)}.{said}\n",
    ]
    if rows := list(_rows(config.get("figures"), env)):
        parts.append(
            "## Results\n\nProblems that the greedy agent solves: all there are where all can be tried, else a sample "
            "of those that training never drew.\n\n| stage | right | of | share | | |\n|---|---|---|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "\n".join(parts)


def _rows(figures: Any, env: Env) -> Iterator[str]:
    """Lines of the table of results; what is no pair of numbers is left out."""
    for stage, figure in figures.items() if isinstance(figures, dict) else ():
        right, tried = (figure.get(name) for name in ("right", "tried")) if isinstance(figure, dict) else (None, None)
        if isinstance(right, int) and isinstance(tried, int) and 0 <= right <= tried > 0:
            share = right * 10_000 // tried / 100  # rounded down: 100% means all of them
            unseen = "" if stage in env.stages else "never trained on"
            yield f"| {stage} | {right:,} | {tried:,} | {share:.2f}% | {figure.get('note', '')} | {unseen} |"
