"""Checkpoints that are whole or not there, run no code when they are read, and hold all that a run goes on from."""

import copy
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from toolagent_pl.rl.files import read_tensors, unreadable

OWN_LINE = re.compile(r"[\w.]+: got ")  # an error of this project, which names an option
CHECKPOINT_KEY = "toolagent_pl"  # of the part of a checkpoint that is this program's own
CHECKPOINT_FORMAT = 4
MAX_COUNT = 2**31  # of anything that is counted in a run; times a batch it still fits into int64
_REQUIRED = {"state_dict": dict, "pytorch-lightning_version": str, "epoch": int, "global_step": int, "loops": dict}
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed")
PRECISION_ALIASES = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}

# What a run that goes on must have as it was, and what of that may change.
KEPT = ("seed_everything", "env", "model", "data", "optimizer", "lr_scheduler", "curriculum", "annealing")
FREE = (
    "env.unseen",
    "model.weights",  # where a run began
    "model.accumulate",  # the gradient is that of the whole
    "model.compile_step",
    "model.cuda_graphs",
    "data.test_problems",
    "data.predict_problems",
    "data.eval_batch_size",
    "data.num_workers",
    "model.seed",  # seed_everything, as is that of the data
    "data.seed",
)


class CheckpointError(OSError):
    """A checkpoint cannot be written."""


def read_header(path: str | Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay on disk. The file may come from anyone.

    Raises:
        ValueError: If it is something else than a whole checkpoint.
    """
    try:
        checkpoint = read_tensors(path, mmap=True)
        wrong = [key for key, kind in _REQUIRED.items() if not isinstance(checkpoint[key], kind)]
        if wrong or not 0 <= checkpoint["global_step"] < MAX_COUNT:
            raise ValueError(f"{wrong}")
    except Exception:  # reading a foreign file may fail in any way
        raise unreadable(path) from None
    assert isinstance(checkpoint, dict)
    return checkpoint


def header_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint that is this program's own."""
    return {CHECKPOINT_KEY: {"format": CHECKPOINT_FORMAT, **facts}}


def restored_header(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What ``header_of`` was given: ``stages``, ``batches_seen``, ``ent_coef`` and ``settings`` at least.

    Raises:
        ValueError: If the checkpoint is of another program or format, or holds anything else.
    """
    header = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(header, dict):
        raise ValueError("ckpt_path: got a checkpoint of another program, expected one of toolagent_pl")
    found = header.get("format")
    if type(found) is not int or found != CHECKPOINT_FORMAT:
        raise ValueError(f"ckpt_path: got a checkpoint of format {found}, expected format {CHECKPOINT_FORMAT}")
    batches, ent_coef = header.get("batches_seen"), header.get("ent_coef")
    if type(batches) is not int or not 0 <= batches < 2**53:
        raise ValueError(f"ckpt_path: got batches_seen {batches!r} in the checkpoint, expected a number of batches")
    if type(ent_coef) is not float or not 0 <= ent_coef < float("inf"):
        raise ValueError(f"ckpt_path: got ent_coef {ent_coef!r} in the checkpoint, expected a number")
    settings = header.get("settings")
    if not isinstance(settings, dict) or any(type(text) is not str for pair in settings.items() for text in pair):
        raise ValueError("ckpt_path: got settings in the checkpoint that cannot be read, expected those of a run")
    return header


def full_precision(precision: object) -> str:
    """A precision by its full name.

    Raises:
        ValueError: If training is not what it says with it.
    """
    name = str(precision or "32-true")
    name = PRECISION_ALIASES.get(name, name)
    if name not in PRECISIONS:
        raise ValueError(f"trainer.precision: got {precision}, expected {', '.join(PRECISIONS)}")
    return name


def settings_of(options: Mapping[str, Any], precision: object) -> dict[str, str]:
    """The options that decide what is learned, as JSON.

    Args:
        options: All that there are, by their full names.
    """
    found = {"trainer.precision": json.dumps(full_precision(precision))}
    for key, value in options.items():
        name = key.replace(".init_args", "").removesuffix(".class_path")
        if key.partition(".")[0] in KEPT and name not in FREE:
            found[name] = json.dumps(value, default=lambda x: getattr(x, "__dict__", str(x)), sort_keys=True)
    return found


def check_settings(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with a run with other settings.

    Args:
        saved: What the checkpoint holds, options by name, their values as JSON; none if no command line made it.
        now: What the command asks for.

    Raises:
        ValueError: Names the first option that differs, and both values.
    """
    for option in sorted({*saved, *now}) if saved else ():
        before, after = (given.get(option, "null") for given in (saved, now))
        if before != after:
            got, expected = (value.strip('"') for value in (after, before))
            raise ValueError(
                f"{option}: got {got}, expected {expected} as in the checkpoint: --ckpt_path goes on with a run as it "
                "was; --model.weights=PATH in its place starts another one from the same weights"
            )


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], option: str) -> None:
    """Refuse weights of an agent of another kind or size.

    Raises:
        ValueError: Names the option that named them, and the first that does not fit.
    """
    for name, tensor in expected.items():
        saved = list(weights[name].shape) if name in weights else "nothing"
        if saved != list(tensor.shape):
            raise ValueError(
                f"{option}: got a checkpoint with {saved} for {name}, expected {list(tensor.shape)}; "
                "is it of another agent or size? Its settings are in the config.yaml of its run"
            )


def agent_weights(path: str | Path, agent: nn.Module) -> dict[str, Tensor]:
    """Weights of a checkpoint for an agent.

    Raises:
        ValueError: If there are none, or not for an agent of these sizes.
    """
    try:
        checkpoint = AtomicCheckpointIO().load_checkpoint(Path(path).expanduser())
        restored_header(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"weights: got {path}, expected a checkpoint of a run ({error})") from error
    prefix = "agent."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    check_weights(weights, agent.state_dict(), "weights")
    return weights


