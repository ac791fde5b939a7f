"""The tutorial's agent: it is told the operands and the stage, and never hears more than its own tokens."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import Observation, RegisterEnv
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl.agent import Agent, Evaluation, Policy, evaluate
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.rollout import Rollout

MAX_SIZE = 8192  # a GRU of this width has 400 million weights
Context = Literal["problem", "batch"]


class BlindAgent(Agent):
    """Embeddings for operands and stage, a GRU, a policy head and a value head.

    Args:
        env: The environment.
        d: Width of embeddings and GRU.
        context: ``problem`` gives each problem the mean of its own embedded tokens; ``batch`` gives every problem the
            mean over the whole batch, as the tutorial does.

    Raises:
        ValueError: If a size is out of range, or the environment's operands have several digits.
    """

    stage_conditioned = True
    tokens: Tensor

    def __init__(self, env: RegisterEnv, d: int = 96, context: Context = "problem") -> None:
        super().__init__(env)
        check_range(at_least=1, at_most=MAX_SIZE, d=d)
        if context not in get_args(Context):
            raise ValueError(f"context: got {context}, expected {' or '.join(get_args(Context))}")
        if env.max_digits > 1:
            raise ValueError(f"stages: got {env.max_digits} digits, expected 1 for BlindAgent, which does not read")
        self.context = context
        self.register_buffer("tokens", torch.tensor([int(Token.CTX), *env.tokens]), persistent=False)
        size = max(env.vocabulary.size - 2, max(env.tokens) + 1)  # no brackets
        self.embedding = nn.Embedding(size, d)
        self.stage_embedding = nn.Embedding(len(env.stages), d)
        self.gru = nn.GRU(d, d)
        self.policy = nn.Linear(d, self.actions)
        self.value = nn.Linear(d, 1)

    def prefill(self, problems: Problems) -> Tensor:
        """State of the GRU before the first token, ``[B, d]``."""
        # The operands, and CTX behind them; how often each is there times the embedding, instead of many look-ups.
        position = torch.arange(problems.operands.shape[1], device=problems.device)
        inside = (position < problems.length[:, None]).to(self.embedding.weight.dtype)
        size = self.embedding.num_embeddings
        counts = inside.new_zeros(problems.size, size).scatter_add_(1, problems.operands, inside)  # [B, V]
        counts[:, Token.CTX] = 1
        counts = counts / (problems.length[:, None] + 1)
        if self.context == "batch":
            counts = counts.mean(0, keepdim=True)
        context = counts @ self.embedding.weight + self.stage_embedding(problems.stage)
        return torch.tanh(context)

    def decode(self, cache: Tensor, previous: Tensor, observation: Observation) -> tuple[Policy, Tensor]:
        """One step of the GRU."""
        hidden = torch.gru_cell(self._embedded(previous), cache, *self.gru.all_weights[0])
        return Policy(self.policy(hidden), self.value(hidden)[:, 0]), hidden

    def forward(self, rollout: Rollout) -> Evaluation:
        """Evaluate all steps in one pass of the GRU, since its inputs are known."""
        start = self.prefill(rollout.problems)
        hidden, _ = self.gru(self._embedded(rollout.previous), start[None])
        flat = hidden.flatten(0, 1)
        allowed = None if rollout.action_mask is None else rollout.action_mask.flatten(0, 1)
        found = evaluate(Policy(self.policy(flat), self.value(flat)[:, 0]), rollout.actions.flatten(), allowed)
        whole = (x.view_as(rollout.mask) for x in found if x is not None)
        return Evaluation(*(torch.where(rollout.mask, x, 0) for x in whole))

    def _embedded(self, previous: Tensor) -> Tensor:
        """Embeddings of the tokens of actions, ``[..., d]``; CTX where there is none."""
        return self.embedding(self.tokens[previous + 1])

    def flop_per_token(self) -> float:
        """FLOP that training on one action takes at least. The input projection of a token could be looked up."""
        return 6.0 * (self.gru.all_weights[0][1].numel() + (self.actions + 1) * self.value.in_features)
