"""Algorithms that compare several episodes of the same problem, in place of a critic."""

from typing import Literal

import torch
from torch import Tensor

from toolagent_pl.rl.agent import Evaluation
from toolagent_pl.rl.algorithm import MAX_EPOCHS, Advantages, Algorithm, LossTerms
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.ppo import clipped_policy_loss
from toolagent_pl.rl.rollout import MAX_SAMPLES, Rollout


class _GroupAlgorithm(Algorithm):
    """What the two have in common."""

    needs_value = False
    normalize_advantage: bool | Literal["minibatch"] = False
    vf_coef = 0.0

    def _check(self) -> None:
        check_range(at_least=1, at_most=MAX_EPOCHS, epochs=self.epochs, minibatches=self.minibatches)
        check_range(at_least=0, ent_coef=self.ent_coef, ent_target=self.ent_target)
        check_range(at_least=2, at_most=MAX_SAMPLES, samples_per_problem=self.samples_per_problem)

    def _returns(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Reward of each episode, ``[B, samples]``."""
        return rewards.sum(0).view(-1, self.samples_per_problem)

    @staticmethod
    def _spread(advantage: Tensor, returns: Tensor, rollout: Rollout) -> Advantages:
        """The same advantage at each step of an episode."""
        return Advantages(advantage.flatten() * rollout.mask, returns.flatten() * rollout.mask)


class GRPO(_GroupAlgorithm):
    """Group relative policy optimisation: the advantage of an episode is its reward, normalised within its group.

    ``A_i = (R_i - mean(R)) / (std(R) + 1e-6)`` at every step of episode i, in PPO's clipped loss, averaged over the
    tokens of the batch. A group whose episodes all pay the same has no gradient. With ``kl_coef`` the loss grows by
    ``kl_coef * (r - log r - 1)`` with ``r = pi_ref(a|s) / pi(a|s)``, where the reference is the agent as it was when
    training began.

    Source: Shao et al., "DeepSeekMath", 2024, equations 3 and 4; averaging over tokens, and the filter, as in Yu et
    al., "DAPO", 2025, section 3.

    Args:
        samples_per_problem: Size of a group.
        epochs: Passes over a rollout.
        minibatches: Updates in a pass; a group is never divided.
        clip_range: How far the ratio of probabilities may move from 1.
        kl_coef: Weight of the divergence from the reference policy.
        filter_groups: Leave groups without a gradient out of the entropy bonus, too.
        vf_coef: Weight of the critic's loss. Its values are not used: it is for agents whose policy and critic share
            what they learn.
        ent_coef: Weight of the entropy bonus; the one to start with, if there is a target.
        ent_target: Entropy, in nats, that its weight is steered to; null for a fixed weight.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        samples_per_problem: int = 8,
        epochs: int = 1,
        minibatches: int = 1,
        clip_range: float = 0.2,
        kl_coef: float = 0.0,
        filter_groups: bool = False,
        vf_coef: float = 0.0,
        ent_coef: float = 0.05,
        ent_target: float | None = None,
    ) -> None:
        self.samples_per_problem, self.epochs, self.minibatches = samples_per_problem, epochs, minibatches
        self.vf_coef, self.needs_value = vf_coef, vf_coef > 0
        self.clip_range, self.kl_coef, self.filter_groups = clip_range, kl_coef, filter_groups
        self.needs_reference = kl_coef > 0
        self.ent_coef, self.ent_target = ent_coef, ent_target
        check_range(at_least=0, clip_range=clip_range, kl_coef=kl_coef, vf_coef=vf_coef)
        self._check()

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Advantages:
        """The reward of each episode, normalised within its group, at each of its steps."""
        returns = self._returns(rollout, rewards)
        deviation = returns.std(1, correction=0, keepdim=True)
        return self._spread((returns - returns.mean(1, keepdim=True)) / (deviation + 1e-6), returns, rollout)

    def loss(self, evaluation: Evaluation, rollout: Rollout, advantages: Advantages) -> LossTerms:
        """The clipped loss of the policy, that of the critic, and the entropy, summed over steps."""
        policy, metrics = clipped_policy_loss(evaluation, rollout, advantages.advantages, self.clip_range)
        if rollout.reference_log_prob is not None and self.kl_coef:
            log_ratio = torch.where(rollout.mask, rollout.reference_log_prob - evaluation.log_prob, 0)
            divergence = (log_ratio.exp() - log_ratio - 1).sum()
            policy, metrics = policy + self.kl_coef * divergence, {**metrics, "reference_kl": divergence.detach()}
        entropy = evaluation.entropy
        if self.filter_groups:
            entropy = entropy * advantages.advantages.ne(0).any(0)
        value = torch.zeros_like(policy)
        if self.vf_coef and evaluation.value is not None:
            value = ((advantages.returns - evaluation.value) * rollout.mask).square().sum()
        return LossTerms(policy, value, entropy.sum(), metrics)


class RLOO(_GroupAlgorithm):
    """REINFORCE with the mean of the other episodes of a problem as its baseline.

    ``A_i = R_i - mean(R_j, j != i)`` at every step of episode i.

    Source: Kool, van Hoof and Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019, equation 8; Ahmadian
    et al., "Back to Basics", ACL 2024, equation 7.

    Args:
        samples_per_problem: Episodes of each problem.
        ent_coef: Weight of the entropy bonus; the one to start with, if there is a target.
        ent_target: Entropy, in nats, that its weight is steered to; null for a fixed weight.
        normalize_advantage: Give the advantages of a batch mean 0 and standard deviation 1.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        samples_per_problem: int = 4,
        ent_coef: float = 0.05,
        ent_target: float | None = None,
        normalize_advantage: bool = True,
    ) -> None:
        self.samples_per_problem, self.ent_coef, self.ent_target = samples_per_problem, ent_coef, ent_target
        self.normalize_advantage = normalize_advantage
        self._check()

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Advantages:
        """The reward of each episode minus the mean of the others, at each of its steps."""
        returns = self._returns(rollout, rewards)
        others = (returns.sum(1, keepdim=True) - returns) / (self.samples_per_problem - 1)
        return self._spread(returns - others, returns, rollout)

    def loss(self, evaluation: Evaluation, rollout: Rollout, advantages: Advantages) -> LossTerms:
        """``-log pi(a) A`` and the entropy, summed over steps."""
        policy = -(evaluation.log_prob * advantages.advantages).sum()
        return LossTerms(policy, torch.zeros_like(policy), evaluation.entropy.sum())
