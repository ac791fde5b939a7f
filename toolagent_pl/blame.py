"""Whose error it is: that of a class or a tool of one's own, or an option, which the one line that is printed names."""

import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback

from toolagent_pl.envs import Env
from toolagent_pl.learning import Algorithm, Reward
from toolagent_pl.messages import names_option, reason
from toolagent_pl.trainer_options import shown

OURS = ("toolagent_pl", "lightning", "torch", "jsonargparse", "__main__")
PARTS = (torch.nn.Module, Env, Reward, Algorithm, Callback, torch.optim.Optimizer)


def is_own(module: str) -> bool:
    """Whether a module is neither this package nor installed."""
    if module.partition(".")[0] in OURS:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    return file is not None and not os.path.abspath(file).startswith(tuple(installed))


def own_method(error: BaseException) -> str | None:
    """The method of one's own that raised an error, itself or in what it called: what it is, and where.

    What jsonargparse makes of an error in ``__init__`` has it as its cause.
    """
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if is_own(module):
            owner = frame.f_locals.get("self")
            name = type(owner).__name__ if isinstance(owner, PARTS) else module
            file = os.path.basename(frame.f_code.co_filename)
            found = f"{name}.{frame.f_code.co_name}: got {described(error)} in line {line} of {file}, expected no error"
    return found if found or error.__cause__ is None else own_method(error.__cause__)


def refused_value(error: Exception, options: Namespace) -> str | None:
    """The option whose value a library refused, and what that said; None if it does not show.

    Args:
        options: Of the command.
    """
    text = " ".join(str(error).split())
    if unmade := reason(str(error)):
        path, why = unmade
        if names_option(why):
            return why
        option = next((key for key, value in vars(options.clone().as_flat()).items() if path in str(value)), "config")
        return f"{option.removesuffix('.class_path')}: got {path}, expected a class that can be made here ({why})"
    for file in (Path(frame.filename) for frame in reversed(traceback.extract_tb(error.__traceback__))):
        if file.parent.name == "optim":
            option = "lr_scheduler" if file.name == "lr_scheduler.py" else "optimizer"
            given = vars(options[option].init_args)
            name = next((name for name, value in given.items() if text.endswith(f": {value}")), None)
            got = f"{option}.{name}: got {given[name]}" if name else f"{option}: got {shown(options[option])}"
            return f"{got}, expected {'another value' if name else 'other options of it'} ({text or described(error)})"
    for name in re.findall(r"`(?:Trainer\()?(\w+)", text):
        if (value := options.trainer.get(name)) is not None:
            return f"trainer.{name}: got {shown(value)}, expected another value ({text})"
    return None


def described(error: BaseException) -> str:
    """Type and message of an error, in one line."""
    return f"{type(error).__name__} ({' '.join(str(error).split())})"


def own_classes(*parts: Any) -> list[str]:
    """Names of the classes of one's own among parts of a run."""
    kinds = dict.fromkeys(type(part) for part in parts)
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if is_own(kind.__module__)]
