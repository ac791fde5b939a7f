"""A GRU that is stepped once for acting and learned from without being run again.

While it acts it writes down its gates. The gradient of the whole sequence then follows from them in closed
form: per step one matrix product and a few element-wise operations, and one large product for the weights.

Source of the cell: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014, with
the reset gate applied after the matrix product, as in ``torch.nn.GRU``:
    r = sigmoid(i_r + h_r),  z = sigmoid(i_z + h_z),  n = tanh(i_n + r * h_n),  h' = n + z * (h - n)
where i is what the token heard contributes and h_r, h_z, h_n = W h.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.agents.agent import Recurrence

_MINUS_ONE = torch.tensor(-1.0)


def gate_table(embedding: nn.Embedding, gru: nn.GRU) -> Tensor:
    """What each token of the vocabulary contributes to the gates, ``[V, 4d]``: i_n, r, z, h_n.

    All biases are in it. An embedded token has only ``V`` values, so a row of this table stands for its
    whole input projection.
    """
    weight_ih, _, bias_ih, bias_hh = gru.all_weights[0]
    reset, update, new = F.linear(embedding.weight, weight_ih, bias_ih).chunk(3, 1)
    bias_reset, bias_update, bias_new = bias_hh.chunk(3)
    return torch.cat([new, reset + bias_reset, update + bias_update, bias_new.expand_as(new)], 1)


def gru_step(gates: Tensor, hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """One step, in place.

    Args:
        gates: ``[B, 4d]``; rows of the gate table on entry, with i_n doubled; the values of n, r, z, h_n on return.
        hidden: ``[B, d]``.
        weight: ``[d, 3d]``, the recurrent weights of r, z, h_n, transposed; may be of lower precision.
        out: ``[B, d]``, the next hidden state on return.
    """
    d = hidden.shape[1]
    _add_product(gates[:, d:], hidden, weight)
    new, reset, update, new_hidden = gates.chunk(4, 1)
    gates[:, d : 3 * d].sigmoid_()
    # tanh(x) = 2 sigmoid(2x) - 1: PyTorch's sigmoid is several times as fast on a CPU as its tanh.
    new.addcmul_(reset, new_hidden, value=2).sigmoid_()
    torch.add(_MINUS_ONE, new, alpha=2, out=new)
    torch.lerp(new, hidden, update, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with the product in the precision of ``right``."""
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left.to(right.dtype) @ right)


class _Sequence(torch.autograd.Function):
    """Hands out recorded states of a GRU, and knows their gradient."""

    @staticmethod
    def forward(ctx, initial, table, weight, steps, heard, gates, before, after, weight_step):  # type: ignore[no-untyped-def]
        """Nothing to compute: the states are recorded. The rows of all steps come one after the other, ``[N]``.

        Args:
            initial: ``[B, d]``.
            table: ``[V, 4d]``.
            weight: ``[3d, d]``.
            steps: For each step how many rows it has, and which of those before they go on from (None for all).
            heard: int64 ``[N]``.
            gates: ``[N, 4d]``, the values of n, r, z, h_n.
            before, after: ``[N, d]``, the states that each row goes on from, and gets to.
            weight_step: ``weight`` transposed, in the precision of the matrix products.
        """
        ctx.save_for_backward(heard, gates, before, after, weight_step)
        ctx.vocabulary, ctx.batch, ctx.steps = table.shape[0], initial.shape[0], steps
        return after

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, output):  # type: ignore[no-untyped-def]
        """Back-propagation through time.

        With ``D`` the gradient of (i_n, r, z, h_n) before their activations and ``f`` that of a step's state:
            D_i_n = f (1 - z) (1 - n^2),  D_z = f (1 - z) z (h - n),  D_h_n = D_i_n r,  D_r = D_i_n h_n r (1 - r)
        and ``z (h - n) = h' - n``. They take the places of the gates, whose memory is at hand; D_r and D_h_n
        change places, so that each can be made from what is still there.
        """
        heard, gates, before, after, weight_step = ctx.saved_tensors
        d = output.shape[1]
        weight_reset, weight_update, weight_new = weight_step.T.chunk(3)
        weight = torch.cat([weight_new, weight_update, weight_reset])  # [3d, d]
        flow = None  # f
        end = len(output)
        for t in reversed(range(len(ctx.steps))):
            count, kept = ctx.steps[t]
            rows, end = slice(end - count, end), end - count
            flow = output[rows].clone() if flow is None else flow.add_(output[rows])
            new, reset, update, new_hidden = gates[rows].chunk(4, 1)
            carried = flow * update
            slope = flow.sub_(carried)  # f (1 - z)
            torch.sub(after[rows], new, out=update).mul_(slope)
            torch.ops.aten.tanh_backward.grad_input(slope, new, grad_input=new)
            new_hidden.mul_(new)
            torch.ops.aten.sigmoid_backward.grad_input(new_hidden, reset, grad_input=new_hidden)
            reset.mul_(new)
            _add_product(carried, gates[rows, d:], weight)
            flow = carried
            if kept is not None:  # nothing comes back from where an episode has ended
                length = ctx.steps[t - 1][0] if t else ctx.batch
                flow = flow.new_zeros(length, d).index_copy_(0, kept, carried)
        product = weight_step.dtype
        d_weight = gates[:, d:].T.to(product) @ before.to(product)
        d_table = _sum_by_token(gates, heard, ctx.vocabulary)
        new, new_hidden, update, reset = d_table.chunk(4, 1)
        d_table = torch.cat([new, reset, update, new_hidden], 1)
        d_weight = torch.cat(d_weight.to(gates.dtype).chunk(3)[::-1])
        return flow, d_table, d_weight, None, None, None, None, None, None


