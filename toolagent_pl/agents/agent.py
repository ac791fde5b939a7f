"""What an agent is: a recurrent network that is told the problem once, and hears the tokens that it emits."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toolagent_pl.problems import Problems


class Recurrence(ABC):
    """The states of an agent in a batch of ``B`` episodes: stepped while acting, replayed while learning."""

    @abstractmethod
    def step(self, heard: Tensor, kept: Tensor | None = None) -> Tensor:
        """State after one more token heard, without gradients.

        Args:
            heard: int64 ``[K]``: CTX first, then the agent's own tokens.
            kept: int64 ``[K]``, which rows of the step before go on, in ascending order; None for all of them.

        Returns:
            ``[K, d]``.
        """

    @abstractmethod
    def replay(self) -> Tensor:
        """The states after all steps taken, one step after the other, with gradients; ``[N, d]``."""


class Judgement(NamedTuple):
    """What an agent thinks of choices that were made, float32 tensors of the same shape.

    Attributes:
        log_prob: Log-probability of the choice.
        entropy: Of the policy that it was drawn from, in nats.
        value: The expected return from here on.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class Network(NamedTuple):
    """An agent that is a GRU with linear heads and nothing else, which kernels can step.

    Attributes:
        embedding: Of the tokens heard.
        gru: The states.
        policy: Gives each token a logit.
        value: The expected return.
    """

    embedding: nn.Embedding
    gru: nn.GRUCell
    policy: nn.Linear
    value: nn.Linear


class Agent(nn.Module, ABC):
    """A recurrent actor-critic. Derive from it and name your class in the configuration.

    Attributes:
        actions: int64 ``[A]``, the tokens that may be chosen.
    """

    actions: Tensor

    @abstractmethod
    def encode(self, problems: Problems) -> Tensor:
        """State before the first token heard, ``[B, d]``."""

    def step(self, hidden: Tensor, heard: Tensor) -> Tensor:
        """State after one more token heard; enough for an agent that has no faster recurrence.

        Args:
            hidden: ``[B, d]``.
            heard: int64 ``[B]``.

        Returns:
            ``[B, d]``.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither step nor begin")

    def begin(self, hidden: Tensor, horizon: int) -> Recurrence:
        """Start a batch of episodes.

        Args:
            hidden: ``[B, d]``, from ``encode``.
            horizon: Most steps that will be taken.
        """
        return _Differentiated(self, hidden)

    def network(self) -> Network | None:
        """The parts of the agent, where a ``Network`` is all that there is to it after ``encode``; else None."""
        return None

    @abstractmethod
    def log_policy(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of ``actions``, float32 ``[..., A]``."""

    def choose(self, hidden: Tensor, noise: Tensor | None) -> Tensor:
        """An action for each row, int64 ``[K]``, as positions in ``actions``.

        Args:
            hidden: ``[K, d]``.
            noise: float32 ``[K]``, between 0 and 1, what to draw with; None for the likeliest action.
        """
        log_policy = self.log_policy(hidden)
        if noise is None:
            return log_policy.contiguous().argmax(1)
        # Inverse transform sampling: how many cumulated probabilities lie below the noise.
        return (log_policy.exp_().contiguous().cumsum(1)[:, :-1] < noise[:, None]).sum(1)

    def flop_per_token(self) -> int:
        """FLOP that training on one action takes at least: 6 for each weight that is multiplied with."""
        return 6 * sum(
            weight.numel()
            for module in self.modules()
            if not isinstance(module, nn.Embedding)
            for weight in module.parameters(recurse=False)
            if weight.ndim > 1
        )

    @abstractmethod
    def values(self, hidden: Tensor) -> Tensor:
        """Expected return from here on, float32 ``[...]``."""

    def judge(self, hidden: Tensor, choices: Tensor) -> Judgement:
        """What to learn from, ``[N]`` each, with gradients.

        Args:
            hidden: ``[N, d]``.
            choices: int64 ``[N]``, positions in ``actions``.
        """
        log_policy = self.log_policy(hidden)
        return Judgement(*chosen_and_entropy(log_policy, choices), self.values(hidden))


def chosen_and_entropy(log_policy: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each choice and entropy of each policy, both ``[...]``.

    Args:
        log_policy: ``[..., A]``.
        choices: int64 ``[...]``.
    """
    log_prob = log_policy.gather(-1, choices[..., None])[..., 0]
    return log_prob, -(log_policy.exp() * log_policy).sum(-1)


class _Differentiated(Recurrence):
    """Leaves the gradient to autograd: right for every agent that has ``step``."""

    def __init__(self, agent: Agent, hidden: Tensor) -> None:
        self._agent, self._hidden = agent, hidden
        self._recording = torch.is_grad_enabled()
        self._states: list[Tensor] = []

    def step(self, heard: Tensor, kept: Tensor | None = None) -> Tensor:
        with torch.set_grad_enabled(self._recording):
            self._hidden = self._agent.step(self._hidden if kept is None else self._hidden[kept], heard)
        if self._recording:
            self._states.append(self._hidden)
        return self._hidden.detach()

    def replay(self) -> Tensor:
        return torch.cat(self._states)
