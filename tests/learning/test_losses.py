"""Advantages and losses against plain loops over steps, in float64, with gradients derived by hand."""

import math
from statistics import mean, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from toolagent_pl import CalculatorEnv, TutorialEnv
from toolagent_pl.agents import Evaluation, Policy, Rollout
from toolagent_pl.agents.agent import evaluate, masked
from toolagent_pl.learning import A2C, Advantages, OutcomeReward, TutorialA2C, TutorialReward, collect
from toolagent_pl.learning.algorithm import gae
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Stages
from toolagent_pl.randomness import Purpose

T, B, A = 5, 6, 4


def judged(log_policy, values, actions, mask):
    """As ``Agent.forward`` says it, but in float64."""
    log_prob = log_policy.gather(2, actions[..., None])[..., 0]
    entropy = -(log_policy.exp() * log_policy).sum(2)
    return masked(Evaluation(log_prob, entropy, values), mask)


def rollout_of(mask, value):
    return Rollout(**{**dict.fromkeys(Rollout._fields), "mask": mask, "value": value.detach()})


def episodes(seed):
    """log_policy, values, actions, rewards, mask."""
    generator = torch.Generator().manual_seed(seed)
    log_policy = torch.randn(T, B, A, generator=generator, dtype=torch.float64).log_softmax(2)
    values = torch.randn(T, B, generator=generator, dtype=torch.float64)
    actions = torch.randint(A, (T, B), generator=generator)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    mask = torch.arange(T)[:, None] < lengths
    rewards = torch.randn(T, B, generator=generator, dtype=torch.float64) * mask
    return log_policy.requires_grad_(), values.requires_grad_(), actions, rewards, mask


def gae_by_hand(rewards, values, mask, gamma, gae_lambda):
    """Of each episode, from its end; what comes after it is worth nothing."""
    advantages, returns = torch.zeros(T, B, dtype=torch.float64), torch.zeros(T, B, dtype=torch.float64)
    for b in range(B):
        following, next_value = 0.0, 0.0
        for t in reversed(range(int(mask[:, b].sum()))):
            value = values[t, b].item()
            following = rewards[t, b].item() + gamma * next_value - value + gamma * gae_lambda * following
            next_value = value
            advantages[t, b], returns[t, b] = following, following + value
    return advantages, returns


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_advantages_are_those_of_a_plain_loop(seed, gamma, gae_lambda):
    _, values, _, rewards, mask = episodes(seed)
    wanted = gae_by_hand(rewards, values, mask, gamma, gae_lambda)
    noise = torch.where(mask, values.detach(), 1e6)  # what an agent says after the end counts for nothing
    assert_close(gae(rewards, noise, mask, gamma, gae_lambda), Advantages(*wanted))
    algorithm = A2C(gamma=gamma, gae_lambda=gae_lambda)
    assert_close(algorithm.advantages(rollout_of(mask, noise), rewards), Advantages(*wanted))


@given(
    st.lists(st.tuples(*[st.floats(-10, 10)] * 3), min_size=1, max_size=8),
    st.sampled_from([1.0, 0.9, 0.5]),
)
def test_returns_are_discounted_sums(rows, gamma):
    rewards = torch.tensor(rows, dtype=torch.float64)
    returns = gae(rewards, torch.zeros_like(rewards), torch.ones_like(rewards, dtype=torch.bool), gamma, 1.0).returns
    for t in range(len(rows)):
        wanted = sum(gamma ** (s - t) * rewards[s] for s in range(t, len(rows)))
        assert_close(returns[t], wanted, rtol=1e-9, atol=1e-9)


