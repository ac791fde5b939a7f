"""Checkpoint files that are whole or not there, and that run no code when they are read."""

import copy
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from toolagent_pl.messages import names_option

CHECKPOINT_KEY = "toolagent_pl"  # of the part of a checkpoint that is this program's own
CHECKPOINT_FORMAT = 3
LARGEST_COUNT = 2**31  # of anything that is counted in a run; times a batch it still fits into int64
_REQUIRED = {"state_dict": dict, "pytorch-lightning_version": str, "epoch": int, "global_step": int, "loops": dict}


class CheckpointError(OSError):
    """A checkpoint cannot be written."""


def read_header(path: str | Path) -> dict[str, Any]:
    """A checkpoint with nothing but the shapes of its tensors. The file may come from anyone.

    Raises:
        ValueError: If it is something else than a whole checkpoint.
    """
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch finds unusual in it
            checkpoint = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        _check_storages(path, checkpoint)
        wrong = [key for key, kind in _REQUIRED.items() if not isinstance(checkpoint[key], kind)]
        if wrong or not 0 <= checkpoint["global_step"] < LARGEST_COUNT:
            raise ValueError(f"{wrong}")
    except Exception:  # reading a foreign file may fail in any way
        raise _unreadable(path) from None
    assert isinstance(checkpoint, dict)
    return checkpoint


def check_origin(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint that says where it comes from.

    Raises:
        ValueError: If that is not this program, or not this format.
    """
    header = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(header, dict):
        raise ValueError("ckpt_path: got a checkpoint of another program, expected one of toolagent_pl")
    if type(header.get("format")) is not int or header["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"ckpt_path: got a checkpoint of format {header.get('format')}, expected format {CHECKPOINT_FORMAT}"
        )
    return header


def batches_seen(checkpoint: dict[str, Any]) -> int:
    """The cursor of the run that a checkpoint is of.

    Raises:
        ValueError: If it has none.
    """
    batches = check_origin(checkpoint).get("batches_seen")
    if type(batches) is not int or not 0 <= batches < 2**53:
        raise ValueError(f"ckpt_path: got batches_seen {batches!r} in the checkpoint, expected a number of batches")
    return batches


def _unreadable(path: str | Path) -> ValueError:
    return ValueError(f"ckpt_path: got {path}, expected a checkpoint; this file is something else, or cut short")


def _check_archive(path: str | Path) -> None:
    """Compare the content with its checksums, which PyTorch writes but does not read.

    Raises:
        ValueError: If they differ, or something is compressed: PyTorch never does, and a little can unpack to a lot.
        zipfile.BadZipFile: If it is no archive. The formats of PyTorch before 1.6 are not read at all.
    """
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("compressed")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")


def _check_storages(path: str | Path, checkpoint: Any) -> None:
    """Compare what tensors take with what is there, which older PyTorch (2.8) does not: it reads past the end.

    Raises:
        ValueError: If all of them together take more.
    """
    storages = [leaf.untyped_storage() for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor)]
    taken = sum({storage._cdata: storage.nbytes() for storage in storages}.values())
    with zipfile.ZipFile(path) as archive:
        there = sum(part.file_size for part in archive.infolist() if "/data/" in part.filename)
    if taken > there:
        raise ValueError(f"tensors of {taken} bytes in {there}")


def guard_restoring(trainer: Trainer) -> None:
    """Have everything that goes wrong while a checkpoint is restored say so in a line about the checkpoint.

    What a file of the right format holds can still be anything: missing keys, texts for numbers, states of another
    optimizer. It must show before the work begins, and not as an error in the middle of it.
    """
    connector = trainer._checkpoint_connector
    restore = connector.restore_training_state
    replacements = {
        "_restore_modules_and_callbacks": _guarded(connector._restore_modules_and_callbacks, trainer),
        "restore_training_state": _guarded(lambda: _restore_training_state(trainer, restore), trainer),
    }
    for name, replacement in replacements.items():
        setattr(connector, name, replacement)


def _guarded(restore: Callable[..., None], trainer: Trainer) -> Callable[..., None]:
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            restore(*args, **kwargs)
        except Exception as error:  # a foreign file may be wrong in any way
            if names_option(str(error)):
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
        if type(found) is not int or not 0 <= found < LARGEST_COUNT:
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
        if Path(path).exists() and not Path(path).is_file():  # a device may have no end
            raise _unreadable(path)
        try:
            _check_archive(path)
            checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=True)
            _check_storages(path, checkpoint)
            return checkpoint
        except OSError:
            raise
        except Exception as error:  # reading a foreign file may fail in any way
            raise _unreadable(path) from error
