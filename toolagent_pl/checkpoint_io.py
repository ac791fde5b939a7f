"""Checkpoint files that are whole or not there, and that run no code when they are read."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class CheckpointError(OSError):
    """A checkpoint cannot be written."""


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
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the new name with the content of neither
            unfinished.replace(path)
        except (OSError, RuntimeError) as error:  # PyTorch's writer reports a full disk as RuntimeError
            with suppress(OSError):
                unfinished.unlink()
            kept = "the one before it is intact" if path.exists() else "there is none before it"
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise CheckpointError(f"checkpoint: cannot write {path} ({reason}); {kept}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint with weights only, whatever is asked for: others could run foreign code."""
        return super().load_checkpoint(path, map_location, weights_only=True)
