"""Rewards: what episodes pay, step by step."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from toolagent_pl.agents import Rollout
from toolagent_pl.envs import CalculatorEnv, Env, TutorialEnv
from toolagent_pl.envs.env import check_returned
from toolagent_pl.envs.tutorial import tutorial_reward
from toolagent_pl.problems import Problems


class Reward(ABC):
    """Pays ``N`` finished episodes. Derive from it and name your class in the configuration."""

    def check_env(self, env: Env[Any]) -> None:
        """Refuse an environment in which this reward has no meaning.

        Raises:
            ValueError: If it has none.
        """

    @abstractmethod
    def __call__(self, env: Env[Any], rollout: Rollout) -> Tensor:
        """Reward of each step.

        Args:
            env: The environment that the episodes ran in.
            rollout: The episodes; steps after their ends must be ignored.

        Returns:
            float32 ``[T, N]``, zero after the end of an episode.
        """


class OutcomeReward(Reward):
    """1 at the last step of a solved problem, else 0."""

    def __call__(self, env: Env[Any], rollout: Rollout) -> Tensor:
        """Reward of each step, float32 ``[T, N]``."""
        return at_last_step(rollout.outcome.correct.float(), rollout)


class TutorialReward(Reward):
    """The published tutorial's shaped reward, paid at the last step. Only for the tutorial's environment."""

    def check_env(self, env: Env[Any]) -> None:
        """Refuse any environment but the tutorial's."""
        if not isinstance(env, TutorialEnv):
            raise ValueError(f"model.reward: got TutorialReward with {type(env).__name__}, expected TutorialEnv")

    def __call__(self, env: Env[Any], rollout: Rollout) -> Tensor:
        """Reward of each step, float32 ``[T, N]``."""
        return at_last_step(tutorial_reward(rollout.problems, rollout.outcome), rollout)


class ProgressReward(Reward):
    """The outcome, and ``weight`` for each operator of the problem carried out on the right operands.

    Judged by structure, never by numbers: instead of values the calculator computes which span of the tape a
    value covers, and an operator counts when it joins the two spans that it joins in the problem. Numbers
    that are equal by luck are no progress.

    With ``potential`` the last step pays back what the steps before were paid for operators, so that an episode pays
    its outcome in the end, and the best plans are those of ``OutcomeReward``. That is potential-based shaping, ``F =
    P(s') - P(s)`` without discount, of the potential P(s) = weight x operators carried out, 0 once an episode is over.
    Algorithms that see only what an episode pays as a whole (GRPO, RLOO) do not notice it.

    Source: Ng, Harada and Russell, "Policy Invariance under Reward Transformations", ICML 1999, theorem 1.

    Args:
        weight: Reward for each operator, at the step that carries it out.
        potential: Pay it back at the last step.

    Raises:
        ValueError: If ``weight`` is negative.
    """

    def __init__(self, weight: float = 0.2, potential: bool = False) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"model.reward.weight: got {weight}, expected a number of at least 0")
        self.weight, self.potential = weight, potential

    def check_env(self, env: Env[Any]) -> None:
        """Refuse any environment but the calculator."""
        if not isinstance(env, CalculatorEnv):
            raise ValueError(f"model.reward: got ProgressReward with {type(env).__name__}, expected CalculatorEnv")

    def __call__(self, env: Env[Any], rollout: Rollout) -> Tensor:
        """Reward of each step, float32 ``[T, N]``."""
        assert isinstance(env, CalculatorEnv)  # check_env saw to it
        carried_out = operators_carried_out(env, rollout.problems, rollout.tokens.masked_fill(~rollout.mask, -1))
        at_the_end = rollout.outcome.correct.float()
        if self.potential:
            at_the_end = at_the_end - self.weight * carried_out.sum(0)
        return at_last_step(at_the_end, rollout) + self.weight * carried_out


def operators_carried_out(env: CalculatorEnv, problems: Problems, tokens: Tensor) -> Tensor:
    """Whether each call carried out an operator of the problem on its own operands, bool ``[T, N]``.

    Args:
        tokens: int64 ``[T, N]``; negative ones are padding.
    """
    width = problems.operands.shape[1]
    token, start, split, end = problems.tree.unbind(2)  # [N, M]
    if not token.shape[1]:
        return torch.zeros_like(tokens, dtype=torch.bool)

    def span(first: Tensor, last: Tensor) -> Tensor:
        return first * (width + 1) + last

    def join(tool: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Span of the operator that joins these spans, or -1 where the problem has none."""
        match = (token == tool[:, None]) & (span(start, split) == left[:, None])
        match &= span(split, end) == right[:, None]
        joined = torch.where(match, span(start, end), -1).amax(1)
        return torch.where(tool.eq(0), left, joined)

    position = torch.arange(width, device=problems.device)
    leaves = span(position, position + 1).expand_as(problems.operands)
    state = env.reset(problems._replace(operands=leaves))
    # Compared with numbers: to copy a tensor of them in each update, a GPU would be waited for.
    operates = torch.stack([tokens == operator for operator in env.vocabulary.operators]).any(0)  # [T, N]
    carried_out = []
    for call, operate in zip(tokens, operates, strict=True):
        before, state = state, env.step(state, call, combine=join)
        worked = (state.steps > before.steps) & (state.idle == before.idle)
        carried_out.append(worked & operate & (state.value >= 0))
    return torch.stack(carried_out)


def at_last_step(reward: Tensor, rollout: Rollout) -> Tensor:
    """``reward`` [N] placed at the last step taken by each episode, float32 ``[T, N]``."""
    step = torch.arange(1, len(rollout.mask) + 1, device=reward.device)[:, None]
    return reward * (step == rollout.outcome.steps)


def check_rewards(reward: Reward, rewards: Any, rollout: Rollout) -> None:
    """Refuse what a reward of one's own returned, unless it is float32 ``[T, N]``.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    check_returned(reward, "__call__", "the rewards", rewards, torch.float32, rollout.mask.shape)
