"""Losses against plain loops over steps, in float64, with gradients derived by hand."""

import math
from statistics import mean, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from toolagent_pl.agents import Judgement
from toolagent_pl.agents.agent import chosen_and_entropy
from toolagent_pl.learning import losses
from toolagent_pl.learning.losses import discounted_returns

T, B, A = 5, 6, 4
WEIGHTS = {"value_weight": 0.7, "entropy_weight": 0.03}


def episodes(seed):
    """Inputs of a loss: log_policy, values, choices, returns, mask."""
    generator = torch.Generator().manual_seed(seed)
    log_policy = torch.randn(T, B, A, generator=generator, dtype=torch.float64).log_softmax(2)
    values = torch.randn(T, B, generator=generator, dtype=torch.float64)
    choices = torch.randint(A, (T, B), generator=generator)
    returns = torch.randn(T, B, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    return log_policy.requires_grad_(), values.requires_grad_(), choices, returns, torch.arange(T)[:, None] < lengths


def a2c_loss(log_policy, values, choices, *rest, **options):
    return losses.a2c_loss(Judgement(*chosen_and_entropy(log_policy, choices), values), *rest, **options)


def tutorial_loss(log_policy, values, choices, *rest, **options):
    return losses.tutorial_loss(Judgement(*chosen_and_entropy(log_policy, choices), values), *rest, **options)


def gradients(terms, log_policy, values):
    return torch.autograd.grad(terms.loss, [log_policy, values])


def a2c_by_hand(log_policy, values, choices, returns, mask, normalize):
    """Terms of the loss, and the gradients of the loss, step by step."""
    steps = [(t, b) for t in range(T) for b in range(B) if mask[t, b]]
    advantage = {(t, b): (returns[t, b] - values[t, b]).item() for t, b in steps}
    if normalize:
        center, scale = mean(advantage.values()), pstdev(advantage.values())
        advantage = {step: (value - center) / (scale + 1e-8) for step, value in advantage.items()}
    d_policy, d_values = torch.zeros_like(log_policy), torch.zeros_like(values)
    policy_loss = value_loss = entropy = 0.0
    for t, b in steps:
        share = 1 / len(steps)
        choice = choices[t, b].item()
        error = (values[t, b] - returns[t, b]).item()
        policy_loss -= share * advantage[t, b] * log_policy[t, b, choice].item()
        value_loss += share * error**2
        d_policy[t, b, choice] -= share * advantage[t, b]
        d_values[t, b] = WEIGHTS["value_weight"] * share * 2 * error
        for a, log_p in enumerate(log_policy[t, b].tolist()):
            entropy -= share * math.exp(log_p) * log_p
            d_policy[t, b, a] += WEIGHTS["entropy_weight"] * share * math.exp(log_p) * (log_p + 1)
    return (policy_loss, value_loss, entropy), (d_policy, d_values)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a2c_is_that_of_a_plain_loop(seed, normalize):
    inputs = episodes(seed)
    terms = a2c_loss(*inputs, **WEIGHTS, normalize_advantage=normalize)
    with torch.no_grad():
        (policy_loss, value_loss, entropy), wanted = a2c_by_hand(*inputs, normalize)
    assert [term.item() for term in terms[1:]] == pytest.approx([policy_loss, value_loss, entropy])
    assert terms.loss.item() == pytest.approx(policy_loss + 0.7 * value_loss - 0.03 * entropy)
    for got, want in zip(gradients(terms, *inputs[:2]), wanted, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("normalize", [True, False])
def test_steps_after_the_end_have_no_gradient_and_no_influence(normalize):
    log_policy, values, choices, returns, mask = episodes(3)
    options = {**WEIGHTS, "normalize_advantage": normalize}
    terms = a2c_loss(log_policy, values, choices, returns, mask, **options)
    got = gradients(terms, log_policy, values)
    for gradient in got:
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).all()
    other = a2c_loss(
        torch.where(mask[..., None], log_policy, -3.0),
        torch.where(mask, values, 100.0),
        torch.where(mask, choices, 0),
        torch.where(mask, returns, -100.0),
        mask,
        **options,
    )
    assert_close(torch.stack(other), torch.stack(terms))
    for one, another in zip(got, gradients(other, log_policy, values), strict=True):
        assert_close(one, another)


@pytest.mark.parametrize("normalize", [True, False])
def test_ranks_with_parts_of_a_batch_learn_what_one_rank_learns(normalize):
    inputs = episodes(4)
    log_policy, values, *_ = inputs
    options = {**WEIGHTS, "normalize_advantage": normalize}
    halves = [[column[:, part] for column in inputs] for part in (slice(0, 2), slice(2, None))]  # of unequal size
    counted = []
    for half in halves:
        a2c_loss(*half, **options, mean_over_ranks=lambda x: (counted.append(x), x)[1])
    average = torch.stack(counted).mean(0)
    parts = [gradients(a2c_loss(*half, **options, mean_over_ranks=lambda _: average), *inputs[:2]) for half in halves]
    whole = gradients(a2c_loss(*inputs, **options), log_policy, values)
    for one, *shared in zip(whole, *parts, strict=True):
        assert_close(torch.stack(shared).mean(0), one)


def test_normalized_advantages_do_not_depend_on_the_scale_of_rewards():
    log_policy, values, choices, returns, mask = episodes(5)
    options = {"value_weight": 0.0, "entropy_weight": 0.0, "normalize_advantage": True}
    one = a2c_loss(log_policy, values, choices, returns, mask, **options)
    other = a2c_loss(log_policy, 10 * values + 3, choices, 10 * returns + 5, mask, **options)
    assert other.loss.item() == pytest.approx(one.loss.item())


def test_equal_advantages_give_a_finite_loss():
    log_policy, values, choices, _, mask = episodes(6)
    terms = a2c_loss(log_policy, values, choices, values.detach() + 1, mask, **WEIGHTS, normalize_advantage=True)
    assert all(gradient.isfinite().all() for gradient in gradients(terms, log_policy, values))


@given(
    st.lists(st.tuples(*[st.floats(-10, 10)] * 3), min_size=1, max_size=8),
    st.sampled_from([1.0, 0.9, 0.5]),
)
def test_returns_are_discounted_sums(rows, discount):
    rewards = torch.tensor(rows, dtype=torch.float64)
    returns = discounted_returns(rewards, discount)
    for t in range(len(rows)):
        wanted = sum(discount ** (s - t) * rewards[s] for s in range(t, len(rows)))
        assert_close(returns[t], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_tutorials_loss_is_that_of_a_plain_loop(seed):
    log_policy, values, choices, returns, _ = episodes(seed)
    reward = returns[0]
    terms = tutorial_loss(log_policy, values, choices, reward, **WEIGHTS)
    d_policy, d_values = torch.zeros_like(log_policy), torch.zeros_like(values)
    policy_loss = value_loss = entropy = 0.0
    for b in range(B):
        error = (reward[b] - values[:, b].sum()).item()
        value_loss += error**2 / B
        d_values[:, b] = -WEIGHTS["value_weight"] * 2 * error / B
        for t in range(T):
            choice = choices[t, b].item()
            policy_loss -= log_policy[t, b, choice].item() * error / B
            d_policy[t, b, choice] -= error / B
            for a, log_p in enumerate(log_policy[t, b].tolist()):
                entropy -= math.exp(log_p) * log_p / (T * B)
                d_policy[t, b, a] += WEIGHTS["entropy_weight"] * math.exp(log_p) * (log_p + 1) / (T * B)
    assert [term.item() for term in terms[1:]] == pytest.approx([policy_loss, value_loss, entropy])
    assert terms.loss.item() == pytest.approx(policy_loss + 0.7 * value_loss - 0.03 * entropy)
    for got, want in zip(gradients(terms, log_policy, values), (d_policy, d_values), strict=True):
        assert_close(got, want.detach())
