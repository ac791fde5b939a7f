"""PPO, GRPO and RLOO: each loss against its formula, written out in float64 for one step of one episode at a time."""

import math
import statistics

import pytest
import torch

from tests.toy import Room, fit
from toolagent_pl.rl.a2c import A2C
from toolagent_pl.rl.agent import Evaluation
from toolagent_pl.rl.algorithm import Advantages
from toolagent_pl.rl.grpo import GRPO, RLOO
from toolagent_pl.rl.mlp import MLPAgent
from toolagent_pl.rl.ppo import PPO
from toolagent_pl.rl.rollout import collect
from toolagent_pl.rl.updates import adapted_ent_coef, explained_variance, minibatches
from toolagent_pl.training.module import ToolAgent

ENV = Room()


def rollout_of(samples: int = 1, problems: int = 12):
    """Episodes, what an agent thinks of them that has changed since, and random rewards."""
    torch.manual_seed(0)
    agent = MLPAgent(ENV, hidden=16)
    with torch.no_grad():
        agent.policy.weight.mul_(20)
    number = torch.arange(problems)
    rollout = collect(
        agent, ENV, ENV.problems(number, number % 2, 0, held_out=False), samples_per_problem=samples, seed=3
    )
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


def test_grpo_is_drawn_back_to_the_agent_that_it_began_with():
    _, rollout, evaluation, rewards = rollout_of(samples=2)
    rollout = rollout._replace(reference_log_prob=rollout.log_prob - 0.2)
    free, bound = GRPO(samples_per_problem=2), GRPO(samples_per_problem=2, kl_coef=0.7)
    advantages = free.advantages(rollout, rewards)
    one, other = (algorithm.loss(evaluation, rollout, advantages) for algorithm in (free, bound))
    kl = 0.0
    for t, n in steps(rollout):
        log_ratio = float(rollout.log_prob[t, n]) - 0.2 - float(evaluation.log_prob[t, n])
        kl += math.exp(log_ratio) - log_ratio - 1
    assert float(other.metrics["reference_kl"]) == pytest.approx(kl, rel=1e-4)
    assert float((other.policy - one.policy).detach()) == pytest.approx(0.7 * kl, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO(epochs=0), "epochs: got 0"),
        (lambda: PPO(clip_range=-1), "clip_range: got -1"),
        (lambda: GRPO(samples_per_problem=1), "samples_per_problem: got 1, expected at least 2 and at most 1024"),
        (lambda: GRPO(kl_coef=-1), "kl_coef: got -1"),
        (lambda: RLOO(ent_coef=float("nan")), "ent_coef: got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def fitted(algorithm, batches: int = 3, **options) -> ToolAgent:
    torch.manual_seed(0)
    module = ToolAgent(ENV, algorithm=algorithm, **options)
    fit(module, batches, 64)
    return module


def watched(algorithm, monkeypatch):
    """What the losses of an algorithm get, from now on."""
    seen, loss = [], algorithm.loss

    def watching(evaluation, rollout, advantages):
        seen.append((rollout, advantages))
        return loss(evaluation, rollout, advantages)

    monkeypatch.setattr(algorithm, "loss", watching)
    return seen


def test_ppo_with_one_update_from_a_rollout_is_a2c():
    """There is nothing to clip: the policy that learns is the one that acted."""
    a2c, ppo = fitted(A2C()), fitted(PPO(epochs=1, minibatches=1, clip_range=0.2))
    for one, other in zip(a2c.parameters(), ppo.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_to_evaluate_a_minibatch_in_parts_changes_nothing():
    whole, parts = fitted(PPO(minibatches=2)), fitted(PPO(minibatches=2), accumulate=3)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, "minibatch", False])
def test_advantages_are_normalised_over_the_batch_or_over_each_minibatch(normalize, monkeypatch):
    algorithm = PPO(epochs=1, minibatches=4, normalize_advantage=normalize)
    seen = watched(algorithm, monkeypatch)
    fitted(algorithm, batches=1)
    each = [advantages.advantages[rollout.mask] for rollout, advantages in seen]
    close = [
        abs(float(values.mean())) < 1e-4 and abs(float(values.std(correction=0)) - 1) < 1e-3
        for values in (torch.cat(each), *each)
    ]
    assert close == [bool(normalize)] + [normalize == "minibatch"] * 4


