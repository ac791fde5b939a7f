"""PPO in one file, with nothing but PyTorch, learns T0 (``a*b+c``) on the vector environment.

pip install 'toolagent_pl[gym]' && python examples/cleanrl_style.py
"""

import argparse

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from toolagent_pl.interop.gymnasium import ID

TASK = {"stages": ["T0"]}
ENVS, STEPS, EPOCHS, MINIBATCHES = 256, 8, 4, 4
GAMMA, GAE_LAMBDA, CLIP, VF_COEF, ENT_COEF, MAX_GRAD_NORM = 1.0, 0.95, 0.2, 0.5, 0.02, 0.5


def tensors(observation: dict[str, np.ndarray], infos: dict) -> dict[str, Tensor]:
    """What the agent sees, as tensors, the action mask among it."""
    return {name: torch.as_tensor(array) for name, array in {**observation, "mask": infos["action_mask"]}.items()}


class Agent(nn.Module):
    """An MLP over everything that the environment tells."""

    def __init__(self, env: gymnasium.vector.VectorEnv, width: int = 64) -> None:
        super().__init__()
        space, self.actions = env.single_observation_space, int(env.single_action_space.n)
        self.tokens, self.positions = int(space["prompt"].nvec[0]), int(space["positions"].nvec[0])
        size = len(space["prompt"].nvec) * self.tokens + len(space["positions"].nvec) * self.positions
        size += self.actions + 1 + space["flags"].n
        self.actor = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, self.actions))
        self.critic = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, seen: dict[str, Tensor]) -> tuple[Categorical, Tensor]:
        """Distribution of the next action, and value, float32 ``[N]``."""
        one_hot = nn.functional.one_hot
        parts = [
            one_hot(seen["prompt"], self.tokens).flatten(1),
            one_hot(seen["positions"], self.positions).flatten(1),
            one_hot(seen["previous"], self.actions + 1),
            seen["flags"],
        ]
        x = torch.cat(parts, 1).float()
        logits = self.actor(x).masked_fill(seen["mask"].eq(0), -1e9)
        return Categorical(logits=logits), self.critic(x)[:, 0]


def train(updates: int = 20, seed: int = 0) -> Agent:
    """An agent after so many updates of ``ENVS * STEPS`` steps."""
    torch.manual_seed(seed)
    env = gymnasium.make_vec(ID, num_envs=ENVS, **TASK, autoreset_mode="SameStep")
    agent = Agent(env)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3, eps=1e-5)
    seen = tensors(*env.reset(seed=seed))
    for update in range(updates):
        record, solved, ended = [], 0, 0
        for _ in range(STEPS):
            with torch.no_grad():
                policy, value = agent(seen)
                action = policy.sample()
            observation, reward, terminated, truncated, infos = env.step(action.numpy())
            done = torch.as_tensor(terminated | truncated)
            record.append((seen, action, policy.log_prob(action), value, torch.as_tensor(reward).float(), done))
            seen = tensors(observation, infos)
            solved, ended = solved + int(reward.sum()), ended + int(done.sum())

        # Generalised advantage estimation: Schulman et al., 2016, equation 16.
        with torch.no_grad():
            following, advantage = agent(seen)[1], torch.zeros(ENVS)
        advantages = []
        for _, _, _, value, reward, done in reversed(record):
            delta = reward + GAMMA * following * ~done - value
            advantage = delta + GAMMA * GAE_LAMBDA * advantage * ~done
            advantages.insert(0, advantage)
            following = value

        batch = {name: torch.cat([step[0][name] for step in record]) for name in seen}
        actions, log_probs, values = (torch.cat([step[i] for step in record]) for i in (1, 2, 3))
        advantages = torch.cat(advantages)
        returns = advantages + values
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(actions)).chunk(MINIBATCHES):
                policy, value = agent({name: tensor[rows] for name, tensor in batch.items()})
                ratio = (policy.log_prob(actions[rows]) - log_probs[rows]).exp()
                gain = advantages[rows]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                # The clipped objective: Schulman et al., 2017, equation 7.
                policy_loss = -torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
                value_loss = (value - returns[rows]).square().mean()
                loss = policy_loss + VF_COEF * value_loss - ENT_COEF * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()
        print(f"update {update}: {100 * solved / max(1, ended):.1f}% of {ended} episodes solved")
    return agent


@torch.no_grad()
def accuracy(agent: Agent, problems: int = 1000) -> float:
    """Share of held-out problems that the greedy policy solves."""
    env = gymnasium.make_vec(ID, num_envs=problems, **TASK, held_out=True, autoreset_mode="Disabled")
    observation, infos = env.reset(seed=0)
    over = np.zeros(problems, dtype=bool)
    while not over.all():
        policy, _ = agent(tensors(observation, infos))
        observation, _, terminated, truncated, infos = env.step(policy.logits.argmax(1).numpy())
        over = terminated | truncated
    return float(infos["is_success"].mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"right answers to held-out problems: {100 * accuracy(train(options.updates, options.seed)):.1f}%")
