"""An agent for any observation made of vectors: a multilayer perceptron, by option with a GRU as memory."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolagent_pl.rl.agent import Agent, Policy
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import Env, Observation

MAX_SIZE = 8192


class MLPCache(NamedTuple):
    """State of the GRU, ``[B, h]``; ``[B, 0]`` without one."""

    hidden: Tensor


class MLPAgent(Agent):
    """Sees the tensors of an observation as one vector, and its action before; remembers by a GRU, if at all.

    Source of the GRU: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014.

    Args:
        env: The environment.
        hidden: Width of both layers, and of the GRU.
        recurrent: Whether there is a GRU between them, for environments that do not show all at every step.

    Raises:
        ValueError: If the width is out of range.
    """

    def __init__(self, env: Env, hidden: int = 64, recurrent: bool = False) -> None:
        super().__init__(env)
        check_range(at_least=1, at_most=MAX_SIZE, hidden=hidden)
        zero = torch.zeros(1, dtype=torch.int64)
        seen = _vector(env.observe(env.reset(env.problems(zero, zero, 0, held_out=False))))
        self.hidden = hidden
        self.look = nn.Linear(seen.shape[1] + self.actions + 1, hidden)
        self.gru = nn.GRUCell(hidden, hidden) if recurrent else None
        self.mix = nn.Linear(hidden, hidden)
        self.policy = nn.Linear(hidden, self.actions)
        self.value = nn.Linear(hidden, 1)
        with torch.no_grad():
            self.policy.weight.mul_(0.1)  # begin with nearly equal probabilities and values
            self.value.weight.mul_(0.1)

    def prefill(self, problems: Any) -> MLPCache:
        """Nothing is read: all that there is to know comes as observations."""
        width = 0 if self.gru is None else self.hidden
        return MLPCache(self.look.weight.new_zeros(len(problems.number), width))

    def decode(self, cache: MLPCache, previous: Tensor, observation: Observation) -> tuple[Policy, MLPCache]:
        """Look, remember, decide."""
        # Not one_hot, which looks at the numbers, and has a GPU waited for.
        before = previous[:, None] == torch.arange(-1, self.actions, device=previous.device)
        x = self.look(torch.cat([_vector(observation), before], 1).to(self.look.weight.dtype)).relu()
        hidden = cache.hidden
        if self.gru is not None:
            x = hidden = self.gru(x, hidden)
        x = self.mix(x).relu()
        return Policy(self.policy(x), self.value(x)[:, 0]), MLPCache(hidden)


def _vector(observation: Observation) -> Tensor:
    """All tensors of an observation as one, float32 ``[B, F]``."""
    return torch.cat([x.flatten(1).float() if x.ndim > 1 else x.float()[:, None] for x in observation], 1)
