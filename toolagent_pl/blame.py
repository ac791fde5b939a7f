"""Whose error it is: that of a class or a tool of one's own, which is then named in the one line that is printed."""

import os
import sys
import sysconfig
import traceback
from typing import Any

import torch
from lightning.pytorch import Callback

from toolagent_pl.envs import Env
from toolagent_pl.learning import Algorithm, Reward

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
    """The method of one's own that raised an error, itself or in what it called: what it is, and where."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if is_own(module):
            owner = frame.f_locals.get("self")
            name = type(owner).__name__ if isinstance(owner, PARTS) else module
            file = os.path.basename(frame.f_code.co_filename)
            found = f"{name}.{frame.f_code.co_name}: got {described(error)} in line {line} of {file}, expected no error"
    return found


def described(error: BaseException) -> str:
    """Type and message of an error, in one line."""
    return f"{type(error).__name__} ({' '.join(str(error).split())})"


def own_classes(*parts: Any) -> list[str]:
    """Names of the classes of one's own among parts of a run."""
    kinds = dict.fromkeys(type(part) for part in parts)
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if is_own(kind.__module__)]
