"""Agents in files: folders as model hubs have them, checkpoints of runs with their configurations, and the Hub."""

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

CONFIG, WEIGHTS, CARD = FILES = ("config.json", "model.safetensors", "README.md")  # as on the Hugging Face Hub
ENVS = Path(__file__).parents[1] / "envs"  # each with its agents, in pretrained/ and pretrained-NAME/
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
    parts = [saved.description.get("env"), saved.description.get("agent")]
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


def _custom(value: Any) -> Iterator[str]:
    """All within a description that looks like a dotted path, and leads out of this package."""
    if isinstance(value, str):
        if re.search(r"[.:]", value) and not value.startswith("toolagent_pl."):
            yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _custom(part)


def _built(part: str, base: type, given: Any, *arguments: Any) -> Any:
    """An object of the class that a part of a description names."""
    path, options = (given.get("class_path"), given.get("init_args") or {}) if isinstance(given, dict) else (None, {})
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


def _read_folder(folder: Path) -> SavedAgent:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not ((folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()):
        raise ValueError(f"ckpt_path: got {folder}, expected a folder with {CONFIG} and {WEIGHTS}")
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return SavedAgent({**description}, load_file(folder / WEIGHTS))
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        expected = f"a description in JSON in {CONFIG}, and weights in {WEIGHTS}"
        raise ValueError(f"ckpt_path: got {folder}, expected {expected} ({_line(error)})") from None


def _read_checkpoint(path: Path) -> SavedAgent:
    """The agent of a checkpoint, and what the configuration of its run says of it."""
    import yaml

    places = [folder / "config.yaml" for folder in (path.parent.parent, path.parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"ckpt_path: got {path}, expected the config.yaml of its run in {places[0].parent}")
    checkpoint = read_tensors(path)
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        found = {"env": config["env"], "agent": config["model"]["agent"], "seed": config.get("seed_everything")}
        weights = checkpoint["state_dict"].items()
        own = {name.removeprefix("agent."): value for name, value in weights if name.startswith("agent.")}
        return SavedAgent(json.loads(json.dumps(found)), own)  # plain values, and no circle
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"ckpt_path: got {path} with {file}, expected a run's checkpoint and configuration") from None


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
        facts: About the training, as for ``Solver.save_pretrained``; those in the description already are kept.
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
    config = {"env": description["env"], "agent": None, "command": "", "seed": None, "figures": {}}
    config |= {**description, **facts, "toolagent_pl": __version__}
    config["agent"] = config["agent"] or {"class_path": env.default_agent, "init_args": {}}
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", CARD: _card(config, agent, env, usage)}
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in agent.state_dict().items()}
    if dtype is not None:
        weights |= {name: weight.detach().to(dtype) for name, weight in agent.named_parameters() if weight.ndim > 1}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")


def download(name: str, **options: Any) -> Path:
    """The folder of an agent on the Hugging Face Hub, ``owner/name``, downloaded unless it was before.

    ``options`` are those of ``huggingface_hub.snapshot_download``, as for ``Solver.from_pretrained``.

    Raises:
        ValueError: If ``huggingface_hub`` is not installed.
    """
    return Path(_hub(name).snapshot_download(name, allow_patterns=[*FILES], **options))


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
    """Write an agent, as ``write`` does, to the Hugging Face Hub; see ``Solver.push_to_hub`` for the rest.

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


def _card(config: Mapping[str, Any], agent: Agent, env: Env, usage: str) -> str:
    """A model card in Markdown, with the header that the Hugging Face Hub reads."""
    weights = sum(weight.numel() for weight in agent.state_dict().values())
    rights = f"license: {str(config['license']).lower()}\n" if config.get("license") else ""
    about = (type(env).__doc__ or "").strip().partition("\n")[0]
    seed = "" if config["seed"] is None else f", seed {config['seed']}"
    command = f" Command: `{config['command']}`{seed}." if config["command"] else ""
    card = f"""\
---
{rights}library_name: toolagent_pl
pipeline_tag: reinforcement-learning
---

# {type(agent).__name__} for {type(env).__name__}

An agent of {weights:,} weights. Its environment: {about} Its actions: {", ".join(env.actions)}. It learned \
by reinforcement, from what episodes paid.

## Use

```python
{usage}```

## Training

Stages: {", ".join(env.stages)}.{command}
"""
    if config["figures"]:
        card += """
## Results

Problems that the greedy agent solves: all there are where all can be tried, else a sample of those that training \
never drew.

| stage | right | of | share | | |
|---|---|---|---|---|---|
"""
    for stage, figure in (config["figures"] or {}).items():
        right, tried, note = figure["right"], figure["tried"], figure.get("note", "")
        share = right * 10_000 // tried / 100  # rounded down: 100% means all of them
        unseen = "" if stage in env.stages else "never trained on"
        card += f"| {stage} | {right:,} | {tried:,} | {share:.2f}% | {note} | {unseen} |\n"
    return card
