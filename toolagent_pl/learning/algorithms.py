"""Algorithms: what is learned from a rollout. Derive from ``Algorithm`` and name your class in the configuration."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from toolagent_pl.agents import Judgement
from toolagent_pl.learning.losses import LossTerms, a2c_loss, discounted_returns, tutorial_loss
from toolagent_pl.learning.rollout import Rollout


class Algorithm(ABC):
    """Turns a rollout and what the agent thinks of it now into a loss.

    Attributes:
        past_end: Whether steps after the end of an episode count. They are not taken where that saves time.
    """

    past_end = False

    @abstractmethod
    def __call__(
        self,
        rollout: Rollout,
        rewards: Tensor,
        judgement: Judgement,
        mean_over_ranks: Callable[[Tensor], Tensor],
    ) -> LossTerms:
        """The loss of a batch.

        Args:
            rewards: ``[T, B]``.
            judgement: Log-probability of each action taken, entropy and value, ``[T, B]`` each, with gradients.
            mean_over_ranks: Averages a tensor over all ranks.
        """


class A2C(Algorithm):
    """Advantage actor-critic (Mnih et al. 2016) on whole episodes.

    Args:
        value_weight: Weight of the value loss.
        entropy_weight: Weight of the entropy bonus.
        discount: Of rewards, per step.
        normalize_advantage: Give the advantages of a batch mean 0 and standard deviation 1.

    Raises:
        ValueError: If a weight is negative or ``discount`` is not in (0, 1].
    """

    def __init__(
        self,
        value_weight: float = 0.5,
        entropy_weight: float = 0.05,
        discount: float = 1.0,
        normalize_advantage: bool = True,
    ) -> None:
        _check_weights(value_weight, entropy_weight)
        if not 0 < discount <= 1:
            raise ValueError(f"model.algorithm.discount: got {discount}, expected more than 0 and at most 1")
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.discount, self.normalize_advantage = discount, normalize_advantage

    def __call__(
        self,
        rollout: Rollout,
        rewards: Tensor,
        judgement: Judgement,
        mean_over_ranks: Callable[[Tensor], Tensor],
    ) -> LossTerms:
        """The loss of a batch."""
        return a2c_loss(
            judgement,
            discounted_returns(rewards, self.discount),
            rollout.mask,
            value_weight=self.value_weight,
            entropy_weight=self.entropy_weight,
            normalize_advantage=self.normalize_advantage,
            mean_over_ranks=mean_over_ranks,
        )


class TutorialA2C(Algorithm):
    """The published tutorial's variant: one value for the whole episode, and nothing masked.

    Args:
        value_weight: Weight of the value loss.
        entropy_weight: Weight of the entropy bonus.

    Raises:
        ValueError: If a weight is negative.
    """

    past_end = True

    def __init__(self, value_weight: float = 0.5, entropy_weight: float = 0.01) -> None:
        _check_weights(value_weight, entropy_weight)
        self.value_weight, self.entropy_weight = value_weight, entropy_weight

    def __call__(
        self,
        rollout: Rollout,
        rewards: Tensor,
        judgement: Judgement,
        mean_over_ranks: Callable[[Tensor], Tensor],
    ) -> LossTerms:
        """The loss of a batch."""
        return tutorial_loss(
            judgement,
            rewards.sum(0),
            value_weight=self.value_weight,
            entropy_weight=self.entropy_weight,
        )


def _check_weights(value_weight: float, entropy_weight: float) -> None:
    for option, weight in (("value_weight", value_weight), ("entropy_weight", entropy_weight)):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"model.algorithm.{option}: got {weight}, expected a number of at least 0")
