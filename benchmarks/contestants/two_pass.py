"""Plain PyTorch without loops over problems: act without gradients, then learn from all steps in one pass."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from toolagent_pl import TutorialMachine
from toolagent_pl.tokens import Token


def make(batch: int, stage: int, seed: int, d: int = 96) -> "TwoPass":
    """Build the contestant."""
    return TwoPass(batch, stage, seed, d)


class Network(nn.Module):
    """Embeddings, GRU, and two heads."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, d)
        self.stage = nn.Embedding(STAGES, d)
        self.gru = nn.GRU(d, d)
        self.policy = nn.Linear(d, VOCABULARY)
        self.value = nn.Linear(d, 1)

    def encode(self, operands: Tensor, stage: Tensor, shown: int) -> Tensor:
        """State before the first action, ``[1, B, d]``."""
        count = torch.bincount(operands[:, :shown].flatten(), minlength=VOCABULARY)
        count[Token.CTX] += len(operands)
        context = count / count.sum() @ self.embedding.weight  # [d]
        return torch.tanh(context + self.stage(stage))[None]

    @torch.no_grad()
    def act(self, hidden: Tensor) -> Tensor:
        """Sampled actions, ``[T, B]``."""
        action = torch.full((hidden.shape[1],), Token.CTX)
        actions = []
        for _ in range(ACTIONS):
            _, hidden = self.gru(self.embedding(action)[None], hidden)
            cumulated = F.softmax(self.policy(hidden[0]), 1).cumsum(1)[:, :-1]
            action = (cumulated < torch.rand(len(cumulated), 1)).sum(1)  # faster than torch.multinomial
            actions.append(action)
        return torch.stack(actions)


class TwoPass(Contestant):
    """Plain PyTorch without loops over problems."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        self.batch, self.shown = batch, SHOWN[stage]
        torch.manual_seed(seed)
        net = self.network = Network(d)
        self.parameters = torch_weights.named_parameters(net.embedding, net.stage, net.gru, net.policy, net.value)
        self.load(initial_weights(d, seed))
        self.optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)
        self.machine = TutorialMachine(max_steps=ACTIONS)
        self.stage = torch.full((batch,), stage)

    def load(self, weights: Weights) -> None:
        """Take over these weights."""
        torch_weights.load(self.parameters, weights)

    def _loss(self, operands: Tensor, stage: Tensor, actions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean reward and loss; actions ``[T, B]`` are drawn where none are given."""
        net = self.network
        hidden = net.encode(operands, stage, self.shown)
        if actions is None:
            actions = net.act(hidden.detach())
        reward, _ = self.machine.run(operands, stage, actions.T)
        heard = torch.cat([torch.full_like(actions[:1], Token.CTX), actions[:-1]])
        states, _ = net.gru(net.embedding(heard), hidden)
        log_policy = F.log_softmax(net.policy(states), 2)
        chosen = log_policy.gather(2, actions[..., None])[..., 0].sum(0)
        entropy = -(log_policy.exp() * log_policy).sum(2).mean()
        baseline = net.value(states)[..., 0].sum(0)
        policy_loss = -(chosen * (reward - baseline).detach()).mean()
        loss = policy_loss + VALUE_WEIGHT * F.mse_loss(baseline, reward) - ENTROPY_WEIGHT * entropy
        return reward.mean(), loss

    def update(self) -> tuple[Tensor, Tensor]:
        """Do one whole update."""
        reward, loss = self._loss(torch.randint(10, (self.batch, OPERANDS)), self.stage)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_NORM)
        self.optimizer.step()
        return reward, loss.detach()

    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes and its gradients."""
        stage = self.stage[:1].expand(len(operands))
        _, loss = self._loss(torch.from_numpy(operands), stage, torch.from_numpy(actions).T)
        return loss.item(), torch_weights.gradients(self.parameters, loss)
