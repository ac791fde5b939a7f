"""The actor-critic's network by the kernels: its GRU, the choice of actions, and what is learned of them."""

from types import ModuleType

import torch
from torch import Tensor, nn

from toolagent_pl.agents.agent import Judgement
from toolagent_pl.agents.cell import Rows

_ROWS_OF_PART = 4096
_MOST_COLUMNS = 3  # vectors of sums that a row has room for


def _weight_back(kernels: ModuleType, weight: Tensor) -> tuple[int, Tensor]:
    """How many vectors of columns are summed up at a time on the way back, and ``weight`` [n, d] as it is read then."""
    d = weight.shape[1]
    columns = next(columns for columns in (3, 2, 1) if d // kernels.LANES % columns == 0)
    width = columns * kernels.LANES
    return columns, weight.view(-1, d // width, width).transpose(0, 1).contiguous()


def _product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right``, in parts that lie in the cache: of very many rows, that takes less time than one product."""
    parts = max(1, len(left) // _ROWS_OF_PART)
    rows = len(left) // parts
    in_parts = [x[: parts * rows].unflatten(0, (parts, rows)) for x in (left, right)]
    product = torch.bmm(in_parts[0].transpose(1, 2), in_parts[1]).sum(0)
    return product.addmm_(left[parts * rows :].T, right[parts * rows :])


class CompiledCell:
    """A GRU by the kernels; see ``Cell``.

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
        self._columns, self._weight_back = _weight_back(kernels, weight.detach())

    def step(self, rows: Rows, kept: Tensor | None, last: Tensor) -> None:
        """One step."""
        heard, gates, before, after = rows
        self._kernels.gru_step(
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
        self, rows: Rows, output: Tensor, steps: list[tuple[int, Tensor | None]], batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the initial state, the table and the weight."""
        heard, gates, before, after = rows
        d, threads, vocabulary = self._d, torch.get_num_threads(), len(self._table)
        tables = gates.new_zeros(threads, vocabulary, 4 * d)  # each thread sums up in one of its own
        flow, spare = gates.new_zeros(2, batch, d)
        shapes = torch.tensor([(count, 0 if kept is None else kept.data_ptr()) for count, kept in steps])
        output = output.contiguous()
        self._kernels.gru_backward(
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
        return flow, tables.sum(0), _product_over_rows(gates[:, d:], before)


def heads_fit(kernels: ModuleType, heads: int) -> bool:
    """Whether the kernels have room for so many heads."""
    return heads <= _MOST_COLUMNS * kernels.LANES


def choose(kernels: ModuleType, hidden: Tensor, policy: nn.Linear, actions: Tensor, noise: Tensor | None) -> Tensor:
    """An action for each row, int64 ``[K]``; see ``Agent.choose``.

    Args:
        kernels: The compiled module.
        hidden: ``[K, d]``.
        policy: Gives each token a logit.
        actions: int64 ``[A]``, tokens to choose from.
        noise: float32 ``[K]``, between 0 and 1, what to draw with; None for the likeliest action.
    """
    if noise is not None:
        noise = noise.float().contiguous()
    choice = torch.empty(len(hidden), dtype=torch.int64)
    kernels.heads_choose(
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


def judge(
    kernels: ModuleType, hidden: Tensor, choices: Tensor, policy: nn.Linear, value: nn.Linear, actions: Tensor
) -> Judgement:
    """Log-probability and entropy of the policy, and the value, ``[N]`` each, with gradients; see ``Agent.judge``.

    Args:
        kernels: The compiled module.
        hidden: ``[N, d]``.
        choices: int64 ``[N]``, positions in ``actions``.
        policy, value: The heads.
        actions: int64 ``[A]``, tokens to choose from.
    """
    parameters = policy.weight, policy.bias, value.weight, value.bias
    return Judgement(*_Judge.apply(kernels, hidden, choices, actions, *parameters))


class _Judge(torch.autograd.Function):
    """The heads, their softmax and its entropy."""

    @staticmethod
    def forward(ctx, kernels, hidden, choices, actions, policy, policy_bias, value, value_bias):  # type: ignore[no-untyped-def]
        """Log-probability, entropy and value."""
        weight = torch.cat([policy.index_select(0, actions), value])
        bias = torch.cat([policy_bias.index_select(0, actions), value_bias])
        (count, d), lanes = hidden.shape, kernels.LANES
        log_policy = hidden.new_empty(-(-count // lanes), len(actions), lanes)  # as the kernels keep it
        log_prob, entropy, values = hidden.new_empty(3, count)
        kernels.heads_judge(
            count,
            d,
            len(actions),
            torch.get_num_threads(),
            hidden.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            choices.data_ptr(),
            log_policy.data_ptr(),
            log_prob.data_ptr(),
            entropy.data_ptr(),
            values.data_ptr(),
        )
        ctx.save_for_backward(hidden, choices, actions, weight, log_policy, entropy)
        ctx.kernels, ctx.tokens = kernels, len(policy)
        return log_prob, entropy, values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_log_prob, d_entropy, d_values):  # type: ignore[no-untyped-def]
        """Gradients of the states and of the heads."""
        hidden, choices, actions, weight, log_policy, entropy = ctx.saved_tensors
        columns, weight_back = _weight_back(ctx.kernels, weight)
        gradients, d_hidden = hidden.new_empty(len(hidden), len(weight)), torch.empty_like(hidden)
        outer = [gradient.contiguous() for gradient in (d_log_prob, d_entropy, d_values)]
        ctx.kernels.heads_backward(
            *hidden.shape,
            len(actions),
            columns,
            torch.get_num_threads(),
            weight_back.data_ptr(),
            choices.data_ptr(),
            log_policy.data_ptr(),
            entropy.data_ptr(),
            *(gradient.data_ptr() for gradient in outer),
            gradients.data_ptr(),
            d_hidden.data_ptr(),
        )
        d_weight, d_bias = _product_over_rows(gradients, hidden), gradients.sum(0)
        a = len(actions)
        d_policy = hidden.new_zeros(ctx.tokens, hidden.shape[1]).index_copy_(0, actions, d_weight[:a])
        d_policy_bias = hidden.new_zeros(ctx.tokens).index_copy_(0, actions, d_bias[:a])
        return None, d_hidden, None, None, d_policy, d_policy_bias, d_weight[a : a + 1], d_bias[a : a + 1]
