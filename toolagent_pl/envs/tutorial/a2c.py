"""The published tutorial's variant of actor-critic."""

import torch
from torch import Tensor

from toolagent_pl.rl.agent import Evaluation
from toolagent_pl.rl.algorithm import Advantages, Algorithm, LossTerms
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.rollout import Rollout


class TutorialA2C(Algorithm):
    """Values and log-probabilities are summed over all steps of an episode, and nothing is masked.

    Args:
        vf_coef: Weight of the critic's loss.
        ent_coef: Weight of the entropy bonus.

    Raises:
        ValueError: If a weight is negative.
    """

    normalize_advantage = False
    continue_after_done = True

    def __init__(self, vf_coef: float = 0.5, ent_coef: float = 0.01) -> None:
        check_range(at_least=0, vf_coef=vf_coef, ent_coef=ent_coef)
        self.vf_coef, self.ent_coef = vf_coef, ent_coef

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Advantages:
        """The reward of the episode minus the sum of its values, at every step."""
        assert rollout.value is not None
        returns = rewards.sum(0).expand_as(rewards)
        return Advantages(returns - rollout.value.sum(0), returns)

    def loss(self, evaluation: Evaluation, rollout: Rollout, advantages: Advantages) -> LossTerms:
        """Means over episodes, times the number of all steps, which the module divides by."""
        assert evaluation.value is not None
        steps = len(rollout.mask)
        policy = -(evaluation.log_prob.sum(0) * advantages.advantages[0]).sum()
        value = (evaluation.value.sum(0) - advantages.returns[0]).square().sum()
        return LossTerms(policy * steps, value * steps, torch.sum(evaluation.entropy))
