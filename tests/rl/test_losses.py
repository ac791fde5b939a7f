"""Advantages and losses against plain loops over steps, in float64, with gradients derived by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from toolagent_pl import TutorialEnv
from toolagent_pl.envs.tutorial import BlindAgent, TutorialA2C, TutorialReward
from toolagent_pl.rl.a2c import A2C
from toolagent_pl.rl.agent import Evaluation, Policy, allowed, evaluate
from toolagent_pl.rl.algorithm import Advantages, gae
from toolagent_pl.rl.rollout import Rollout
from toolagent_pl.training.module import ToolAgent

T, B, A = 5, 6, 4


def judged(log_policy, values, actions, mask):
    """As ``Agent.forward`` says it, but in float64."""
    log_prob = log_policy.gather(2, actions[..., None])[..., 0]
    entropy = -(log_policy.exp() * log_policy).sum(2)
    return Evaluation(*(torch.where(mask, x, 0) for x in (log_prob, entropy, values)))


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
    ("option", "value"),
    [
        ("vf_coef", -1), ("ent_coef", float("nan")), ("ent_target", -0.1), ("gamma", 0), ("gamma", 1.1),
        ("gae_lambda", 0), ("vf_coef", float("inf")),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=rf"^{option}: got {value}, expected"):
        A2C(**{option: value})


def test_log_probability_and_entropy_are_those_of_the_allowed_actions():
    logits = torch.tensor([[math.log(0.5), math.log(0.5), 9.0], [math.log(0.9) + 7, math.log(0.1) + 7, 50.0]])
    mask = torch.tensor([[True, True, False]]).expand(2, -1)
    judged = evaluate(Policy(logits.bfloat16().float(), torch.tensor([1.0, 2.0])), torch.tensor([0, 1]), mask)
    assert judged.log_prob.exp().tolist() == pytest.approx([0.5, 0.1], rel=0.05)
    exact = evaluate(Policy(logits, None), torch.tensor([0, 1]), mask)
    assert exact.log_prob.exp().tolist() == pytest.approx([0.5, 0.1])
    assert exact.entropy.tolist() == pytest.approx([math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1)])
    assert judged.value.tolist() == [1, 2]
    assert exact.value is None
    assert {x.dtype for x in evaluate(Policy(logits.half(), logits[:, 0].half()), torch.tensor([0, 1]))} == {
        torch.float32
    }
    logits.requires_grad_()
    evaluate(Policy(logits, None), torch.tensor([0, 1]), mask).entropy.sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, 2].any()
    assert torch.equal(allowed(logits, None), logits)


def test_the_tutorials_loss_gets_the_steps_after_the_end():
    """It is not masked: they count in it as any other."""
    torch.manual_seed(0)
    env = TutorialEnv(max_steps=6)
    module = ToolAgent(env, BlindAgent, TutorialReward(), TutorialA2C(), seed=3)
    number = torch.arange(50)
    rollout, rewards, advantages = module.collect(env.problems(number, number % 3, 0, held_out=False))
    assert rollout.mask.shape == (6, 50)
    assert not rollout.mask.all()
    loss, _ = module.minibatch_loss(rollout, number, advantages, torch.tensor(300.0), torch.tensor(0.01))
    cache, log_prob, value, entropy = module.agent.prefill(rollout.problems), 0.0, 0.0, 0.0
    for t in range(6):
        policy, cache = module.agent.decode(cache, rollout.previous[t], None)
        one = evaluate(policy, rollout.actions[t])
        log_prob, value, entropy = log_prob + one.log_prob, value + one.value, entropy + one.entropy
    advantage = rewards.sum(0) - value
    wanted = -(log_prob * advantage.detach()).mean() + 0.5 * advantage.square().mean() - 0.01 * entropy.mean() / 6
    assert_close(loss, wanted)
