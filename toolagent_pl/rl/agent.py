"""What an agent is: a network that reads a problem once, and then decodes one action after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.rl.env import Env, Observation, Record, select

Cache = Any  # a tree of tensors (see ``rl.trees``) whose first dimension is B
MASKED = -1e9  # logit of an action that may not be taken; not infinite, so that entropy and gradients stay finite


class Policy(NamedTuple):
    """What an agent decodes before an action.

    Attributes:
        logits: float ``[B, A]``.
        value: float ``[B]``, the expected return from here on; None for an agent without a critic.
    """

    logits: Tensor
    value: Tensor | None


class Evaluation(NamedTuple):
    """What an agent thinks of actions that were taken, float32 ``[T, N]`` each; 0 after the end of an episode.

    Attributes:
        log_prob: Log-probability of the action.
        entropy: Of the policy that it was drawn from, in nats.
        value: The expected return from here on; None for an agent without a critic.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor | None


class Agent(nn.Module, ABC):
    """A network that acts. Derive from it and name your class: ``--model.agent=mine.Glance``.

    ``prefill`` and ``decode`` are all that it needs.

    Args:
        env: The environment to act in, which the network is built for.

    Attributes:
        actions: How many actions there are, ``A``.
        stage_conditioned: Whether the agent knows stages by their positions, and can act only on those it is built for.
        has_critic: Whether it has values, which some algorithms need.
    """

    stage_conditioned = False
    has_critic = True

    def __init__(self, env: Env) -> None:
        super().__init__()
        self.actions = len(env.actions)

    @abstractmethod
    def prefill(self, problems: Any) -> Cache:
        """Read the problems.

        Returns:
            What decoding needs, a tree of tensors (tuples, lists, dictionaries) whose first dimension is ``B``.
        """

    @abstractmethod
    def decode(self, cache: Cache, previous: Tensor, observation: Observation) -> tuple[Policy, Cache]:
        """Decide on one action for each problem.

        Args:
            cache: From ``prefill``, or from the ``decode`` before.
            previous: int64 ``[B]``, the agent's action before; -1 at the start.
            observation: What the environment shows.
        """

    def forward(self, rollout: Record) -> Evaluation:
        """Evaluate actions that were taken, with gradients.

        This is right for every agent. It may be overridden by something faster that gives the same numbers.
        """
        cache, steps = self.prefill(rollout.problems), []
        for t, actions in enumerate(rollout.actions):
            policy, cache = self.decode(cache, rollout.previous[t], select(rollout.observations, t))
            steps.append(evaluate(policy, actions, None if rollout.action_mask is None else rollout.action_mask[t]))
        log_prob, entropy, value = zip(*steps, strict=True)
        whole = (torch.stack(log_prob), torch.stack(entropy), None if value[0] is None else torch.stack(value))
        return Evaluation(*(None if x is None else torch.where(rollout.mask, x, 0) for x in whole))  # type: ignore[arg-type]

    def auxiliary_loss(self, problems: Any) -> Tensor | None:
        """What is added to the loss of these problems, a scalar, summed over them; None for nothing."""
        return None

    def flop_per_token(self) -> float:
        """FLOP that training on one action takes at least: 6 for each weight, 2 forward and 4 backward; 0 if not known.

        Source: Chowdhery et al., "PaLM", 2022, appendix B.
        """
        return 6.0 * sum(p.numel() for p in self.parameters() if p.ndim > 1)


def allowed(logits: Tensor, action_mask: Tensor | None) -> Tensor:
    """Logits ``[B, A]`` of which those of actions that may not be taken are out of reach."""
    return logits if action_mask is None else logits.masked_fill(~action_mask, MASKED)


def evaluate(policy: Policy, actions: Tensor, action_mask: Tensor | None = None) -> Evaluation:
    """Log-probability of actions and entropy, in float32.

    Args:
        policy: ``[B, A]``.
        actions: int64 ``[B]``.
        action_mask: bool ``[B, A]``, or None if all actions may be taken.
    """
    # The actions come first: along rows of six numbers log_softmax takes three times as long, with its gradient.
    log_probs = F.log_softmax(allowed(policy.logits, action_mask).float().T.contiguous(), 0)
    entropy = -(log_probs.exp() * log_probs).sum(0)
    log_prob = log_probs.gather(0, actions[None])[0]
    return Evaluation(log_prob, entropy, None if policy.value is None else policy.value.float())
