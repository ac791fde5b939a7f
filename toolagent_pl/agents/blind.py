"""The tutorial's agent: it is told the operands and the stage, and never hears more than its own tokens."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from toolagent_pl.agents.agent import Agent, Policy
from toolagent_pl.agents.gru import gru_step_of_tokens
from toolagent_pl.envs import EnvSpec, Observation
from toolagent_pl.problems import Problems
from toolagent_pl.tools import Token

LARGEST_SIZE = 8192  # a GRU of this width has 400 million weights
Context = Literal["problem", "batch"]


class BlindCache(NamedTuple):
    """State of the GRU, ``[B, d]``."""

    hidden: Tensor


class BlindAgent(Agent):
    """Embeddings for operands and stage, a GRU, a policy head and a value head.

    Args:
        spec: The task; the command line fills it in.
        d: Width of embeddings and GRU.
        actions: Names of the tokens that may be chosen.
        context: ``problem`` gives each problem the mean of its own embedded tokens; ``batch`` gives every
            problem the mean over the whole batch, as the tutorial does.

    Raises:
        ValueError: If a size is out of range, or an action is unknown or repeated.
    """

    told_stage = True
    most_digits = 1

    def __init__(
        self, spec: EnvSpec, d: int = 96, actions: Sequence[str] | None = None, context: Context = "problem"
    ) -> None:
        super().__init__(spec, actions)
        if not 1 <= d <= LARGEST_SIZE:
            raise ValueError(f"model.agent.d: got {d}, expected at least 1 and at most {LARGEST_SIZE}")
        if context not in get_args(Context):
            raise ValueError(f"model.agent.context: got {context}, expected {' or '.join(get_args(Context))}")
        self.context = context
        self.tokens = max(spec.vocabulary.size - 2, int(self.actions.max()) + 1)  # no brackets
        self.embedding = nn.Embedding(self.tokens, d)
        self.stage_embedding = nn.Embedding(spec.stages, d)
        self.gru = nn.GRUCell(d, d)
        self.policy = nn.Linear(d, len(self.actions))
        self.value = nn.Linear(d, 1)

    def prefill(self, problems: Problems) -> BlindCache:
        """State of the GRU before the first token."""
        # The operands, and CTX behind them; how often each is there times the embedding, instead of many look-ups.
        position = torch.arange(problems.operands.shape[1], device=problems.device)
        inside = (position < problems.length[:, None]).to(self.embedding.weight.dtype)
        counts = inside.new_zeros(problems.size, self.tokens).scatter_add_(1, problems.operands, inside)  # [B, V]
        counts[:, Token.CTX] = 1
        counts = counts / (problems.length[:, None] + 1)
        if self.context == "batch":
            counts = counts.mean(0, keepdim=True)
        context = counts @ self.embedding.weight + self.stage_embedding(problems.stage)
        return BlindCache(torch.tanh(context))

    def decode(self, cache: BlindCache, previous: Tensor, observation: Observation) -> tuple[Policy, BlindCache]:
        """One step of the GRU."""
        hidden = gru_step_of_tokens(previous, self.embedding.weight, cache.hidden, self.gru)
        return Policy(self.policy(hidden), self.value(hidden)[:, 0]), BlindCache(hidden)

    def flop_per_token(self) -> float:
        """FLOP that training on one action takes at least. The input projection of a token is looked up."""
        return 6.0 * (self.gru.weight_hh.numel() + (len(self.actions) + 1) * self.value.in_features)
