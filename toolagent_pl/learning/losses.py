"""Losses as functions of tensors. Time comes first: ``[T, B]`` is step t of problem b."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toolagent_pl.agents import Judgement


class LossTerms(NamedTuple):
    """Scalars: the loss, and what it is made of (before weights)."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """Return from each step on, ``G_t = r_t + discount * G_{t+1}``.

    Source: Sutton and Barto, "Reinforcement Learning", 2nd edition, equation 3.9.

    Args:
        rewards: ``[T, B]``, zero after the end of an episode.
    """
    if discount == 1.0:
        return rewards.flip(0).cumsum(0).flip(0)
    returns = [rewards[-1]]
    for reward in rewards[:-1].flip(0):
        returns.append(reward + discount * returns[-1])
    return torch.stack(returns).flip(0)


def a2c_loss(
    judgement: Judgement,
    returns: Tensor,
    mask: Tensor,
    *,
    value_weight: float,
    entropy_weight: float,
    normalize_advantage: bool,
    mean_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
) -> LossTerms:
    """Advantage actor-critic with a value for every step; steps after the end of an episode do not count.

    Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016, section 4 and
    algorithm S3: policy gradient ``grad log pi(a_t|s_t) (R_t - V(s_t))``, value loss ``(R_t - V(s_t))^2``,
    entropy bonus ``H(pi(s_t))``.

    Args:
        judgement: ``[T, B]`` each, with gradients.
        returns: ``[T, B]``.
        mask: bool ``[T, B]``.
        normalize_advantage: Give the advantages of the whole batch mean 0 and standard deviation 1.
        mean_over_ranks: Averages a tensor over all ranks. With it, the mean of the gradients of all ranks
            is the gradient of one rank with all their problems.
    """
    log_prob, entropy, values = judgement
    weight = mask.to(values.dtype)
    advantage = (returns - values).detach() * weight
    count, total, squares = mean_over_ranks(torch.stack([weight.sum(), advantage.sum(), advantage.square().sum()]))
    if normalize_advantage:
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        advantage = (advantage - mean) / (deviation + 1e-8) * weight
    weight = weight / count
    policy_loss = -(log_prob * advantage * weight).sum()
    value_loss = ((returns - values).square() * weight).sum()
    mean_entropy = (entropy * weight).sum()
    loss = policy_loss + value_weight * value_loss - entropy_weight * mean_entropy
    return LossTerms(loss, policy_loss, value_loss, mean_entropy)


def tutorial_loss(
    judgement: Judgement,
    episode_reward: Tensor,
    *,
    value_weight: float,
    entropy_weight: float,
) -> LossTerms:
    """The published tutorial's variant: values and log-probabilities summed over all steps, nothing masked.

    Args:
        judgement: ``[T, B]`` each, with gradients, steps after the end of an episode included.
        episode_reward: ``[B]``.
    """
    baseline = judgement.value.sum(0)
    policy_loss = -(judgement.log_prob.sum(0) * (episode_reward - baseline).detach()).mean()
    value_loss = F.mse_loss(baseline, episode_reward)
    mean_entropy = judgement.entropy.mean()
    loss = policy_loss + value_weight * value_loss - entropy_weight * mean_entropy
    return LossTerms(loss, policy_loss, value_loss, mean_entropy)
