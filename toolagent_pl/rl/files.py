"""Files: tensors that may come from anyone, and what is there already."""

import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolagent_pl.rl.trees import leaves


def read_tensors(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What ``torch.save`` has written, if it is tensors and plain containers; no code of the file is run.

    Args:
        map_location: As for ``torch.load``.
        mmap: Leave the tensors on disk until they are used.

    Raises:
        OSError: If it cannot be read at all.
        ValueError: If it is something else, or damaged.
    """
    if Path(path).exists() and not Path(path).is_file():  # a device may have no end
        raise unreadable(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch finds unusual in it
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        _check_storages(path, content)
        return content
    except OSError:
        raise
    except Exception as error:  # reading a foreign file may fail in any way
        raise unreadable(path) from error


def unreadable(path: str | Path) -> ValueError:
    """An error to raise about a file that is no checkpoint."""
    return ValueError(f"ckpt_path: got {path}, expected a checkpoint; this file is something else, or cut short")


def check_new(option: str, files: Iterable[Path], otherwise: str = "--overwrite") -> None:
    """Refuse to write where files are already.

    Args:
        option: That says where to write.
        files: All that would be written.
        otherwise: What has them replaced.

    Raises:
        ValueError: If one of them is there.
    """
    if there := next((file for file in files if file.is_file()), None):
        raise ValueError(f"{option}: got {there}, which is there already; expected another place, or {otherwise}")


def _check_archive(path: str | Path) -> None:
    """Refuse content that differs from its checksums, which PyTorch writes but does not read, or is compressed.

    PyTorch never compresses, and a little can unpack to a lot. Its formats before 1.6, no archives, are not read.
    """
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()) or archive.testzip():
            raise ValueError("compressed, or damaged")


def _check_storages(path: str | Path, content: Any) -> None:
    """Refuse tensors that together take more than there is: older PyTorch (2.8) reads past the end."""
    storages = [leaf.untyped_storage() for leaf in leaves(content) if isinstance(leaf, Tensor)]
    taken = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    with zipfile.ZipFile(path) as archive:
        there = sum(part.file_size for part in archive.infolist() if "/data/" in part.filename)
    if taken > there:
        raise ValueError(f"tensors of {taken} bytes in {there}")
