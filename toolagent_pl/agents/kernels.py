"""What ``kernels.c`` computes, where it has been compiled and this processor can run it."""

import warnings
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

_MODULES = {"AVX512": "_avx512", "AVX2": "_avx2"}  # by what PyTorch itself uses on this processor
_WIDTH_MULTIPLE = 16
_MOST_COLUMNS = 3  # vectors of sums that a row has room for


@lru_cache
def compiled() -> ModuleType | None:
    """The kernels for this processor; None where there are none, or no compiler was found when this was installed."""
    name = _MODULES.get(torch.backends.cpu.get_cpu_capability())
    if name is None:
        return None
    try:
        return import_module(f"toolagent_pl.agents.{name}")
    except ImportError:
        warnings.warn(
            "toolagent_pl was installed without its compiled kernels: PyTorch computes instead, which takes longer. "
            "With a C compiler, `pip install -e .` in a clone compiles them",
            stacklevel=2,
        )
        return None


def kernels_for(*tensors: Tensor) -> ModuleType | None:
    """The kernels, if they can compute with these tensors ``[..., d]``; else None.

    They can where the tensors are float32, contiguous and on a CPU, and their width is a multiple of 16, unless
    products are to be computed in a lower precision.
    """
    fit = all(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and tensor.shape[-1] % _WIDTH_MULTIPLE == 0
        for tensor in tensors
    )
    return compiled() if fit and not torch.is_autocast_enabled("cpu") else None


class CompiledCell:
    """A GRU by the kernels; see ``gru.Cell``.

    Args:
        kernels: The compiled module.
        table: ``[V, 4d]``.
        weight: ``[3d, d]``.
    """

    def __init__(self, kernels: ModuleType, table: Tensor, weight: Tensor) -> None:
        self._kernels, self._table = kernels, table.detach().contiguous()
        lanes, self._d = kernels.LANES, weight.shape[1]
        vectors = self._d // lanes
        # As it is read: for each vector of states its columns of r, z and h_n, row by row.
        self._weight = weight.detach().view(3, vectors, lanes, self._d).permute(1, 3, 0, 2).contiguous()
        self._columns = next(columns for columns in (3, 2, 1) if vectors % columns == 0)
        width = self._columns * lanes
        self._weight_back = weight.detach().view(-1, self._d // width, width).transpose(0, 1).contiguous()

    def step(
        self, heard: Tensor, kept: Tensor | None, last: Tensor, gates: Tensor, before: Tensor, after: Tensor
    ) -> None:
        """One step."""
        self._kernels.step(
            len(heard),
            self._d,
            len(self._table),
            len(last),
            torch.get_num_threads(),
            heard.data_ptr(),
            0 if kept is None else kept.data_ptr(),
            self._table.data_ptr(),
            self._weight.data_ptr(),
            last.data_ptr(),
            gates.data_ptr(),
            before.data_ptr(),
            after.data_ptr(),
        )

    def backward(
        self,
        output: Tensor,
        steps: list[tuple[int, Tensor | None]],
        batch: int,
        heard: Tensor,
        gates: Tensor,
        before: Tensor,
        after: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the initial state, the table and the weight."""
        d, threads, vocabulary = self._d, torch.get_num_threads(), len(self._table)
        tables = gates.new_zeros(threads, vocabulary, 4 * d)  # each thread sums up in one of its own
        flow, spare = gates.new_zeros(2, batch, d)
        shapes = torch.tensor([(count, 0 if kept is None else kept.data_ptr()) for count, kept in steps])
        output = output.contiguous()
        self._kernels.backward(
            len(steps),
            batch,
            d,
            vocabulary,
            self._columns,
            threads,
            shapes.data_ptr(),
            heard.data_ptr(),
            self._weight_back.data_ptr(),
            after.data_ptr(),
            output.data_ptr(),
            gates.data_ptr(),
            flow.data_ptr(),
            spare.data_ptr(),
            tables.data_ptr(),
        )
        return flow, tables.sum(0), gates[:, d:].T @ before


def choose(
    kernels: ModuleType, hidden: Tensor, policy: nn.Linear, actions: Tensor, noise: Tensor | None
) -> Tensor | None:
    """An action for each row, int64 ``[K]``; None if there are too many actions.

    Args:
        kernels: The compiled module.
        hidden: ``[K, d]``.
        policy: Gives each token a logit.
        actions: int64 ``[A]``, tokens to choose from.
        noise: float32 ``[K]``, between 0 and 1, what to draw with; None for the likeliest action.
    """
    if len(actions) > _MOST_COLUMNS * kernels.LANES:
        return None
    if noise is not None:
        noise = noise.float().contiguous()
    choice = torch.empty(len(hidden), dtype=torch.int64)
    kernels.choose(
        *hidden.shape,
        len(actions),
        torch.get_num_threads(),
        hidden.data_ptr(),
        policy.weight.data_ptr(),
        policy.bias.data_ptr(),
        actions.data_ptr(),
        0 if noise is None else noise.data_ptr(),
        choice.data_ptr(),
    )
    return choice
