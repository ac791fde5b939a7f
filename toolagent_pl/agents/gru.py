"""A GRU that is stepped once for acting and learned from without being run again.

While it acts it writes down its gates. The gradient of the whole sequence then follows from them in closed
form: per step one matrix product and a few element-wise operations, and one large product for the weights.

Source of the cell: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014, with
the reset gate applied after the matrix product, as in ``torch.nn.GRUCell``:
    r = sigmoid(i_r + h_r),  z = sigmoid(i_z + h_z),  n = tanh(i_n + r * h_n),  h' = n + z * (h - n)
where i is what the token heard contributes and h_r, h_z, h_n = W h.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.agents.agent import Recurrence

_MINUS_ONE = torch.tensor(-1.0)


def gate_table(embedding: nn.Embedding, gru: nn.GRUCell) -> Tensor:
    """What each token of the vocabulary contributes to the gates, ``[V, 4d]``: i_n, r, z, h_n.

    All biases are in it. An embedded token has only ``V`` values, so a row of this table stands for its
    whole input projection.
    """
    reset, update, new = F.linear(embedding.weight, gru.weight_ih, gru.bias_ih).chunk(3, 1)
    bias_reset, bias_update, bias_new = gru.bias_hh.chunk(3)
    return torch.cat([new, reset + bias_reset, update + bias_update, bias_new.expand_as(new)], 1)


class GateGradients(NamedTuple):
    """Gradients of the weights that a table of gates is made of."""

    embedding: Tensor
    weight_ih: Tensor
    bias_ih: Tensor
    bias_hh: Tensor


def gate_table_backward(d_table: Tensor, embedding: Tensor, weight_ih: Tensor) -> GateGradients:
    """The way back through ``gate_table``, for those who do without autograd.

    Args:
        d_table: ``[V, 4d]``.
        embedding: ``[V, e]``.
        weight_ih: ``[3d, e]``.
    """
    d = len(weight_ih) // 3
    d_new, d_reset_update, d_new_hidden = d_table.split([d, 2 * d, d], 1)
    d_input = torch.cat([d_reset_update, d_new], 1)  # [V, 3d]
    d_bias_hh = torch.cat([d_reset_update, d_new_hidden], 1).sum(0)
    return GateGradients(d_input @ weight_ih, d_input.T @ embedding, d_input.sum(0), d_bias_hh)


def gru_step(table: Tensor, weight: Tensor, hidden: Tensor, heard: Tensor) -> Tensor:
    """State after one more token heard, ``[B, d]``: the definition, for autograd.

    Args:
        table: ``[V, 4d]``, from ``gate_table``.
        weight: ``[3d, d]``.
        hidden: ``[B, d]``.
        heard: int64 ``[B]``.
    """
    i_new, i_reset, i_update, bias_new = _Rows.apply(table, heard).chunk(4, 1)
    h_reset, h_update, h_new = F.linear(hidden, weight).chunk(3, 1)
    reset, update = torch.sigmoid(i_reset + h_reset), torch.sigmoid(i_update + h_update)
    new = torch.tanh(i_new + reset * (h_new + bias_new))
    return new + update * (hidden - new)


class Rows(NamedTuple):
    """What ``N`` rows write down in a step, or in several, one step after the other.

    Attributes:
        heard: int64 ``[N]``, tokens.
        gates: ``[N, 4d]``, the values of n, r, z, h_n.
        before, after: ``[N, d]``, the states that each row goes on from, and gets to.
    """

    heard: Tensor
    gates: Tensor
    before: Tensor
    after: Tensor


class Cell:
    """A GRU that takes steps, and knows the gradients of those taken.

    Args:
        table: ``[V, 4d]``.
        weight: ``[3d, d]``.
        precision: Of the matrix products.
    """

    def __init__(self, table: Tensor, weight: Tensor, precision: torch.dtype) -> None:
        self._rows = table.detach().to(weight.dtype, copy=True)
        self._rows[:, : weight.shape[1]] *= 2  # for tanh(x) = 2 sigmoid(2x) - 1
        self._weight = weight.detach().T.to(precision).contiguous()  # [d, 3d]

    def step(self, rows: Rows, kept: Tensor | None, last: Tensor) -> None:
        """One step of ``K`` rows; gates and states are written.

        Args:
            rows: The ``K`` rows, tokens given.
            kept: int64 ``[K]``, rows of ``last`` that go on; None for all of them.
            last: ``[L, d]``, states after the step before.
        """
        heard, gates, before, after = rows
        d = last.shape[1]
        if kept is None:
            before.copy_(last)
        else:
            torch.index_select(last, 0, kept, out=before)
        torch.index_select(self._rows, 0, heard, out=gates)
        _add_product(gates[:, d:], before, self._weight)
        new, reset, update, new_hidden = gates.chunk(4, 1)
        gates[:, d : 3 * d].sigmoid_()
        # PyTorch's sigmoid is several times as fast on a CPU as its tanh.
        new.addcmul_(reset, new_hidden, value=2).sigmoid_()
        torch.add(_MINUS_ONE, new, alpha=2, out=new)
        torch.lerp(new, before, update, out=after)

    def backward(
        self, rows: Rows, output: Tensor, steps: list[tuple[int, Tensor | None]], batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Back-propagation through time.

        With ``D`` the gradient of (i_n, r, z, h_n) before their activations and ``f`` that of a step's state:
            D_i_n = f (1 - z) (1 - n^2),  D_z = f (1 - z) z (h - n),  D_h_n = D_i_n r,  D_r = D_i_n h_n r (1 - r)
        and ``z (h - n) = h' - n``; ``f z + (D_r, D_z, D_h_n) W`` is what the step before gets.

        The gradients take the places of the gates, whose memory is at hand; D_r and D_h_n change places, so that
        each can be made from what is still there.

        Args:
            rows: Those of all steps, ``[N]``. The gates are overwritten.
            output: ``[N, d]``, gradient of ``rows.after``.
            steps: For each step how many rows it has, and ``kept``.
            batch: Rows before the first step.

        Returns:
            Gradients of the initial state ``[batch, d]``, the table ``[V, 4d]`` and the weight ``[3d, d]``.
        """
        heard, gates, before, after = rows
        d = output.shape[1]
        weight_reset, weight_update, weight_new = self._weight.T.chunk(3)
        weight = torch.cat([weight_new, weight_update, weight_reset])  # [3d, d]
        flow = None  # f
        end = len(output)
        for t in reversed(range(len(steps))):
            count, kept = steps[t]
            part, end = slice(end - count, end), end - count
            flow = output[part].clone() if flow is None else flow.add_(output[part])
            new, reset, update, new_hidden = gates[part].chunk(4, 1)
            carried = flow * update
            slope = flow.sub_(carried)  # f (1 - z)
            torch.sub(after[part], new, out=update).mul_(slope)
            torch.ops.aten.tanh_backward.grad_input(slope, new, grad_input=new)
            new_hidden.mul_(new)
            torch.ops.aten.sigmoid_backward.grad_input(new_hidden, reset, grad_input=new_hidden)
            reset.mul_(new)
            _add_product(carried, gates[part, d:], weight)
            flow = carried
            if kept is not None:  # nothing comes back from where an episode has ended
                length = steps[t - 1][0] if t else batch
                flow = flow.new_zeros(length, d).index_copy_(0, kept, carried)
        assert flow is not None
        product = self._weight.dtype
        d_weight = gates[:, d:].T.to(product) @ before.to(product)
        new, new_hidden, update, reset = _sum_by_token(gates, heard, len(self._rows)).chunk(4, 1)
        d_table = torch.cat([new, reset, update, new_hidden], 1)
        return flow, d_table, torch.cat(d_weight.to(gates.dtype).chunk(3)[::-1])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with the product in the precision of ``right``."""
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left.to(right.dtype) @ right)


class _Sequence(torch.autograd.Function):
    """Hands out recorded states of a GRU, and knows their gradient."""

    @staticmethod
    def forward(ctx, initial, table, weight, cell, steps, heard, gates, before, after):  # type: ignore[no-untyped-def]
        """Nothing to compute: the states are recorded."""
        ctx.save_for_backward(heard, gates, before, after)
        ctx.cell, ctx.steps, ctx.batch = cell, steps, len(initial)
        return after

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, output):  # type: ignore[no-untyped-def]
        """Gradients of the first three inputs."""
        return *ctx.cell.backward(Rows(*ctx.saved_tensors), output, ctx.steps, ctx.batch), *[None] * 6


def _sum_by_token(rows: Tensor, token: Tensor, vocabulary: int) -> Tensor:
    """Sum of the rows ``[N, k]`` of each token, ``[V, k]``."""
    if rows.device.type == "cpu":
        return rows.new_zeros(vocabulary, rows.shape[1]).index_add_(0, token, rows)
    # Few tokens get many rows each: additions one by one would wait for each other, and in no fixed order.
    one_hot = torch.arange(vocabulary, device=rows.device)[:, None] == token
    return one_hot.to(rows.dtype) @ rows


class _Rows(torch.autograd.Function):
    """Rows of a table, one for each token."""

    @staticmethod
    def forward(ctx, table, token):  # type: ignore[no-untyped-def]
        """``[N, k]``."""
        ctx.save_for_backward(token)
        ctx.vocabulary = len(table)
        return table.index_select(0, token)

    @staticmethod
    def backward(ctx, rows):  # type: ignore[no-untyped-def]
        """Gradient of the table."""
        (token,) = ctx.saved_tensors
        return _sum_by_token(rows, token, ctx.vocabulary), None


class RecordedGRU(Recurrence):
    """A GRU that writes down its gates while it is stepped; where gradients are disabled it writes nothing down.

    Args:
        embedding: Of the tokens heard.
        gru: Its weights.
        initial: ``[B, d]``, state before the first token.
        horizon: Most steps.
    """

    def __init__(self, embedding: nn.Embedding, gru: nn.GRUCell, initial: Tensor, horizon: int) -> None:
        self._initial, self._weight = initial, gru.weight_hh
        self._table = gate_table(embedding, gru)
        batch, d = initial.shape
        kind = initial.device.type
        low = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        precision = torch.get_autocast_dtype(kind) if low else self._weight.dtype
        self._cell = Cell(self._table, self._weight, precision)
        self._recording = torch.is_grad_enabled()  # else steps use two places in turns
        room = batch * (horizon if self._recording else 2)
        self._gates = self._weight.new_empty(room, 4 * d)
        self._before, self._after = self._weight.new_empty(2, room, d)
        self._last = initial.detach().to(self._weight.dtype)  # states of the last step
        self._end = 0  # of the rows written, where the next ones go
        self._heard: list[Tensor] = []
        self._steps: list[tuple[int, Tensor | None]] = []

    @torch.no_grad()
    def step(self, heard: Tensor, kept: Tensor | None = None) -> Tensor:
        """State after one more token heard."""
        count, heard = len(heard), heard.contiguous()
        rows = slice(self._end, self._end + count)
        after = self._after[rows]
        self._cell.step(Rows(heard, self._gates[rows], self._before[rows], after), kept, self._last)
        self._last = after
        self._end = self._end + count if self._recording else len(self._after) // 2 - self._end
        if self._recording:
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
            self._cell,
            self._steps,
            torch.cat(self._heard),
            self._gates[:n],
            self._before[:n],
            self._after[:n],
        )
        return states
