"""Whether the contestants do the same work: equal losses, equal gradients, and equally good actions."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from benchmarks.contestants import make, reason_to_skip
from benchmarks.contestants.contestant import ACTIONS, OPERANDS, VOCABULARY, Weights, initial_weights
from toolagent_pl.tokens import TOOLS

TOLERANCE = 1e-4
EPISODES = 256
SAMPLED = 4096  # problems whose rewards are averaged
REFERENCE = "python_loop"
TOOL_BIAS = 2.5  # added to the logits of tools, so that untrained agents get rewards now and then


def check(console: Console, contestants: Sequence[str], stages: Sequence[int], d: int, seed: int = 0) -> bool:
    """Print for each stage and contestant how far it is from the tutorial's way; whether all are near enough.

    Losses and gradients are compared on given actions. What a contestant draws for itself is compared by its mean
    reward, which has to lie within five standard errors of the mean reward of random actions of the same policy.
    """
    good = True
    weights = initial_weights(d, seed)
    weights["policy_bias"][list(TOOLS)] += TOOL_BIAS
    random = np.random.default_rng(seed)
    for stage in stages:
        operands = random.integers(0, 10, (EPISODES, OPERANDS))
        tools = random.random((EPISODES, ACTIONS)) < 0.8
        drawn = random.integers(0, VOCABULARY, (EPISODES, ACTIONS))
        actions = np.where(tools, random.choice([int(tool) for tool in TOOLS], (EPISODES, ACTIONS)), drawn)
        expected_loss, expected = _given(REFERENCE, stage, d, weights, operands, actions)
        expected_reward, error = _sampled(REFERENCE, stage, d, weights, seed + 1)
        for name in contestants:
            if reason := reason_to_skip(name, EPISODES):
                console.print(f"{name}: not checked, {reason}")
                continue
            loss, gradients = _given(name, stage, d, weights, operands, actions)
            loss_off = abs(loss - expected_loss)
            gradient_off = max(float(np.abs(gradients[part] - expected[part]).max()) for part in expected)
            reward, own_error = _sampled(name, stage, d, weights, seed)
            reward_off = abs(reward - expected_reward) / np.hypot(error, own_error)
            agrees = loss_off <= TOLERANCE and gradient_off <= TOLERANCE and reward_off <= 5
            good &= agrees
            console.print(
                f"T{stage} {name:13} loss {loss:9.5f} (off by {loss_off:.0e}), "
                f"gradient of size {max(float(np.abs(g).max()) for g in gradients.values()):.2f} "
                f"(off by at most {gradient_off:.0e}), reward of own actions {reward:.4f} "
                f"({reward_off:.1f} standard errors off): {'agrees' if agrees else 'DIFFERS'}"
            )
    return good


def _given(
    name: str, stage: int, d: int, weights: Weights, operands: np.ndarray, actions: np.ndarray
) -> tuple[float, Weights]:
    contestant = make(name, len(operands), stage, 0, d)
    contestant.load(weights)
    return contestant.loss_and_gradients(operands, actions)


def _sampled(name: str, stage: int, d: int, weights: Weights, seed: int) -> tuple[float, float]:
    """Mean reward of actions that the contestant draws itself, and its standard error."""
    batch = EPISODES
    contestant = make(name, batch, stage, seed, d)
    means = []
    for _ in range(SAMPLED // batch):
        contestant.load(weights)
        means.append(float(contestant.update()[0]))
    return float(np.mean(means)), float(np.std(means, ddof=1) / len(means) ** 0.5)
