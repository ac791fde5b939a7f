"""What an algorithm is: advantages, once for each rollout, and a loss."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from toolagent_pl.rl.agent import Evaluation
from toolagent_pl.rl.checks import check_tensor, float_type
from toolagent_pl.rl.rollout import Rollout

NOTHING: dict[str, Tensor] = {}
MAX_EPOCHS = 1024  # of passes over a rollout, and of minibatches in a pass


class Advantages(NamedTuple):
    """What is learned from, float32 ``[T, N]`` each, without gradients; 0 after the end of an episode.

    Attributes:
        advantages: How much better an action was than what was expected.
        returns: What the critic learns to expect.
    """

    advantages: Tensor
    returns: Tensor


class LossTerms(NamedTuple):
    """Sums over all steps of a minibatch, scalars. The module divides by the number of steps over all ranks.

    Attributes:
        policy: Loss of the policy.
        value: Loss of the critic, before its weight.
        entropy: Of the policy.
        metrics: Further sums, without gradients, to be shown as means.
    """

    policy: Tensor
    value: Tensor
    entropy: Tensor
    metrics: dict[str, Tensor] = NOTHING


class Algorithm(ABC):
    """Turns rollouts into losses. Derive from it and name your class in the configuration.

    The module adds up ``policy + vf_coef * value - ent_coef * entropy``, and gives the advantages of a batch mean 0 and
    standard deviation 1 where ``normalize_advantage`` is true, or those of each minibatch.

    Attributes:
        samples_per_problem: Episodes of each problem.
        epochs: Passes over a rollout.
        minibatches: Updates in a pass; each takes an equal share of the problems.
        vf_coef: Weight of the critic's loss.
        ent_coef: Weight of the entropy bonus; the one to start with, if there is a target.
        ent_target: Entropy, in nats, that the weight of its bonus is steered to; None for a fixed weight.
        gamma: Discount of rewards, per step.
        normalize_advantage: Whether advantages are normalised: in each batch, or in each minibatch.
        needs_value: Whether the agent must have a critic.
        continue_after_done: Whether steps after the end of an episode count.
        target_kl: No more updates from a rollout once the metric ``approx_kl`` exceeds it; None for no limit.
        needs_reference: Whether rollouts hold ``reference_log_prob``, of the agent as it was when training began.
    """

    samples_per_problem = 1
    epochs = 1
    minibatches = 1
    vf_coef = 0.5
    ent_coef = 0.0
    ent_target: float | None = None
    gamma = 1.0
    normalize_advantage: bool | Literal["minibatch"] = True
    needs_value = True
    continue_after_done = False
    target_kl: float | None = None
    needs_reference = False

    @abstractmethod
    def advantages(self, rollout: Rollout, rewards: Tensor) -> Advantages:
        """Advantages and returns of a rollout.

        Args:
            rewards: float32 ``[T, N]``.
        """

    @abstractmethod
    def loss(self, evaluation: Evaluation, rollout: Rollout, advantages: Advantages) -> LossTerms:
        """The loss of a minibatch.

        Args:
            evaluation: What the agent thinks of the actions now, ``[T, N]`` each, with gradients.
            rollout: The actions, and what it thought when it took them.
        """


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Advantages:
    """Generalised advantage estimation, ``A_t = d_t + gamma lambda A_{t+1}``, ``d_t = r_t + gamma V_{t+1} - V_t``.

    With lambda = 1 it is the return minus the value. A truncated episode counts as failed, like one that gave a wrong
    answer: to be slow is part of the task, so its last value is not bootstrapped.

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016,
    equations 11 and 12.

    Args:
        rewards: float32 ``[T, N]``, 0 after the end of an episode.
        values: float32 ``[T, N]``.
        mask: bool ``[T, N]``.
    """
    values = values * mask
    if gamma == gae_lambda == 1.0:
        returns = rewards.flip(0).cumsum(0).flip(0)
        return Advantages((returns - values) * mask, returns)
    following = torch.cat([values[1:], torch.zeros_like(values[:1])])
    delta = rewards + gamma * following - values
    advantage, steps = torch.zeros_like(values[0]), []
    for one, running in zip(delta.flip(0), mask.flip(0), strict=True):
        advantage = (one + gamma * gae_lambda * advantage) * running
        steps.append(advantage)
    advantages = torch.stack(steps).flip(0)
    return Advantages(advantages, advantages + values)


def check_advantages(algorithm: Algorithm, advantages: Advantages, rollout: Rollout) -> None:
    """Refuse what a custom algorithm returned, unless it is ``Advantages``, float ``[T, N]`` each.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    for name, value in zip(Advantages._fields, advantages, strict=True):
        check_tensor(algorithm, "advantages", name, value, float_type(value), rollout.mask.shape)


def check_terms(algorithm: Algorithm, terms: LossTerms) -> None:
    """Refuse what a custom algorithm returned, unless it is ``LossTerms``, scalars.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    for name, value in (*zip(terms._fields[:3], terms[:3], strict=True), *terms.metrics.items()):
        check_tensor(algorithm, "loss", name, value, float_type(value), [])