def test_minibatches_share_out_all_episodes_and_never_divide_a_group():
    _, rollout, _, rewards = rollout_of(samples=2)
    advantages = Advantages(rewards, rewards)
    parts = minibatches(rollout, advantages, 3, 1.0, seed=5, epoch=0)
    assert torch.cat(parts).sort().values.tolist() == list(range(24))
    for part in parts:
        assert part[::2].tolist() == (part[1::2] - 1).tolist()
        assert (part[::2] // 6).tolist() == [0, 1, 2, 3]  # of neighbouring problems one each
    assert not torch.equal(torch.cat(parts), torch.cat(minibatches(rollout, advantages, 3, 1.0, seed=5, epoch=1)))
    with pytest.raises(ValueError, match=r"^batch_size: got 12 problems on a rank, expected a multiple of .*, 5"):
        minibatches(rollout, advantages, 5, 1.0, seed=5, epoch=0)


def test_the_problems_that_are_learned_from_are_those_of_neighbours_with_the_largest_advantages():
    _, rollout, _, rewards = rollout_of(samples=2)
    problem = torch.arange(12).repeat_interleave(2)
    larger = torch.tensor([0.0, 2, 1, -3, 0, 1, 5, 4, 1, 1, -2, 2])  # of each four neighbours two
    advantages = Advantages(larger[problem].expand_as(rewards), rewards)
    parts = minibatches(rollout, advantages, 2, 0.5, seed=5, epoch=0)
    assert problem[torch.cat(parts)].unique().tolist() == [1, 3, 6, 7, 10, 11]
    for part in parts:
        assert part[::2].tolist() == (part[1::2] - 1).tolist()  # both samples
        assert (part[::2] // 8).tolist() == [0, 1, 2]
    (alone,) = minibatches(rollout, advantages, 1, 0.25, seed=5, epoch=0)
    assert problem[alone].unique().tolist() == [3, 6, 10 if 10 in problem[alone] else 11]
    with pytest.raises(ValueError, match=r"^batch_size: got 12 .* of algorithm.minibatches / annealing.downsample, 5"):
        minibatches(rollout, advantages, 4, 0.8, seed=5, epoch=0)


@pytest.mark.parametrize(("target_kl", "updates"), [(None, 8), (-1.0, 1), (1e6, 8)])
def test_no_more_updates_from_a_rollout_once_the_policy_has_moved_far(target_kl, updates, monkeypatch):
    algorithm = PPO(epochs=2, minibatches=4)
    algorithm.target_kl = target_kl
    seen = watched(algorithm, monkeypatch)
    fitted(algorithm, batches=1)
    assert len(seen) == updates


def test_explained_variance_is_one_minus_what_is_left_over_what_there_was():
    _, rollout, _, _ = rollout_of()
    returns = torch.rand(rollout.mask.shape) * rollout.mask
    known = [(float(returns[t, n]), float(rollout.value[t, n])) for t, n in steps(rollout)]
    left = statistics.pvariance(r - v for r, v in known) / statistics.pvariance(r for r, _ in known)
    assert float(explained_variance(rollout, returns, lambda x: x)) == pytest.approx(1 - left, abs=1e-5)
    assert float(explained_variance(rollout._replace(value=returns), returns, lambda x: x)) == pytest.approx(1)
    constant = torch.full_like(returns, 0.3)
    assert float(explained_variance(rollout, constant, lambda x: x)) == 0  # there is nothing to explain


def test_the_weight_of_the_entropy_is_moved_towards_its_target():
    weight = torch.tensor(0.1, dtype=torch.float64)
    entropies = torch.tensor(0.5), torch.tensor(1.5)
    assert [float(adapted_ent_coef(weight, x, 1.0)) for x in entropies] == pytest.approx([0.102, 0.1 / 1.02])
    assert float(fitted(PPO(ent_coef=0.1, ent_target=3.0, minibatches=2)).ent_coef) == pytest.approx(0.1 * 1.02**6)


@pytest.mark.parametrize(
    "algorithm", [A2C(), PPO(), GRPO(samples_per_problem=4), RLOO()], ids=lambda a: type(a).__name__
)
def test_the_curves_have_the_names_that_the_field_uses(algorithm):
    torch.manual_seed(0)
    curves = fit(ToolAgent(ENV, algorithm=algorithm), 1).callback_metrics
    names = {name.removeprefix("train/") for name in curves}
    general = {"reward", "accuracy", "truncated", "episode_length", "gradient_norm", "learning_rate", "ent_coef"}
    assert general | {"policy_loss", "value_loss", "entropy"} <= names
    assert ("explained_variance" in names) == algorithm.needs_value
    assert ({"approx_kl", "clip_fraction"} <= names) == isinstance(algorithm, PPO | GRPO)
    assert sum(float(curves[f"actions/{name}"]) for name in ENV.actions) == pytest.approx(1)
    assert all(bool(value.isfinite()) for value in curves.values())


def test_only_weights_of_linear_layers_decay():
    module = fitted(A2C(), batches=1, learning_rate=0.1, weight_decay=0.5)
    decaying, others = module.optimizers().optimizer.param_groups
    linear = [layer.weight for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    assert [id(weight) for weight in decaying["params"]] == [id(weight) for weight in linear]
    assert [decaying["weight_decay"], others["weight_decay"]] == [0.5, 0.0]
    assert len(others["params"]) == len(list(module.parameters())) - len(linear) > 0


def test_what_an_agent_adds_is_part_of_the_loss():
    agent, rollout, _, rewards = rollout_of()
    module = ToolAgent(ENV, agent=lambda _: agent, algorithm=A2C())
    arguments = torch.arange(6), Advantages(rewards[:, :6], rewards[:, :6]), torch.tensor(4.0), torch.tensor(0.1)
    without, _ = module.minibatch_loss(rollout, *arguments)
    agent.auxiliary_loss = lambda problems: torch.tensor(2.0) * len(problems.number)
    torch.testing.assert_close(module.minibatch_loss(rollout, *arguments)[0], without + 2.0 * 6 / 4.0)