def guard_restoring(trainer: Trainer) -> None:
    """Have everything that goes wrong while a checkpoint is restored say so in a line about the checkpoint.

    What a file of the right format holds can still be anything: missing keys, texts for numbers, states of another
    optimizer. It must show before the work begins, and not as an error in the middle of it.
    """
    connector = trainer._checkpoint_connector  # Lightning has no hooks around what it does
    kind = type(connector)
    restore_modules = partial(kind._restore_modules_and_callbacks, connector)
    restore_training = partial(kind.restore_training_state, connector)
    replacements = {
        "_restore_modules_and_callbacks": _guarded(restore_modules, trainer),
        "restore_training_state": _guarded(partial(_restore_training_state, trainer, restore_training), trainer),
    }
    for name, replacement in replacements.items():
        setattr(connector, name, replacement)


def _guarded(restore: Callable[..., None], trainer: Trainer) -> Callable[..., None]:
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            restore(*args, **kwargs)
        except Exception as error:  # a foreign file may be wrong in any way
            if OWN_LINE.match(str(error)):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            path = trainer.ckpt_path  # type: ignore[attr-defined]
            raise ValueError(
                f"ckpt_path: got {path}, expected a checkpoint of such a run; it cannot be restored ({reason})"
            ) from error

    return guarded


def _restore_training_state(trainer: Trainer, restore: Callable[[], None]) -> None:
    """Restore, and try out what came of it.

    Raises:
        Exception: If the run could not go on like this.
    """
    if not trainer.ckpt_path:  # type: ignore[attr-defined]
        restore()
        return
    loop: Any = {
        TrainerFn.FITTING: trainer.fit_loop,
        TrainerFn.VALIDATING: trainer.validate_loop,
        TrainerFn.TESTING: trainer.test_loop,
        TrainerFn.PREDICTING: trainer.predict_loop,
    }[trainer.state.fn]  # type: ignore[index]
    stateful = [loop, *[config.scheduler for config in trainer.lr_scheduler_configs]]
    fresh = copy.deepcopy([one.state_dict() for one in stateful])
    tried = [_after_a_step(optimizer) for optimizer in trainer.optimizers]
    restore()
    epoch: Any = trainer.fit_loop.epoch_progress.current
    if epoch.ready == epoch.processed:
        # With `max_steps`, Lightning takes an epoch that has come to its end for one to go on with: it would train on
        # an empty one first. The property that it goes by does not let itself be set to anything else.
        _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]
    for one, kind in zip(stateful, fresh, strict=True):
        _check_kind(one.state_dict(), kind, type(one).__name__)
    trainer.fit_loop._combined_loader_states_to_load = []  # nothing that this project loads from has a state
    if trainer.state.fn == TrainerFn.FITTING:
        for optimizer, new in zip(trainer.optimizers, tried, strict=True):
            _check_tensors(optimizer, new)
            _after_a_step(optimizer)


def _after_a_step(optimizer: Optimizer) -> Optimizer:
    """A copy that has made a step of nothing."""
    trial = copy.deepcopy(optimizer)
    for parameter in _parameters(trial):
        parameter.grad = torch.zeros_like(parameter)
    trial.step()
    return trial


def _check_tensors(found: Optimizer, expected: Optimizer) -> None:
    """Refuse states that lie otherwise in memory: fused kernels would write past their ends."""
    parameters = list(zip(_parameters(found), _parameters(expected), strict=True))
    if not found.state.keys() <= {one for one, _ in parameters}:
        raise ValueError("the optimizer has states of parameters that there are not")
    for number, (one, other) in enumerate(parameters):
        for name, tensor in expected.state[other].items():
            restored = found.state[one].get(name) if one in found.state else tensor
            if isinstance(tensor, Tensor) and _form(restored) != _form(tensor):
                shape = list(restored.shape) if isinstance(restored, Tensor) else type(restored).__name__
                raise ValueError(f"{name} of parameter {number} is {shape}, in another form than {list(tensor.shape)}")


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _form(state: Any) -> Any:
    """All that a kernel takes for granted."""
    if not isinstance(state, Tensor) or state.layout != torch.strided:
        return None
    return state.shape, state.stride(), state.dtype, state.device


def _check_kind(found: Any, expected: Any, name: str) -> None:
    """Refuse a state that is built otherwise than one of a new run."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or not expected.keys() <= found.keys():
            raise ValueError(f"{name} is not made of {', '.join(map(str, expected))}")
        for key, value in expected.items():
            _check_kind(found[key], value, str(key))
    elif type(expected) is int:
        if type(found) is not int or not 0 <= found < MAX_COUNT:
            raise ValueError(f"{name} is {found!r}")
    elif expected is not None and type(found) is not type(expected):
        raise ValueError(f"{name} is {found!r}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames into place; loads tensors and plain containers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint. A reader, or a crash at any time, finds either the old file or the new one.

        Raises:
            CheckpointError: If it cannot be written; names the file and the reason.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()  # PyTorch does not say what is wrong with a file
            torch.save(checkpoint, content)
            with unfinished.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the new name with the content of neither
            unfinished.replace(path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            kept = "the one before it is intact" if path.exists() else "there is none before it"
            raise CheckpointError(f"checkpoint: cannot write {path} ({error.strerror}); {kept}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint with weights only, whatever is asked for: others could run foreign code.

        Raises:
            OSError: If it cannot be read at all.
            ValueError: If it is something else than a whole checkpoint.
        """
        checkpoint: dict[str, Any] = read_tensors(path, map_location)
        return checkpoint
