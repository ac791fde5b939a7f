"""Stable-Baselines3's MaskablePPO, as it is, learns T0 (``a*b+c``), one environment at a time.

pip install 'toolagent_pl[gym]' && python examples/sb3.py
"""

import argparse
from typing import Any

import gymnasium
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_util import make_vec_env

from toolagent_pl.gym import ID

TASK: dict[str, Any] = {"stages": ["T0"]}


def accuracy(model: MaskablePPO, task: dict[str, Any] = TASK, problems: int = 1000) -> float:
    """Share of held-out problems that the greedy policy solves."""
    env = gymnasium.make_vec(ID, num_envs=problems, **task, held_out=True, autoreset_mode="Disabled")
    observation, infos = env.reset(seed=0)
    over = [False]
    while not all(over):
        actions, _ = model.predict(observation, action_masks=infos["action_mask"], deterministic=True)
        observation, _, terminated, truncated, infos = env.step(actions)
        over = terminated | truncated
    return float(infos["is_success"].mean())


def untrained(task: dict[str, Any] = TASK, seed: int = 0) -> MaskablePPO:
    """A policy that has learned nothing yet."""
    env = make_vec_env(ID, n_envs=16, seed=seed, env_kwargs=task)
    return MaskablePPO(
        "MultiInputPolicy", env, n_steps=64, batch_size=256, learning_rate=2e-3, ent_coef=0.02, seed=seed, device="cpu"
    )


def train(steps: int = 5120, seed: int = 0) -> MaskablePPO:
    """A policy that has taken so many steps."""
    return untrained(seed=seed).learn(steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"right answers to held-out problems: {100 * accuracy(train(options.steps, options.seed)):.1f}%")
