"""Rollouts by the kernels, and the way back through them; see ``rollout.rollout`` for what is computed."""

from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor

from toolagent_pl.agents import Agent, Judgement, Network
from toolagent_pl.agents.gru import gate_table, gate_table_backward
from toolagent_pl.kernels import integer_kernels, network_kernels
from toolagent_pl.machines import Machine, MachineState
from toolagent_pl.machines.microcode import LAST_TOKEN, RegisterMachine, RegisterState
from toolagent_pl.tokens import PADDING, Token

_MOST_COLUMNS = 3  # vectors of sums that a row has room for


class _Weights(NamedTuple):
    """Parameters of a network."""

    embedding: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    policy: Tensor
    policy_bias: Tensor
    value: Tensor
    value_bias: Tensor

    @classmethod
    def of(cls, network: Network) -> "_Weights":
        """Those of this one."""
        embedding, gru, policy, value = network
        return cls(
            embedding.weight, gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh,
            policy.weight, policy.bias, value.weight, value.bias,
        )  # fmt: skip


class _Record(NamedTuple):
    """What the kernels write down; contiguous.

    Rows are the episodes still running, in the order of their problems; those of all steps lie one after the other.

    Attributes:
        counts: int64 ``[T]``, rows of each step.
        kept, running, heard: int64 ``[T, B]``: which rows of the step before go on; of each row its problem, and the
            token it heard.
        choices: int64 ``[T, B]``.
        judgement: ``[3, T, B]``, log-probability, entropy and value.
        log_policy: ``[T, groups of B, A, lanes]``.
        gates: ``[T * B, 4d]``, the values of n, r, z, h_n by rows.
        states: ``[T * B, d]``, after each step by rows.
    """

    counts: Tensor
    kept: Tensor
    running: Tensor
    heard: Tensor
    choices: Tensor
    judgement: Tensor
    log_policy: Tensor
    gates: Tensor
    states: Tensor

    @classmethod
    def empty(cls, kernels: ModuleType, actions: int, horizon: int, initial: Tensor) -> "_Record":
        """Room for a rollout; for no more than two steps in turns where gradients are disabled."""
        (batch, d), lanes, new = initial.shape, kernels.LANES, initial.new_empty
        recorded = horizon if torch.is_grad_enabled() else 0
        return cls(
            counts=new(horizon, dtype=torch.int64).zero_(),
            kept=new(horizon, batch, dtype=torch.int64),
            running=new(horizon, batch, dtype=torch.int64),
            heard=new(horizon, batch, dtype=torch.int64),
            choices=new(horizon, batch, dtype=torch.int64).zero_(),
            judgement=new(3, horizon, batch).zero_(),
            log_policy=new(recorded, -(-batch // lanes), actions, lanes),
            gates=new(recorded * batch, 4 * d),
            states=new((recorded or 2) * batch, d),
        )

    def arguments(self) -> tuple[int, ...]:
        """As the kernels are told."""
        horizon, batch = self.choices.shape
        return batch, horizon, torch.get_num_threads(), len(self.gates) > 0, *(tensor.data_ptr() for tensor in self)


def kernels_for(agent: Agent, hidden: Tensor, size: int) -> tuple[ModuleType, Network] | None:
    """The kernels, and the agent as they see it; None where they cannot step it from these states of ``size`` rows."""
    kernels = network_kernels(hidden)
    network = agent.network() if kernels else None
    if kernels is None or network is None:
        return None
    embedding, gru, policy, _ = network
    sized = hidden.shape == (size, gru.hidden_size) and len(agent.actions) < _MOST_COLUMNS * kernels.LANES
    fit = sized and network_kernels(embedding.weight, gru.weight_ih, gru.weight_hh, policy.weight)
    return (kernels, network) if fit else None


def play(
    kernels: ModuleType,
    network: Network,
    actions: Tensor,
    machine: Machine,
    state: MachineState,
    initial: Tensor,
    horizon: int,
    noise: Tensor | None,
    choices: Tensor | None,
    past_end: bool,
) -> tuple[Tensor, Tensor, Tensor, MachineState, Judgement | None]:
    """Let the agent act: choices, tokens, mask, the state after all, and the judgement; see ``rollout.Rollout``.

    Args:
        network: The agent.
        actions: int64 ``[A]``, tokens to choose from.
        state: Of the machine, before any action.
        initial: ``[B, d]``, of the agent, the same.
        noise: float32 ``[T, B]``, between 0 and 1, what to draw with; None for the likeliest actions.
        choices: int64 ``[T, B]``, those to make instead; None to choose.
    """
    record = _Record.empty(kernels, len(actions), horizon, initial)
    tokens = torch.full_like(record.choices, PADDING)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        packed = _Packed.of(kernels, network, actions)
        noise, choices = (x if x is None else x.contiguous() for x in (noise, choices))
        sizes = initial.shape[1], len(actions), len(packed.table), past_end, Token.CTX
        inputs = initial, *packed, actions, noise, choices

        def steps(machines: tuple[int, ...], first: int, end: int) -> int:
            own = state.done.contiguous(), tokens, mask
            addresses = (0 if x is None else x.data_ptr() for x in (*inputs, *own))
            taken: int = kernels.rollout(record.arguments(), (*sizes, *addresses), machines, first, end)
            return taken

        if registers := _registers(machine, state):
            state = registers
            taken = steps(_machines(cast(RegisterMachine, machine), registers), 0, horizon)
        else:
            taken = 0
            while taken < horizon and steps(_NO_MACHINES, taken, taken + 1) > taken:
                state = machine.step(state, tokens[taken])
                taken += 1
    judgement = None
    if torch.is_grad_enabled():
        weights = _Weights.of(network)
        judgement = Judgement(*_Judgement.apply(kernels, record, packed.table, actions, taken, initial, *weights))
    return record.choices[:taken], tokens[:taken], mask[:taken], state, judgement


def _registers(machine: Machine, state: MachineState) -> RegisterState | None:
    """A copy of the state that the kernels may change, where they can take the machine's steps."""
    if type(machine).step is not RegisterMachine.step or not isinstance(state, RegisterState):
        return None
    tensors = [tensor.clone(memory_format=torch.contiguous_format) for tensor in state[1:]]
    return RegisterState(state.problems, *tensors) if integer_kernels(*tensors) else None


_NO_MACHINES = (0,) * 15


def _machines(machine: RegisterMachine, state: RegisterState) -> tuple[int, ...]:
    """A machine and its states, as the kernels are told."""
    effects = machine.table(state.problems)
    tokens = PADDING, LAST_TOKEN, Token.MUL, Token.SUB, Token.ANS
    states = (x.data_ptr() for x in (effects, *state[1:]))
    return state.registers.shape[1], len(effects), *tokens, machine.max_steps or 0, *states


class _Packed(NamedTuple):
    """Weights as they are read on the way forward.

    Attributes:
        table: ``[V, 4d]``, what a token contributes to the gates.
        weight: ``[d / lanes, d, 3 * lanes]``, for each vector of states its columns of r, z and h_n, row by row.
        heads: ``[d, columns]``, of the actions' logits and the value, padded to whole vectors of columns.
        bias: ``[columns]``, of the heads.
    """

    table: Tensor
    weight: Tensor
    heads: Tensor
    bias: Tensor

    @classmethod
    def of(cls, kernels: ModuleType, network: Network, actions: Tensor) -> "_Packed":
        """Those of this network."""
        embedding, gru, policy, value = network
        lanes, d, a = kernels.LANES, gru.hidden_size, len(actions)
        weight = gru.weight_hh.view(3, d // lanes, lanes, d).permute(1, 3, 0, 2).contiguous()
        heads = weight.new_zeros(d, -(-(a + 1) // lanes) * lanes)
        heads[:, :a], heads[:, a] = policy.weight.index_select(0, actions).T, value.weight[0]
        bias = weight.new_zeros(heads.shape[1])
        bias[:a], bias[a] = policy.bias.index_select(0, actions), value.bias[0]
        return cls(gate_table(embedding, gru), weight, heads, bias)


def _weight_back(width: int, weight: Tensor) -> Tensor:
    """``weight`` [n, d] as it is read on the way back, ``width`` columns at a time."""
    return weight.view(len(weight), -1, width).transpose(0, 1).contiguous()


class _Sums(NamedTuple):
    """Gradients of the table ``[V, 4d]``, the recurrent weights, the heads ``[A + 1, d]`` and their bias."""

    table: Tensor
    weight_hh: Tensor
    heads: Tensor
    bias: Tensor


class _Judgement(torch.autograd.Function):
    """Hands out what was thought of choices while they were made, and knows its gradient."""

    @staticmethod
    def forward(ctx, kernels, record, table, actions, steps, initial, *weights):  # type: ignore[no-untyped-def]
        """Nothing to compute: it is recorded."""
        ctx.save_for_backward(initial, actions, *weights)
        ctx.kernels, ctx.record, ctx.vocabulary, ctx.steps = kernels, record, len(table), steps
        return record.judgement[:, :steps].unbind(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *d_judgement):  # type: ignore[no-untyped-def]
        """Gradients of the initial states and the weights."""
        initial, actions, *weights = ctx.saved_tensors
        w, (batch, d), a, threads = _Weights(*weights), initial.shape, len(actions), torch.get_num_threads()
        width = next(columns for columns in (3, 2, 1) if d // ctx.kernels.LANES % columns == 0) * ctx.kernels.LANES
        heads = torch.cat([w.policy.index_select(0, actions), w.value])
        inputs = initial, _weight_back(width, w.weight_hh), _weight_back(width, heads), torch.stack(d_judgement)
        d_initial, spare = heads.new_zeros(batch, d), heads.new_zeros(batch, d)
        sums = _Sums(  # each thread has its own
            table=heads.new_zeros(threads, ctx.vocabulary, 4 * d),
            weight_hh=heads.new_zeros(threads, 3 * d, d),
            heads=heads.new_zeros(threads, a + 1, d),
            bias=heads.new_zeros(threads, a + 1),
        )
        addresses = (tensor.data_ptr() for tensor in (*inputs, d_initial, spare, *sums))
        sizes = d, a, ctx.vocabulary, ctx.steps, width // ctx.kernels.LANES
        ctx.kernels.rollout_backward(ctx.record.arguments(), (*sizes, *addresses))
        total = _Sums(*(each.sum(0) for each in sums))
        d_gates = gate_table_backward(total.table, w.embedding, w.weight_ih)
        d_weights = _Weights(
            embedding=d_gates.embedding,
            weight_ih=d_gates.weight_ih,
            weight_hh=total.weight_hh,
            bias_ih=d_gates.bias_ih,
            bias_hh=d_gates.bias_hh,
            policy=torch.zeros_like(w.policy).index_copy_(0, actions, total.heads[:a]),
            policy_bias=torch.zeros_like(w.policy_bias).index_copy_(0, actions, total.bias[:a]),
            value=total.heads[a:],
            value_bias=total.bias[a:],
        )
        return *[None] * 5, d_initial, *d_weights
