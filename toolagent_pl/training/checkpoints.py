"""Checkpoints that are whole or not there, run no code when they are read, and hold all that a run goes on from."""

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim import Optimizer

from toolagent_pl.rl.files import read_tensors

OWN_LINE = re.compile(r"[\w.]+: got ")  # an error of this project, which names an option
CHECKPOINT_KEY = "toolagent_pl"  # of the part of a checkpoint that is this program's own
CHECKPOINT_FORMAT = 4
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed")
PRECISION_ALIASES = {"None": "32-true", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}

# What a run that goes on must have as it was, and what of that may change.
KEPT = ("seed_everything", "env", "model", "data", "optimizer", "lr_scheduler", "curriculum", "annealing")
FREE = ["env.unseen", "model.weights", "model.accumulate", "model.compile_step", "model.cuda_graphs"]
FREE += ["data.test_problems", "data.predict_problems", "data.eval_batch_size", "data.num_workers"]
FREE += ["model.seed", "data.seed"]  # they are seed_everything


class CheckpointError(OSError):
    """A checkpoint cannot be written."""


def header_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint that is this program's own."""
    return {CHECKPOINT_KEY: {"format": CHECKPOINT_FORMAT, **facts}}


def restored_header(checkpoint: Any) -> dict[str, Any]:
    """What ``header_of`` was given: ``stages``, ``batches_seen``, ``ent_coef`` and ``settings`` at least.

    Raises:
        ValueError: If the checkpoint is of another program or format.
    """
    header = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(header, dict):
        raise ValueError("ckpt_path: got a checkpoint of another program, expected one of toolagent_pl")
    if header.get("format") != CHECKPOINT_FORMAT:
        found = header.get("format")
        raise ValueError(f"ckpt_path: got a checkpoint of format {found}, expected format {CHECKPOINT_FORMAT}")
    return header


def settings_of(options: Mapping[str, Any], precision: object) -> dict[str, str]:
    """Those of all options that decide what is learned, by their full names, as JSON.

    Raises:
        ValueError: If training is not what it says with this precision of the trainer.
    """
    name = PRECISION_ALIASES.get(str(precision), str(precision))
    if name not in PRECISIONS:
        raise ValueError(f"trainer.precision: got {precision}, expected {', '.join(PRECISIONS)}")
    found = {"trainer.precision": json.dumps(name)}
    for key, value in options.items():
        name = key.replace(".init_args", "").removesuffix(".class_path")
        if key.partition(".")[0] in KEPT and name not in FREE:
            found[name] = json.dumps(value, default=lambda x: getattr(x, "__dict__", str(x)), sort_keys=True)
    return found


def check_settings(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with a run with other settings than are saved in the checkpoint, if a command line made it.

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
        checkpoint = read_tensors(Path(path).expanduser())
        restored_header(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"weights: got {path}, expected a checkpoint of a run ({error})") from error
    prefix = "agent."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    check_weights(weights, agent.state_dict(), "weights")
    return weights


def check_moments(optimizers: Iterable[Optimizer]) -> None:
    """Raise a ValueError for states that lie otherwise in memory than their weights: fused kernels write past them."""
    for optimizer in optimizers:
        for weight, state in optimizer.state.items() if optimizer.defaults.get("fused") else ():
            for name, x in state.items():
                if isinstance(x, Tensor) and x.ndim and (x.shape, x.stride()) != (weight.shape, weight.stride()):
                    got = f"{name} of {list(x.shape)} in the checkpoint"
                    raise ValueError(f"ckpt_path: got {got}, expected {list(weight.shape)}")


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
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain containers only, whatever is asked for; raises what ``read_tensors`` does."""
        checkpoint: dict[str, Any] = read_tensors(path, map_location)
        return checkpoint
