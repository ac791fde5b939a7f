"""Proximal policy optimisation."""

from typing import Literal

import torch
from torch import Tensor

from toolagent_pl.rl.a2c import A2C
from toolagent_pl.rl.agent import Evaluation
from toolagent_pl.rl.algorithm import MAX_EPOCHS, Advantages, LossTerms
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.rollout import Rollout


class PPO(A2C):
    """Several passes over a rollout, in which no action's probability is pushed further than by a factor.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, equation 7:
    ``L = min(r A, clip(r, 1 - e, 1 + e) A)`` with ``r = pi(a|s) / pi_old(a|s)``.

    Args:
        epochs: Passes over a rollout.
        minibatches: Updates in a pass.
        clip_range: ``e``.
        clip_range_vf: How far a value may move from the one in the rollout; null for any distance.
        target_kl: No more updates from a rollout once the policy has moved so far, in nats; null for no limit.
        vf_coef: Weight of the critic's loss.
        ent_coef: Weight of the entropy bonus; the one to start with, if there is a target.
        ent_target: Entropy, in nats, that its weight is steered to; null for a fixed weight.
        gamma: Discount of rewards, per step.
        gae_lambda: 1 for returns to the end of the episode, less for less variance and more bias.
        normalize_advantage: Give the advantages of a batch mean 0 and standard deviation 1.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        epochs: int = 1,
        minibatches: int = 4,
        clip_range: float = 0.2,
        clip_range_vf: float | None = None,
        target_kl: float | None = None,
        vf_coef: float = 0.5,
        ent_coef: float = 0.05,
        ent_target: float | None = None,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        normalize_advantage: bool | Literal["minibatch"] = True,
    ) -> None:
        check_range(at_least=1, at_most=MAX_EPOCHS, epochs=epochs, minibatches=minibatches)
        check_range(at_least=0, clip_range=clip_range, clip_range_vf=clip_range_vf, target_kl=target_kl)
        super().__init__(vf_coef, ent_coef, ent_target, gamma, gae_lambda)
        self.normalize_advantage = normalize_advantage
        self.epochs, self.minibatches = epochs, minibatches
        self.clip_range, self.clip_range_vf, self.target_kl = clip_range, clip_range_vf, target_kl

    def loss(self, evaluation: Evaluation, rollout: Rollout, advantages: Advantages) -> LossTerms:
        """The clipped loss of the policy, that of the critic, and the entropy, summed over steps."""
        assert evaluation.value is not None
        assert rollout.value is not None
        policy, metrics = clipped_policy_loss(evaluation, rollout, advantages.advantages, self.clip_range)
        error = (advantages.returns - evaluation.value).square()
        if self.clip_range_vf is not None:
            moved = (evaluation.value - rollout.value).clamp(-self.clip_range_vf, self.clip_range_vf)
            error = torch.maximum(error, (advantages.returns - rollout.value - moved).square())
        return LossTerms(policy, (error * rollout.mask).sum(), evaluation.entropy.sum(), metrics)


def clipped_policy_loss(
    evaluation: Evaluation, rollout: Rollout, advantages: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """``-min(r A, clip(r, 1 - e, 1 + e) A)``, summed over steps, and how far the policy has moved.

    ``approx_kl`` is the estimator ``r - 1 - log r`` of http://joschu.net/blog/kl-approx.html, and ``clip_fraction``
    counts the steps at which the ratio is out of range.
    """
    log_ratio = torch.where(rollout.mask, evaluation.log_prob - rollout.log_prob, 0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    with torch.no_grad():
        metrics = {
            "approx_kl": (ratio - 1 - log_ratio).sum(),
            "clip_fraction": (ratio.sub(1).abs() > clip_range).float().sum(),
        }
    return loss, metrics
