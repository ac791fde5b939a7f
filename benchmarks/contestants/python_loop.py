"""The published tutorial's way: Python handles each problem by itself, tensors only hold the network.

Problems are drawn and padded one by one, the context of a problem is averaged over the whole batch through a
tensor ``[B, B, d]``, ``nn.GRU`` is called once for each action with gradients on, and each episode is carried out
by a Python function.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from benchmarks.contestants import torch_weights
from benchmarks.contestants.contestant import (
    ACTIONS,
    ENTROPY_WEIGHT,
    LARGEST_NORM,
    LEARNING_RATE,
    OPERANDS,
    SHOWN,
    STAGES,
    VALUE_WEIGHT,
    VOCABULARY,
    Contestant,
    Weights,
    initial_weights,
)
from toolagent_pl.tokens import Token

CTX, MUL, ADD, SUB, ANS, STO, RCL = (
    int(token) for token in (Token.CTX, Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL)
)


def make(batch: int, stage: int, seed: int, d: int = 96) -> "PythonLoop":
    """Build the contestant."""
    return PythonLoop(batch, stage, seed, d)


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


class Network(nn.Module):
    """Embeddings, GRU, and two heads."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, d)
        self.stage = nn.Embedding(STAGES, d)
        self.gru = nn.GRU(d, d, batch_first=True)
        self.policy = nn.Linear(d, VOCABULARY)
        self.value = nn.Linear(d, 1)

    def forward(self, shown: Tensor, stage: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities, entropies and values, all ``[B, T]``.

        Args:
            shown: int64 ``[B, L]``.
            stage: int64 ``[B]``.
            given: Actions to take, int64 ``[B, T]``; None draws them.
        """
        problem = self.embedding(shown).mean(1)  # [B, d]
        everyone = self.stage(stage)[:, None] + problem  # [B, B, d]
        hidden = torch.tanh(everyone.mean(1))[None]
        heard = self.embedding(torch.full((len(shown), 1), CTX))
        actions, chosen, entropies, values = [], [], [], []
        for t in range(ACTIONS):
            states, hidden = self.gru(heard, hidden)
            logits = self.policy(states[:, -1])
            probability = F.softmax(logits, 1)
            action = Categorical(probability).sample() if given is None else given[:, t]
            actions.append(action)
            chosen.append(F.log_softmax(logits, 1).gather(1, action[:, None])[:, 0])
            entropies.append(-(probability * torch.log(probability + 1e-9)).sum(1))
            values.append(self.value(states[:, -1])[:, 0])
            heard = self.embedding(action[:, None])
        return torch.stack(actions, 1), torch.stack(chosen, 1), torch.stack(entropies, 1), torch.stack(values, 1)


class PythonLoop(Contestant):
    """The published tutorial's way."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        self.batch, self.stage = batch, stage
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        net = self.network = Network(d)
        self.parameters = torch_weights.named_parameters(net.embedding, net.stage, net.gru, net.policy, net.value)
        self.load(initial_weights(d, seed))
        self.optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)

    def load(self, weights: Weights) -> None:
        """Take over these weights."""
        torch_weights.load(self.parameters, weights)

    def _loss(self, problems: list[list[int]], given: Tensor | None = None) -> tuple[float, Tensor]:
        """Mean reward and loss."""
        shown = torch.empty(len(problems), SHOWN[self.stage] + 1, dtype=torch.int64)
        for row, operands in zip(shown, problems, strict=True):
            row[:] = torch.tensor([*operands[: SHOWN[self.stage]], CTX])
        stage = torch.full((len(problems),), self.stage)
        actions, chosen, entropies, values = self.network(shown, stage, given)
        rewards = []
        for i, operands in enumerate(problems):
            rewards.append(episode_reward(operands, self.stage, actions[i].tolist()))
        reward = torch.tensor(rewards)
        baseline = values.sum(1)
        policy_loss = -(chosen.sum(1) * (reward - baseline).detach()).mean()
        loss = policy_loss + VALUE_WEIGHT * F.mse_loss(baseline, reward) - ENTROPY_WEIGHT * entropies.mean()
        return reward.mean().item(), loss

    def update(self) -> tuple[float, float]:
        """Do one whole update."""
        problems = []
        for _ in range(self.batch):
            problems.append([self.random.randint(0, 9) for _ in range(OPERANDS)])
        reward, loss = self._loss(problems)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_NORM)
        self.optimizer.step()
        return reward, loss.item()

    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes and its gradients."""
        _, loss = self._loss(operands.tolist(), torch.from_numpy(actions))
        return loss.item(), torch_weights.gradients(self.parameters, loss)
