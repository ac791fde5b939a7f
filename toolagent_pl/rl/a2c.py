"""Advantage actor-critic."""

from torch import Tensor

from toolagent_pl.rl.agent import Evaluation
from toolagent_pl.rl.algorithm import Advantages, Algorithm, LossTerms, gae
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.rollout import Rollout


class A2C(Algorithm):
    """Advantage actor-critic with generalised advantage estimation.

    Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016, section 4 and
    algorithm S3: policy gradient ``grad log pi(a_t|s_t) (R_t - V(s_t))``, value loss ``(R_t - V(s_t))^2``,
    entropy bonus ``H(pi(s_t))``.

    Args:
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
        vf_coef: float = 0.5,
        ent_coef: float = 0.05,
        ent_target: float | None = None,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = True,
    ) -> None:
        check_range(at_least=0, vf_coef=vf_coef, ent_coef=ent_coef, ent_target=ent_target)
        check_range(above=0, at_most=1, gamma=gamma, gae_lambda=gae_lambda)
        self.vf_coef, self.ent_coef, self.ent_target = vf_coef, ent_coef, ent_target
        self.gamma, self.gae_lambda, self.normalize_advantage = gamma, gae_lambda, normalize_advantage

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Advantages:
        """Generalised advantages, and the returns that go with them."""
        assert rollout.value is not None
        return gae(rewards, rollout.value, rollout.mask, self.gamma, self.gae_lambda)

    def loss(self, evaluation: Evaluation, rollout: Rollout, advantages: Advantages) -> LossTerms:
        """``-log pi(a) A``, ``(R - V)^2`` and ``H(pi)``, summed over steps."""
        assert evaluation.value is not None
        error = (advantages.returns - evaluation.value) * rollout.mask
        return LossTerms(
            policy=-(evaluation.log_prob * advantages.advantages).sum(),
            value=error.square().sum(),
            entropy=evaluation.entropy.sum(),
        )
