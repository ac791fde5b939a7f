"""Rewards: what episodes pay, step by step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from toolagent_pl.rl.checks import check_tensor
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.rollout import Rollout


class Reward(ABC):
    """Pays ``N`` finished episodes. Derive from it and name your class: ``--model.reward=mine.Discounted``."""

    def check_env(self, env: Env) -> None:
        """Refuse an environment in which this reward has no meaning.

        Raises:
            ValueError: If it has none.
        """

    @abstractmethod
    def __call__(self, env: Env, rollout: Rollout) -> Tensor:
        """Reward of each step.

        Args:
            env: The environment that the episodes ran in.
            rollout: The episodes; steps after their ends must be ignored.

        Returns:
            float32 ``[T, N]``, zero after the end of an episode.
        """


class OutcomeReward(Reward):
    """1 at the last step of a solved problem, else 0."""

    def __call__(self, env: Env, rollout: Rollout) -> Tensor:
        """Reward of each step, float32 ``[T, N]``."""
        return at_last_step(rollout.solved.float(), rollout)


def at_last_step(reward: Tensor, rollout: Rollout) -> Tensor:
    """``reward`` [N] placed at the last step taken by each episode, float32 ``[T, N]``."""
    step = torch.arange(1, len(rollout.mask) + 1, device=reward.device)[:, None]
    return reward * (step == rollout.steps)


def check_rewards(reward: Reward, rewards: Tensor, rollout: Rollout) -> None:
    """Refuse what a custom reward returned, unless it is float32 ``[T, N]``.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    check_tensor(reward, "__call__", "the rewards", rewards, torch.float32, rollout.mask.shape)