def _sum_by_token(rows: Tensor, token: Tensor, vocabulary: int) -> Tensor:
    """Sum of the rows ``[N, k]`` of each token, ``[V, k]``."""
    if rows.device.type == "cpu":
        return rows.new_zeros(vocabulary, rows.shape[1]).index_add_(0, token, rows)
    # Few tokens get many rows each: additions one by one would wait for each other, and in no fixed order.
    one_hot = torch.arange(vocabulary, device=rows.device)[:, None] == token
    return one_hot.to(rows.dtype) @ rows


class RecordedGRU(Recurrence):
    """A GRU that writes down its gates while it is stepped; where gradients are disabled it writes nothing down.

    Args:
        embedding: Of the tokens heard.
        gru: Its weights; one layer, one direction.
        initial: ``[B, d]``, state before the first token.
        horizon: Most steps.
    """

    def __init__(self, embedding: nn.Embedding, gru: nn.GRU, initial: Tensor, horizon: int) -> None:
        self._initial, self._weight = initial, gru.all_weights[0][1]
        self._table = gate_table(embedding, gru)
        batch, d = initial.shape
        kind = initial.device.type
        low = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        precision = torch.get_autocast_dtype(kind) if low else self._weight.dtype
        self._recording = torch.is_grad_enabled()  # else all steps use the same room
        room = batch * (horizon if self._recording else 1)
        with torch.no_grad():
            self._rows = self._table.to(self._weight.dtype, copy=True)
            self._rows[:, :d] *= 2  # as gru_step wants it
            self._weight_step = self._weight.T.to(precision).contiguous()
            self._gates = self._rows.new_empty(room, 4 * d)
            self._before, self._after = self._rows.new_empty(2, room, d)
            self._last = initial.to(self._rows.dtype)  # states of the last step
        self._end = 0  # of the rows written
        self._heard: list[Tensor] = []
        self._steps: list[tuple[int, Tensor | None]] = []

    @torch.no_grad()
    def step(self, heard: Tensor, kept: Tensor | None = None) -> Tensor:
        """State after one more token heard."""
        count = len(heard)
        rows = slice(self._end, self._end + count)
        gates, before, after = self._gates[rows], self._before[rows], self._after[rows]
        if kept is None:
            before.copy_(self._last)
        else:
            torch.index_select(self._last, 0, kept, out=before)
        torch.index_select(self._rows, 0, heard, out=gates)
        gru_step(gates, before, self._weight_step, out=after)
        self._last = after
        if self._recording:
            self._end += count
            self._heard.append(heard)
            self._steps.append((count, kept))
        return after

    def replay(self) -> Tensor:
        """All states, with gradients."""
        n = self._end
        states: Tensor = _Sequence.apply(
            self._initial,
            self._table,
            self._weight,
            self._steps,
            torch.cat(self._heard),
            self._gates[:n],
            self._before[:n],
            self._after[:n],
            self._weight_step,
        )
        return states
