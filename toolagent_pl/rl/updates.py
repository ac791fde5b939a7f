"""What every algorithm's updates have in common: minibatches, normalised advantages, the total loss, the entropy."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolagent_pl.rl.algorithm import Advantages, Algorithm, LossTerms
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.random_numbers import Purpose, random_bits
from toolagent_pl.rl.rollout import Rollout

ENT_COEF_RATE = 1.02  # factor by which the entropy's weight moves in an update, where there is a target
ENT_COEF_RANGE = (1e-4, 0.22)
LAST = 2**62  # behind all keys of 62 bits
ROUNDING = 1e-6  # of a variance, over the mean square that it is the difference of

Mean = Callable[[Tensor], Tensor]  # over all ranks


def neighbours_of(problems: int, count: int, share: float) -> int:
    """How many neighbouring problems share out one place in each of ``count`` minibatches.

    Raises:
        ValueError: If minibatches cannot be equal, or such a share cannot be had.
    """
    neighbours = round(count / share)
    if abs(count / neighbours - share) > 0.01 * share:
        raise ValueError(f"downsample: got {share}, expected algorithm.minibatches, {count}, over a whole number")
    if problems % neighbours:
        expected = "algorithm.minibatches" + (" / annealing.downsample" if share < 1 else "")
        got = f"{problems} problems on a rank"
        raise ValueError(f"batch_size: got {got}, expected a multiple of {expected}, {neighbours}")
    return neighbours


def minibatches(
    rollout: Rollout, advantages: Advantages, count: int, share: float, seed: int, epoch: int
) -> list[Tensor]:
    """Which episodes each minibatch takes: of neighbouring problems one each, in random order; int64 each.

    So ranks take equal parts of each minibatch, and a minibatch is the same however many ranks there are.

    Args:
        count: Minibatches.
        share: Of the problems that are learned from: of neighbours those with the largest sum of squared advantages.
            Source: Xu et al., "Not All Rollouts are Useful: Down-Sampling Rollouts in LLM Reinforcement Learning", TMLR
            2026, whose rule keeps the most different rewards; this one, what was expected least.

    Raises:
        ValueError: If they cannot be equal.
    """
    samples = rollout.samples
    number = rollout.problems.number[::samples]
    neighbours = neighbours_of(len(number), count, share)
    if neighbours == 1:
        return [torch.arange(len(rollout.solved), device=number.device)]
    keys = random_bits(seed, Purpose.MINIBATCH, number * 1024 + epoch, bits=62).view(-1, neighbours)
    if share < 1:
        surprise = advantages.advantages.square().sum(0).view(-1, neighbours, samples).sum(2)
        keys = keys.scatter(1, surprise.argsort(1)[:, : neighbours - count], LAST)
    order = keys.argsort(1)[:, :count]
    problem = order + torch.arange(len(order), device=number.device)[:, None] * neighbours
    episodes = problem[..., None] * samples + torch.arange(samples, device=number.device)
    return [episodes[:, k].flatten() for k in range(count)]


def normalized(advantages: Advantages, mask: Tensor, mean_over_ranks: Mean) -> Advantages:
    """The same with advantages of mean 0 and standard deviation 1, over all running steps and all ranks."""
    values = advantages.advantages
    sums = torch.stack([mask.sum(), values.sum(), values.square().sum()])
    count, total, squares = mean_over_ranks(sums.double() if sums.device.type == "cpu" else sums)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return Advantages(((values - mean) / (deviation + 1e-8)).float() * mask, advantages.returns)


def count_steps(algorithm: Algorithm, mask: Tensor) -> Tensor:
    """How many steps count, a float32 scalar."""
    return (torch.ones_like(mask) if algorithm.continue_after_done else mask).sum().float()


def total_loss(algorithm: Algorithm, terms: LossTerms, ent_coef: Tensor) -> Tensor:
    """``policy + vf_coef * value - ent_coef * entropy``."""
    return terms.policy + algorithm.vf_coef * terms.value - ent_coef.float() * terms.entropy


def added(terms: Sequence[LossTerms]) -> LossTerms:
    """The sums over several parts, without gradients."""
    policy, value, entropy = (torch.stack([t[i].detach() for t in terms]).sum() for i in range(3))  # type: ignore[union-attr]
    metrics = {name: torch.stack([t.metrics[name].detach() for t in terms]).sum() for name in terms[0].metrics}
    return LossTerms(policy, value, entropy, metrics)


def adapted_ent_coef(ent_coef: Tensor, entropy: Tensor, target: float) -> Tensor:
    """The weight of the entropy bonus, moved by 2% towards what lets the entropy, in nats, be the target.

    A multiplicative form of what adapts soft actor-critic's temperature (Haarnoja et al., "Soft Actor-Critic
    Algorithms and Applications", 2018, section 5).
    """
    factor = torch.where(entropy < target, ENT_COEF_RATE, 1 / ENT_COEF_RATE)
    return (ent_coef.to(factor.device) * factor).clamp(*ENT_COEF_RANGE)


def explained_variance(rollout: Rollout, returns: Tensor, mean_over_ranks: Mean) -> Tensor:
    """``1 - Var(R - V) / Var(R)`` over all steps and ranks; 0 where all returns are the same."""
    assert rollout.value is not None
    mask = rollout.mask
    returns, error = returns * mask, (returns - rollout.value) * mask
    sums = torch.stack([mask.sum(), returns.sum(), returns.square().sum(), error.sum(), error.square().sum()])
    count, total, squares, off, off_squares = mean_over_ranks(sums.double() if sums.device.type == "cpu" else sums)
    variance = squares / count - (total / count).square()
    left = off_squares / count - (off / count).square()
    return torch.where(variance > ROUNDING * squares / count, 1 - left / variance, 0.0)


def training_metrics(
    env: Env,
    algorithm: Algorithm,
    rollout: Rollout,
    rewards: Tensor,
    advantages: Advantages,
    terms: LossTerms,
    count: Tensor,
    mean_over_ranks: Mean,
) -> dict[str, Tensor]:
    """The terms of the loss and what the agent did, scalars, to be averaged over ranks.

    Args:
        terms: Sums over all minibatches.
        count: How many steps they are sums over, a mean over ranks.
    """
    steps = rollout.steps.sum()
    kinds = torch.arange(len(env.actions), device=rollout.actions.device)
    calls = ((rollout.actions[..., None] == kinds) & rollout.mask[..., None]).sum((0, 1)) / steps  # [A]
    named = {"policy_loss": terms.policy, "value_loss": terms.value, "entropy": terms.entropy, **terms.metrics}
    metrics = {
        "train/reward": rewards.sum(0).mean(),
        "train/accuracy": rollout.solved.float().mean(),
        "train/truncated": rollout.final.truncated.float().mean(),
        **{f"train/{name}": value / count for name, value in named.items()},
        "train/episode_length": steps / len(rollout.solved),
        **{f"train/{name}": value for name, value in env.metrics(rollout).items()},
        **{f"actions/{name}": share for name, share in zip(env.actions, calls, strict=True)},
    }
    if algorithm.needs_value and not algorithm.continue_after_done:
        metrics["train/explained_variance"] = explained_variance(rollout, advantages.returns, mean_over_ranks)
    return metrics
