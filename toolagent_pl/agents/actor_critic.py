"""The tutorial's network: embeddings for tokens and stage, a GRU, a policy head and a value head."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.agents.agent import Agent
from toolagent_pl.problems import Problems
from toolagent_pl.tokens import STAGED_VOCABULARY, TOOL_NAMES, Token

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
        ValueError: If a size is not positive, or an action is unknown or repeated.
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
            if size < 1:
                raise ValueError(f"model.agent.{option}: got {size}, expected at least 1")
        self.context = context
        self.embedding = nn.Embedding(STAGED_VOCABULARY, d)
        self.stage_embedding = nn.Embedding(stages, d)
        self.gru = nn.GRU(d, d)
        self.policy = nn.Linear(d, STAGED_VOCABULARY)
        self.value = nn.Linear(d, 1)
        self.actions: Tensor
        self.register_buffer("actions", torch.tensor(_checked_actions(actions)), persistent=False)

    def encode(self, problems: Problems) -> Tensor:
        """State of the GRU before the first token, ``[B, d]``."""
        observation = problems.observation
        read = observation != Token.EOS  # padding is not read, so company in the batch does not matter
        # Counting tokens turns the mean of embeddings into one small matrix product, forward and backward.
        vocabulary = torch.arange(STAGED_VOCABULARY, device=observation.device)
        counts = ((observation[..., None] == vocabulary) & read[..., None]).sum(1)  # [B, V]
        weight = self.embedding.weight
        mean = (counts / read.sum(1, keepdim=True)).to(weight.dtype) @ weight  # [B, d]
        if self.context == "batch":
            mean = mean.mean(0, keepdim=True)
        return torch.tanh(mean + self.stage_embedding(problems.stage))

    def step(self, hidden: Tensor, heard: Tensor) -> Tensor:
        """State of the GRU after one more token heard, ``[B, d]``."""
        # What each token contributes to the gates is a table [V, 3d]: no matrix product for each problem.
        weight_ih, weight_hh, bias_ih, bias_hh = self.gru.all_weights[0]
        table = F.linear(self.embedding.weight, weight_ih, bias_ih)
        reset_in, update_in, new_in = table[heard].chunk(3, 1)
        reset_h, update_h, new_h = F.linear(hidden, weight_hh, bias_hh).chunk(3, 1)
        update = torch.sigmoid(update_in + update_h)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_h) * new_h)
        return new + update * (hidden - new)

    def unroll(self, hidden: Tensor, heard: Tensor) -> Tensor:
        """States of the GRU after each token heard, ``[T, B, d]``."""
        return self.gru(self.embedding(heard), hidden[None])[0]

    def log_policy(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the allowed actions, float32 ``[..., A]``."""
        logits = F.linear(hidden, self.policy.weight[self.actions], self.policy.bias[self.actions])
        return F.log_softmax(logits.float(), dim=-1)

    def state_value(self, hidden: Tensor) -> Tensor:
        """Expected return, float32 ``[...]``."""
        return self.value(hidden).squeeze(-1).float()


def _checked_actions(names: Sequence[str]) -> list[int]:
    """Tokens of these names."""
    known = {str(token): token for token in Token if token < STAGED_VOCABULARY}
    for name in names:
        if name not in known:
            raise ValueError(f"model.agent.actions: got unknown {name!r}, expected some of {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"model.agent.actions: got {list(names)}, expected one or more tokens, each at most once")
    return [int(known[name]) for name in names]
