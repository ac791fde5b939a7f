"""A step of a GRU that knows its gradient.

Autograd would record ten small operations a step and go back through each of them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _GRUStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        d = hidden.shape[1]
        recurrent = torch.addmm(bias, hidden, weight.T)
        reset_update = (gates[:, : 2 * d] + recurrent[:, : 2 * d]).sigmoid_()
        reset, update = reset_update[:, :d], reset_update[:, d:]
        new = torch.addcmul(gates[:, 2 * d :], reset, recurrent[:, 2 * d :]).tanh_()
        ctx.save_for_backward(hidden, weight, reset, update, new, recurrent[:, 2 * d :])
        return torch.lerp(new, hidden, update)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        (grad,) = grads
        hidden, weight, reset, update, new, recurrent_new = ctx.saved_tensors
        d = hidden.shape[1]
        into_gates = torch.empty(len(grad), 3 * d, dtype=grad.dtype, device=grad.device)
        kept = grad * update
        through_new = (grad - kept).mul_(1 - new * new)
        into_gates[:, 2 * d :] = through_new
        torch.mul(through_new * recurrent_new, reset * (1 - reset), out=into_gates[:, :d])
        torch.mul(grad * (hidden - new), update * (1 - update), out=into_gates[:, d : 2 * d])
        into_recurrent = into_gates.clone()
        into_recurrent[:, 2 * d :] *= reset
        return (
            into_gates,
            torch.addmm(kept, into_recurrent, weight),
            into_recurrent.T @ hidden,
            into_recurrent.sum(0),
        )


def gru_step(gates: Tensor, hidden: Tensor, cell: nn.GRUCell) -> Tensor:
    """State of a GRU after one more input, as ``torch.nn.GRUCell`` has it.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014, in PyTorch's variant.

    Args:
        gates: ``[B, 3d]``, the input's part: its product with ``weight_ih``, plus ``bias_ih``.
        hidden: ``[B, d]``.
    """
    weight, bias = cell.weight_hh, cell.bias_hh
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(hidden.device.type):
        d = hidden.shape[1]
        recurrent = hidden @ weight.T + bias
        reset, update = (gates[:, : 2 * d] + recurrent[:, : 2 * d]).sigmoid().chunk(2, 1)
        new = (gates[:, 2 * d :] + reset * recurrent[:, 2 * d :]).tanh()
        return new + update * (hidden - new)
    stepped: Tensor = _GRUStep.apply(gates, hidden, weight, bias)
    return stepped


def gru_step_of_tokens(tokens: Tensor, embedding: Tensor, hidden: Tensor, cell: nn.GRUCell) -> Tensor:
    """State of a GRU after one more embedded token.

    The input projection of all tokens is a small product; those of the batch are looked up in it.

    Args:
        tokens: int64 ``[B]``.
        embedding: ``[V, d]``.
        hidden: ``[B, d]``.
    """
    if hidden.device.type == "cuda" and not torch.compiler.is_compiling():
        # A look-up as a product: to add up its gradient, row by row, takes a GPU ten times as long.
        one_hot = embedding.new_zeros(len(tokens), len(embedding)).scatter_(1, tokens[:, None], 1.0)
        projected = cell.weight_ih @ embedding.T  # [3d, V]
        stepped: Tensor = torch.gru_cell(one_hot, hidden, projected, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        return stepped
    table = F.linear(embedding, cell.weight_ih, cell.bias_ih)
    return gru_step(table.index_select(0, tokens), hidden, cell)
