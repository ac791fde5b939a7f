"""Parts of other modules, compiled for the processors of this computer: the same numbers, sooner.

Each kernel is defined by the Python code that it stands in for, which is also what computes on other devices, in
other precisions, and where nothing was compiled. Kernels get the addresses of tensors, so whoever calls one sees to
types, sizes and contiguous memory.
"""

import warnings
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

_MODULES = {"AVX512": "_avx512", "AVX2": "_avx2"}  # by what PyTorch itself uses on this processor
_WIDTH_MULTIPLE = 16


@lru_cache
def compiled() -> ModuleType | None:
    """The kernels for this processor; None where there are none, or no compiler was found when this was installed."""
    name = _MODULES.get(torch.backends.cpu.get_cpu_capability())
    if name is None:
        return None
    try:
        return import_module(f"toolagent_pl.kernels.{name}")
    except ImportError:
        warnings.warn(
            "toolagent_pl was installed without its compiled kernels: PyTorch computes instead, which takes longer. "
            "With a C compiler, `pip install -e .` in a clone compiles them",
            stacklevel=2,
        )
        return None


def network_kernels(*tensors: Tensor) -> ModuleType | None:
    """The kernels, if they can compute with these tensors ``[..., d]``; else None.

    They can where the tensors are float32, contiguous and on a CPU, and their width is a multiple of 16, unless
    products are to be computed in a lower precision.
    """
    fit = not torch.compiler.is_compiling() and all(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and tensor.shape[-1] % _WIDTH_MULTIPLE == 0
        for tensor in tensors
    )
    return compiled() if fit and not torch.is_autocast_enabled("cpu") else None


def integer_kernels(*tensors: Tensor) -> ModuleType | None:
    """The kernels, if they can compute with these tensors, int64 or bool, contiguous and on a CPU; else None."""
    fit = not torch.compiler.is_compiling() and all(  # which knows no addresses
        tensor.device.type == "cpu" and tensor.dtype in (torch.int64, torch.bool) and tensor.is_contiguous()
        for tensor in tensors
    )
    return compiled() if fit else None
