"""PPO, GRPO and RLOO: each loss against its formula, written out in float64 for one step of one episode at a time."""

import math

import pytest
import torch

from toolagent_pl.agents import BlindAgent, Evaluation
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.learning import A2C, GRPO, PPO, RLOO, OutcomeReward, collect
from toolagent_pl.problems import Stages
from toolagent_pl.randomness import Purpose

ENV = CalculatorEnv(max_steps=6, feedback="none")


def rollout_of(samples: int = 1, problems: int = 12):
    torch.manual_seed(0)
    agent = BlindAgent(ENV.spec(1), d=16)
    number = torch.arange(problems)
    batch = Stages(["T0"]).draw(number, torch.zeros_like(number), 0, Purpose.PROBLEM, held_out=False)
    rollout = collect(agent, ENV, batch, samples_per_problem=samples, seed=3)
    torch.manual_seed(1)
    moved = Evaluation(*(x + 0.3 * torch.randn_like(x) for x in agent(rollout)))
    evaluation = Evaluation(*(torch.where(rollout.mask, x, 0).detach().requires_grad_() for x in moved))
    rewards = torch.rand(rollout.mask.shape) * rollout.mask
    return agent, rollout, evaluation, rewards


def steps(rollout):
    return [(t, n) for t in range(len(rollout.mask)) for n in range(rollout.mask.shape[1]) if rollout.mask[t, n]]


@pytest.mark.parametrize("clip_range_vf", [None, 0.1])
def test_ppo_is_its_formula(clip_range_vf):
    _, rollout, evaluation, rewards = rollout_of()
    algorithm = PPO(clip_range=0.2, clip_range_vf=clip_range_vf, gamma=0.9, gae_lambda=0.8)
    advantages = algorithm.advantages(rollout, rewards)
    terms = algorithm.loss(evaluation, rollout, advantages)
    policy = value = entropy = kl = clipped = 0.0
    for t, n in steps(rollout):
        ratio = math.exp(float(evaluation.log_prob[t, n]) - float(rollout.log_prob[t, n]))
        a, target = float(advantages.advantages[t, n]), float(advantages.returns[t, n])
        policy -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        old, new = float(rollout.value[t, n]), float(evaluation.value[t, n])
        error = (target - new) ** 2
        if clip_range_vf is not None:
            error = max(error, (target - (old + min(max(new - old, -0.1), 0.1))) ** 2)
        value += error
        entropy += float(evaluation.entropy[t, n])
        kl += ratio - 1 - math.log(ratio)
        clipped += abs(ratio - 1) > 0.2
    assert float(terms.policy.detach()) == pytest.approx(policy, rel=1e-4)
    assert float(terms.value.detach()) == pytest.approx(value, rel=1e-4)
    assert float(terms.entropy.detach()) == pytest.approx(entropy, rel=1e-4)
    assert float(terms.metrics["approx_kl"]) == pytest.approx(kl, rel=1e-3)
    assert float(terms.metrics["clip_fraction"]) == clipped > 0


def test_ppo_before_any_update_has_the_gradient_of_a2c():
    agent, rollout, _, rewards = rollout_of()
    gradients = []
    for algorithm in (A2C(), PPO(epochs=1, minibatches=1)):
        agent.zero_grad()
        terms = algorithm.loss(agent(rollout), rollout, algorithm.advantages(rollout, rewards))
        (terms.policy + 0.5 * terms.value - 0.05 * terms.entropy).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_grpo_with_a_group_of_two_is_its_formula_by_hand():
    _, rollout, evaluation, rewards = rollout_of(samples=2)
    algorithm = GRPO(samples_per_problem=2)
    advantages = algorithm.advantages(rollout, rewards)
    policy = 0.0
    for t, n in steps(rollout):
        mine, other = float(rewards[:, n].sum()), float(rewards[:, n ^ 1].sum())
        # The mean of two is halfway between them, and their deviation is half of their distance.
        a = ((mine - other) / 2) / (abs(mine - other) / 2 + 1e-6)
        assert float(advantages.advantages[t, n]) == pytest.approx(a, rel=1e-4)
        ratio = math.exp(float(evaluation.log_prob[t, n]) - float(rollout.log_prob[t, n]))
        policy -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
    assert float(algorithm.loss(evaluation, rollout, advantages).policy.detach()) == pytest.approx(policy, rel=1e-4)


def test_a_group_without_signal_has_no_gradient_and_can_be_left_out_of_the_entropy():
    _, rollout, evaluation, rewards = rollout_of(samples=4)
    rewards = torch.zeros_like(rewards)
    rewards[0, 0] = 1.0  # only the first group has a success
    for filter_groups in (False, True):
        algorithm = GRPO(samples_per_problem=4, filter_groups=filter_groups)
        advantages = algorithm.advantages(rollout, rewards)
        assert bool(advantages.advantages[:, :4].ne(0).any())
        assert not bool(advantages.advantages[:, 4:].ne(0).any())
        entropy = algorithm.loss(evaluation, rollout, advantages).entropy
        counted = evaluation.entropy[:, :4] if filter_groups else evaluation.entropy
        torch.testing.assert_close(entropy, counted.sum())


def test_rloo_is_its_formula():
    _, rollout, evaluation, rewards = rollout_of(samples=3)
    algorithm = RLOO(samples_per_problem=3)
    advantages = algorithm.advantages(rollout, rewards)
    policy = 0.0
    for t, n in steps(rollout):
        group = range(n - n % 3, n - n % 3 + 3)
        others = [float(rewards[:, m].sum()) for m in group if m != n]
        a = float(rewards[:, n].sum()) - sum(others) / 2
        policy -= float(evaluation.log_prob[t, n]) * a
    assert float(algorithm.loss(evaluation, rollout, advantages).policy.detach()) == pytest.approx(policy, rel=1e-4)


def test_outcome_rewards_are_paid_to_each_sample_of_a_problem():
    _, rollout, _, _ = rollout_of(samples=3)
    rewards = OutcomeReward()(ENV, rollout)
    assert rewards.sum(0).tolist() == rollout.outcome.correct.float().tolist()
    assert torch.equal(rollout.problems.number, torch.arange(12).repeat_interleave(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO(epochs=0), "model.algorithm.epochs: got 0"),
        (lambda: PPO(clip_range=-1), "model.algorithm.clip_range: got -1"),
        (lambda: PPO(gae_lambda=1.5), "model.algorithm.gae_lambda: got 1.5"),
        (lambda: GRPO(samples_per_problem=1), "model.algorithm.samples_per_problem: got 1, expected 2 to 1024"),
        (lambda: RLOO(ent_coef=float("nan")), "model.algorithm.ent_coef: got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
