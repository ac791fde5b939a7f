"""A step of a GRU that knows its gradient.

Autograd would record ten small operations a step and go back through each of them.
"""

from typing import Any

import torch
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
