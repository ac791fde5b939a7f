"""The tutorial's network: embeddings for tokens and stage, a GRU, a policy head and a value head."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.agents.agent import Agent, Network, Recurrence
from toolagent_pl.agents.gru import RecordedGRU, gate_table, gru_step
from toolagent_pl.problems import Problems
from toolagent_pl.tokens import STAGED_VOCABULARY, TOOL_NAMES, Token

LARGEST_SIZE = 8192  # a GRU of this width has 400 million weights
Context = Literal["problem", "batch"]


class ActorCritic(Agent):
    """Reads a problem once into the state of a GRU, then emits tokens that it hears back one at a time.

    Args:
        stages: How many stages there are to tell apart.
        d: Width of embeddings and GRU.
        actions: Names of the tokens that may be chosen. The heads know all tokens; the others get no
            probability.
        context: ``problem`` gives each problem the mean of its own embedded tokens; ``batch`` gives every
            problem the mean over the whole batch, as the tutorial does.

    Raises:
        ValueError: If a size is out of range, or an action is unknown or repeated.
    """

    def __init__(
        self,
        stages: int = 3,
        d: int = 96,
        actions: Sequence[str] = TOOL_NAMES,
        context: Context = "problem",
    ) -> None:
        super().__init__()
        for option, size in (("d", d), ("stages", stages)):
            if not 1 <= size <= LARGEST_SIZE:
                raise ValueError(f"model.agent.{option}: got {size}, expected at least 1 and at most {LARGEST_SIZE}")
        if context not in get_args(Context):
            raise ValueError(f"model.agent.context: got {context!r}, expected {' or '.join(get_args(Context))}")
        self.context = context
        self.embedding = nn.Embedding(STAGED_VOCABULARY, d)
        self.stage_embedding = nn.Embedding(stages, d)
        self.gru = nn.GRUCell(d, d)
        self.policy = nn.Linear(d, STAGED_VOCABULARY)
        self.value = nn.Linear(d, 1)
        self.actions: Tensor
        self.register_buffer("actions", torch.tensor(_checked_actions(actions)), persistent=False)

    def encode(self, problems: Problems) -> Tensor:
        """State of the GRU before the first token, ``[B, d]``."""
        tokens = problems.observation
        # Padding is not read, so that company in the batch does not matter.
        read = tokens.ne(Token.EOS).to(self.embedding.weight.dtype)
        # How often each token is there, times the embedding: a product instead of many look-ups and additions.
        counts = read.new_zeros(problems.size, STAGED_VOCABULARY).scatter_add_(1, tokens, read)  # [B, V]
        counts = counts / read.sum(1, keepdim=True)
        if self.context == "batch":
            counts = counts.mean(0, keepdim=True)
        context = counts @ self.embedding.weight + self.stage_embedding(problems.stage)
        return 2 * torch.sigmoid(2 * context) - 1  # tanh, which takes PyTorch several times as long on a CPU

    def step(self, hidden: Tensor, heard: Tensor) -> Tensor:
        """State after one more token heard, for compilers. Whoever overrides it must restore ``Agent.begin``, too."""
        return gru_step(gate_table(self.embedding, self.gru), self.gru.weight_hh, hidden, heard)

    def begin(self, hidden: Tensor, horizon: int) -> Recurrence:
        """A GRU that knows its gradient; a compiler works it out from the steps, and joins their operations."""
        if torch.compiler.is_compiling():
            return super().begin(hidden, horizon)
        return RecordedGRU(self.embedding, self.gru, hidden, horizon)

    def network(self) -> Network | None:
        """The GRU and its heads, unless a derived agent has some of its own."""
        own = _steps_by_itself(type(self))
        return None if own else Network(self.embedding, self.gru, self.policy, self.value)

    def log_policy(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the allowed actions, float32 ``[..., A]``."""
        logits = _actions_first(hidden, self.policy.weight[self.actions], self.policy.bias[self.actions])
        return F.log_softmax(logits, 0).T.unflatten(0, hidden.shape[:-1])

    def flop_per_token(self) -> int:
        """FLOP that training on one action takes at least. The input projection of a token is looked up."""
        recurrent = self.gru.weight_hh.numel()
        return 6 * (recurrent + (len(self.actions) + 1) * self.value.in_features)

    def values(self, hidden: Tensor) -> Tensor:
        """Expected return from here on, float32 ``[...]``."""
        values: Tensor = self.value(hidden).float()
        return values[..., 0]


@lru_cache
def _steps_by_itself(kind: type[ActorCritic]) -> bool:
    """Whether a derived agent does something between ``encode`` and its choices that only PyTorch knows."""
    steps = ("step", "begin", "choose", "judge", "log_policy", "values")
    return any(getattr(kind, name) is not getattr(ActorCritic, name) for name in steps)


def _actions_first(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer on ``[..., d]``, float32 ``[A, N]``.

    On a CPU the softmax over a few rows is ten times as fast as that over as many neighbouring numbers.
    """
    return torch.addmm(bias[:, None], weight, hidden.flatten(0, -2).T).float()


def _checked_actions(names: Sequence[str]) -> list[int]:
    """Tokens of these names."""
    known = {str(token): token for token in Token if token < STAGED_VOCABULARY}
    for name in names:
        if name not in known:
            raise ValueError(f"model.agent.actions: got unknown {name!r}, expected some of {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"model.agent.actions: got {list(names)}, expected one or more tokens, each at most once")
    return [int(known[name]) for name in names]