def test_a_truncated_episode_is_not_bootstrapped():
    values = torch.tensor([[0.5], [0.75]])
    got = gae(torch.zeros(2, 1), values, torch.ones(2, 1, dtype=torch.bool), 1.0, 1.0)
    assert got.returns.tolist() == [[0], [0]]
    assert got.advantages.tolist() == [[-0.5], [-0.75]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a2c_is_that_of_a_plain_loop(seed):
    log_policy, values, actions, rewards, mask = episodes(seed)
    algorithm, rollout = A2C(), rollout_of(mask, values)
    advantages = algorithm.advantages(rollout, rewards)
    evaluation = judged(log_policy, values, actions, mask)._replace(value=values)  # whatever it is after the end
    terms = algorithm.loss(evaluation, rollout, advantages)
    d_policy, d_values, d_entropy = torch.zeros_like(log_policy), torch.zeros_like(values), torch.zeros_like(log_policy)
    policy = value = entropy = 0.0
    for t, b in mask.nonzero().tolist():
        choice, advantage = actions[t, b].item(), advantages.advantages[t, b].item()
        error = values[t, b].item() - advantages.returns[t, b].item()
        policy -= advantage * log_policy[t, b, choice].item()
        value += error**2
        d_policy[t, b, choice] -= advantage
        d_values[t, b] = 2 * error
        for a, log_p in enumerate(log_policy[t, b].tolist()):
            entropy -= math.exp(log_p) * log_p
            d_entropy[t, b, a] = -math.exp(log_p) * (log_p + 1)
    assert [terms.policy.item(), terms.value.item(), terms.entropy.item()] == pytest.approx([policy, value, entropy])
    assert terms.metrics == {}
    for term, of, wanted in (
        (terms.policy, log_policy, d_policy),
        (terms.value, values, d_values),
        (terms.entropy, log_policy, d_entropy),
    ):
        (got,) = torch.autograd.grad(term, of, retain_graph=True)
        assert_close(got, wanted.detach())
    assert torch.autograd.grad(terms.policy, values, retain_graph=True, allow_unused=True) == (None,)


def test_steps_after_the_end_have_no_gradient_and_no_influence():
    log_policy, values, actions, rewards, mask = episodes(3)
    algorithm = A2C()

    def total(log_policy, values, actions):
        rollout = rollout_of(mask, values)
        terms = algorithm.loss(
            judged(log_policy, values, actions, mask), rollout, algorithm.advantages(rollout, rewards)
        )
        return terms.policy + 0.5 * terms.value - 0.05 * terms.entropy

    one = total(log_policy, values, actions)
    got = torch.autograd.grad(one, [log_policy, values])
    for gradient in got:
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).all()
    other = total(
        torch.where(mask[..., None], log_policy, -3.0),
        torch.where(mask, values, 100.0),
        torch.where(mask, actions, 0),
    )
    assert_close(other, one)
    for first, second in zip(got, torch.autograd.grad(other, [log_policy, values]), strict=True):
        assert_close(first, second)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_tutorials_loss_is_that_of_a_plain_loop(seed):
    log_policy, values, actions, rewards, mask = episodes(seed)
    algorithm, rollout = TutorialA2C(), rollout_of(mask, values)
    everything = torch.ones_like(mask)
    evaluation = judged(log_policy, values, actions, everything)
    terms = algorithm.loss(evaluation, rollout, algorithm.advantages(rollout, rewards))
    d_policy, d_values = torch.zeros_like(log_policy), torch.zeros_like(values)
    policy = value = entropy = 0.0
    for b in range(B):  # means over episodes; the module divides by T * B
        error = (rewards[:, b].sum() - values[:, b].sum()).item()
        value += error**2 * T
        d_values[:, b] = -2 * error * T
        for t in range(T):
            choice = actions[t, b].item()
            policy -= log_policy[t, b, choice].item() * error * T
            d_policy[t, b, choice] = -error * T
            entropy -= sum(math.exp(log_p) * log_p for log_p in log_policy[t, b].tolist())
    assert [terms.policy.item(), terms.value.item(), terms.entropy.item()] == pytest.approx([policy, value, entropy])
    assert_close(torch.autograd.grad(terms.policy, log_policy, retain_graph=True)[0], d_policy.detach())
    assert_close(torch.autograd.grad(terms.value, values, retain_graph=True)[0], d_values.detach())


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (A2C, "vf_coef", -1), (A2C, "ent_coef", float("nan")), (A2C, "ent_target", -0.1), (A2C, "gamma", 0),
        (A2C, "gamma", 1.1), (A2C, "gae_lambda", 0), (A2C, "gae_lambda", -1), (A2C, "vf_coef", float("inf")),
        (TutorialA2C, "vf_coef", -1), (TutorialA2C, "ent_coef", -1),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(make, option, value):
    with pytest.raises(ValueError, match=rf"^model\.algorithm\.{option}: got {value}, expected"):
        make(**{option: value})


