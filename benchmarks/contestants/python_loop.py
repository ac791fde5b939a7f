"""The published tutorial's way: Python handles each problem by itself, tensors only hold the network.

The context of a problem is averaged over the whole batch through a tensor ``[B, B, d]``.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical

from benchmarks.contestants import contestant
from benchmarks.contestants.contestant import ACTIONS, ADD, ANS, CTX, MUL, OPERANDS, RCL, SHOWN, STO, SUB


def episode_reward(operands: list[int], stage: int, program: list[int]) -> float:
    """Carry out the actions for one problem and grade the answer."""
    a, b, c, d, e = operands
    product = a * b
    total = product + c
    less = total - d
    second = d * e
    whole = total - second
    value: int | None = None
    stored = False
    for action in program:
        if action == MUL:
            if value is None:
                value = product
            elif stage > 0:
                value *= d
        elif action == ADD:
            if value is not None:
                value += c
        elif action == SUB:
            if value is not None and stage > 0:
                value -= e if stored and stage == 2 else d
        elif action == STO:
            stored = True
        elif action == RCL:
            if stored:
                value = second if stage == 2 else value or 0
        elif action == ANS:
            if stage == 0:
                graded, paid = product, [(product, 0.25), (total, 0.5)]
            elif stage == 1:
                graded, paid = total, [(product, 0.25), (total, 0.5), (less, 0.75)]
            else:
                graded, paid = less, [(product, 0.2), (total, 0.4), (whole, 0.6), (second, 0.6)]
            return float(value == graded) + 0.2 * sum(share for goal, share in paid if value == goal)
    return 0.0


class Update(contestant.TorchContestant):
    """The published tutorial's way."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        self.stage, self.random = stage, random.Random(seed)
        torch.manual_seed(seed)
        super().__init__(batch, contestant.Network(d), contestant.initial_weights(d, seed), fused=False)

    def problems(self) -> Tensor:
        """Operands of fresh problems."""
        drawn = []
        for _ in range(self.batch):
            drawn.append([self.random.randint(0, 9) for _ in range(OPERANDS)])
        return torch.tensor(drawn)

    def episodes(self, operands: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean reward and loss."""
        net, problems = self.network, operands.tolist()
        shown = torch.empty(len(problems), SHOWN[self.stage] + 1, dtype=torch.int64)
        for row, numbers in zip(shown, problems, strict=True):
            row[:] = torch.tensor([*numbers[: SHOWN[self.stage]], CTX])
        everyone = net.stage(torch.full((len(problems),), self.stage))[:, None] + net.embedding(shown).mean(1)
        hidden = torch.tanh(everyone.mean(1))[None]  # of [B, B, d]
        action, taken, chosen, entropies, values = torch.full((len(problems),), CTX), [], [], [], []
        for t in range(ACTIONS):
            states, hidden = net.gru(net.embedding(action)[None], hidden)
            logits = net.policy(states[0])
            probability = F.softmax(logits, 1)
            action = Categorical(probability).sample() if given is None else given[:, t]
            taken.append(action)
            chosen.append(F.log_softmax(logits, 1).gather(1, action[:, None])[:, 0])
            entropies.append(-(probability * torch.log(probability + 1e-9)).sum(1))
            values.append(net.value(states[0])[:, 0])
        actions = torch.stack(taken, 1)
        rewards = []
        for i, numbers in enumerate(problems):
            rewards.append(episode_reward(numbers, self.stage, actions[i].tolist()))
        reward = torch.tensor(rewards)
        baseline = torch.stack(values, 1).sum(1)
        policy_loss = -(torch.stack(chosen, 1).sum(1) * (reward - baseline).detach()).mean()
        entropy = torch.stack(entropies).mean()
        loss = policy_loss + contestant.VF_COEF * F.mse_loss(baseline, reward) - contestant.ENT_COEF * entropy
        return reward.mean(), loss
