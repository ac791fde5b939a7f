"""PPO, GRPO and RLOO: each loss against its formula, written out in float64 for one step of one episode at a time."""

import math
import statistics

import pytest
import torch

from benchmarks.bare import BareLoop
from toolagent_pl.agents import BlindAgent, Evaluation, Reader
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.learning import A2C, GRPO, PPO, RLOO, OutcomeReward, collect
from toolagent_pl.module import ToolAgent
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


def fitted(algorithm, batches: int = 3, **options) -> ToolAgent:
    """A module after so many batches, in a bare loop."""
    torch.manual_seed(0)
    module = ToolAgent(algorithm=algorithm, **options)
    loop = BareLoop(module, 64)
    for _ in range(batches):
        loop.update()
    return module


def test_ppo_with_one_update_from_a_rollout_is_a2c():
    """There is nothing to clip: the policy that learns is the one that acted."""
    a2c, ppo = fitted(A2C()), fitted(PPO(epochs=1, minibatches=1, clip_range=0.2))
    for one, other in zip(a2c.parameters(), ppo.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert not torch.equal(next(a2c.parameters()), next(ToolAgent().parameters()))


@pytest.mark.parametrize("normalize", [True, "minibatch"])
def test_advantages_are_normalised_over_the_batch_or_over_each_minibatch(normalize, monkeypatch):
    algorithm = PPO(epochs=1, minibatches=4, normalize_advantage=normalize)
    seen = []
    loss = algorithm.loss

    def watched(evaluation, rollout, advantages):
        seen.append((advantages.advantages[rollout.mask], rollout.mask.sum()))
        return loss(evaluation, rollout, advantages)

    monkeypatch.setattr(algorithm, "loss", watched)
    fitted(algorithm, batches=1)
    everything = torch.cat([values for values, _ in seen])
    assert len(seen) == 4
    assert float(everything.mean()) == pytest.approx(0, abs=1e-4)
    assert float(everything.std(correction=0)) == pytest.approx(1, abs=1e-3)
    each = [(float(values.mean()), float(values.std(correction=0))) for values, _ in seen]
    close = [abs(mean) < 1e-4 and abs(deviation - 1) < 1e-3 for mean, deviation in each]
    assert close == [normalize == "minibatch"] * 4


@pytest.mark.parametrize(("target_kl", "updates"), [(None, 8), (0.0, 1), (1e6, 8)])
def test_no_more_updates_from_a_rollout_once_the_policy_has_moved_far(target_kl, updates, monkeypatch):
    algorithm = PPO(epochs=2, minibatches=4, target_kl=target_kl)
    calls = []
    loss = algorithm.loss

    def watched(evaluation, rollout, advantages):
        calls.append(1)
        terms = loss(evaluation, rollout, advantages)
        return terms._replace(metrics={**terms.metrics, "approx_kl": terms.metrics["approx_kl"] + 1.0})

    monkeypatch.setattr(algorithm, "loss", watched)
    fitted(algorithm, batches=1)
    assert len(calls) == updates


def test_explained_variance_is_one_minus_what_is_left_over_what_there_was():
    module = ToolAgent(algorithm=A2C())
    _, rollout, _, _ = rollout_of()
    returns = torch.rand(rollout.mask.shape) * rollout.mask
    known = [(float(returns[t, n]), float(rollout.value[t, n])) for t, n in steps(rollout)]
    left = statistics.pvariance(r - v for r, v in known) / statistics.pvariance(r for r, _ in known)
    assert float(module._explained_variance(rollout, returns)) == pytest.approx(1 - left, rel=1e-4)
    exact = rollout._replace(value=returns)
    assert float(module._explained_variance(exact, returns)) == pytest.approx(1)
    assert float(module._explained_variance(rollout, torch.full_like(returns, 0.3))) == 0  # there is nothing to explain


@pytest.mark.parametrize(
    "algorithm", [A2C(), PPO(), GRPO(samples_per_problem=4), RLOO()], ids=lambda a: type(a).__name__
)
def test_the_curves_have_the_names_that_the_field_uses(algorithm):
    torch.manual_seed(0)
    module = ToolAgent(algorithm=algorithm)
    loop = BareLoop(module, 64)
    update = (
        module.learn(loop.stream.batch(0), module.ent_coef, with_metrics=True)
        if module._single_pass
        else module._learn_in_parts(loop.stream.batch(0), logging=True)
    )
    names = {name.removeprefix("train/") for name in update.metrics}
    assert {"policy_loss", "value_loss", "entropy"} <= names
    assert ("explained_variance" in names) == algorithm.needs_value
    assert ({"approx_kl", "clip_fraction"} <= names) == isinstance(algorithm, PPO | GRPO)
    assert all(bool(value.isfinite()) for value in update.metrics.values())


@pytest.mark.parametrize("algorithm", [A2C(), PPO(), GRPO(), RLOO()], ids=lambda a: type(a).__name__)
def test_each_algorithm_solves_an_operator(algorithm):
    """All problems of one operator, which need its name to be read; T0 to T2 are tried in ``-m long``."""
    torch.manual_seed(0)
    module = ToolAgent(["E1"], agent=Reader, env=CalculatorEnv(max_steps="auto"), algorithm=algorithm)
    loop = BareLoop(module, 256 // algorithm.samples_per_problem * algorithm.minibatches)
    for _ in range(100 // algorithm.minibatches):
        loop.update()
    number = torch.arange(500)
    held_out = module.stages.draw(number, torch.zeros_like(number), 0, Purpose.TEST, held_out=True)
    assert float(module.act(held_out).outcome.correct.float().mean()) > 0.95
