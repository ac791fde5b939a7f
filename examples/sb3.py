"""Stable-Baselines3's MaskablePPO, as it is, learns T0 (``a*b+c``) on the vector environment.

pip install 'toolagent_pl[sb3]' && python examples/sb3.py
"""

import argparse
from typing import Any

import gymnasium
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from toolagent_pl.interop.gymnasium import ID
from toolagent_pl.interop.sb3 import BatchVecEnv

TASK: dict[str, Any] = {"stages": ["T0"]}
ENVS, STEPS = 256, 16


def accuracy(model: PPO | MaskablePPO, task: dict[str, Any] = TASK, problems: int = 1000) -> float:
    """Share of held-out problems that the greedy policy solves."""
    env = gymnasium.make_vec(ID, num_envs=problems, **task, held_out=True, autoreset_mode="Disabled")
    observation, infos = env.reset(seed=0)
    over = [False]
    while not all(over):
        masks = {"action_masks": infos["action_mask"]} if isinstance(model, MaskablePPO) else {}
        actions, _ = model.predict(observation, deterministic=True, **masks)
        observation, _, terminated, truncated, infos = env.step(actions)
        over = terminated | truncated
    return float(infos["is_success"].mean())


def untrained(task: dict[str, Any] = TASK, seed: int = 0, algorithm: Any = MaskablePPO) -> Any:
    """A policy that has learned nothing yet."""
    env = VecMonitor(BatchVecEnv(gymnasium.make_vec(ID, num_envs=ENVS, **task, autoreset_mode="SameStep")))
    settings = {"n_steps": STEPS, "batch_size": 256, "learning_rate": 2e-3, "ent_coef": 0.02}
    return algorithm("MultiInputPolicy", env, **settings, seed=seed, device="cpu")


def train(steps: int = 16384, seed: int = 0) -> MaskablePPO:
    """A policy that has taken so many steps."""
    return untrained(seed=seed).learn(steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"right answers to held-out problems: {100 * accuracy(train(options.steps, options.seed)):.1f}%")