# What the module makes of the terms.


def problems(size):
    number = torch.arange(size)
    return Stages(["T0", "T1", "T2"]).draw(number, number % 3, 0, Purpose.PROBLEM, held_out=False)


def module(**options):
    torch.manual_seed(0)
    options = {"env": CalculatorEnv(7, feedback="none"), "reward": OutcomeReward(), "seed": 3, **options}
    built = ToolAgent(**options)
    with torch.no_grad():
        built.agent.policy.weight *= 4  # far from even, so that some problems are solved and some are not
    return built


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_of_a_batch_is_a_mean_over_its_steps(normalize):
    algorithm = A2C(vf_coef=0.7, ent_coef=0.03, gamma=0.9, gae_lambda=0.8, normalize_advantage=normalize)
    built, batch = module(algorithm=algorithm), problems(90)
    rollout = collect(built.agent, built.env, batch, seed=3)
    reward = OutcomeReward()(built.env, rollout)
    advantages, returns = gae(reward.double(), rollout.value.double(), rollout.mask, 0.9, 0.8)
    steps = rollout.mask.nonzero().tolist()
    known = {(t, b): advantages[t, b].item() for t, b in steps}
    if normalize:
        center, scale = mean(known.values()), pstdev(known.values())
        known = {step: (value - center) / (scale + 1e-8) for step, value in known.items()}
    evaluation = built.agent(rollout)
    loss = 0.0
    for t, b in steps:
        loss -= known[t, b] * evaluation.log_prob[t, b]
        loss += 0.7 * (returns[t, b] - evaluation.value[t, b]) ** 2
        loss -= 0.03 * evaluation.entropy[t, b]
    update = built.learn(batch, built.ent_coef)
    assert_close(update.loss.double(), (loss / len(steps)).double(), rtol=1e-5, atol=1e-6)
    assert update.actions == len(steps)
    wanted = torch.autograd.grad(loss / len(steps), list(built.agent.parameters()))
    got = torch.autograd.grad(update.loss, list(built.agent.parameters()))
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_equal_advantages_give_a_finite_loss():
    built = module(algorithm=A2C(normalize_advantage=True))
    rollout = collect(built.agent, built.env, problems(20), seed=3)
    same = built._advantages(rollout, torch.zeros_like(rollout.value), normalize=True)
    assert same.advantages.isfinite().all()
    flat = rollout._replace(value=torch.full_like(rollout.value, 0.25) * rollout.mask)
    assert built._advantages(flat, torch.zeros_like(flat.value), normalize=True).advantages.abs().max() < 1e-3


def test_the_tutorials_loss_gets_the_steps_after_the_end():
    """It is not masked: they count in it as any other."""
    built = module(env=TutorialEnv(max_steps=6), reward=TutorialReward(), algorithm=TutorialA2C())
    batch = problems(50)
    rollout = collect(built.agent, built.env, batch, seed=3, continue_after_done=True)
    assert rollout.mask.shape == (6, 50)
    assert not rollout.mask.all()
    reward = TutorialReward()(built.env, rollout).sum(0)
    cache, log_prob, value, entropy = built.agent.prefill(batch), 0.0, 0.0, 0.0
    for t in range(6):
        policy, cache = built.agent.decode(cache, rollout.previous[t], None)
        one = evaluate(Policy(policy.logits, policy.value), rollout.actions[t])
        log_prob, value, entropy = log_prob + one.log_prob, value + one.value, entropy + one.entropy
    advantage = reward - value
    wanted = -(log_prob * advantage.detach()).mean() + 0.5 * advantage.square().mean() - 0.01 * entropy.mean() / 6
    assert_close(built.learn(batch, built.ent_coef).loss, wanted)
