"""The work that every contestant does, and how it is asked to do it.

One update: ``batch`` fresh problems of a stage, six sampled actions for each of them over all 18 tokens, the
tutorial's environment and reward, its loss, the backward pass, clipping of the gradient's norm, and Adam. The stage is
given for each problem, as in a mixed batch, and every problem has a state of the network of its own; that the
rows of a batch begin alike is not to be made use of. Only the reader does other work: see there.
"""

from abc import ABC, abstractmethod
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn

from toolagent_pl.tools import Token

Weights = dict[str, np.ndarray]

ACTIONS = 6  # in each episode
VOCABULARY = 18
STAGES = 3
OPERANDS = 5  # a to e; T0 shows the first 3 of them to the network, T1 4, T2 5
SHOWN = (3, 4, 5)
LEARNING_RATE = 3e-4
LARGEST_NORM = 1.0
VF_COEF = 0.5
ENT_COEF = 0.01
CTX, MUL, ADD, SUB, ANS, STO, RCL = map(
    int, (Token.CTX, Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL)
)


class Contestant(ABC):
    """One implementation, ready to train. All but the reader can be compared, too, as ``TorchContestant``."""

    actions: Any = 0  # taken so far

    @abstractmethod
    def update(self) -> SupportsFloat:
        """Do one whole update, and return the loss, which need not be computed until someone makes a float of it."""


class TorchContestant(Contestant):
    """What those made of PyTorch's modules share: the optimizer, and the exchange of weights.

    Args:
        network: Has parts called ``embedding``, ``stage``, ``gru``, ``policy`` and ``value``.
        fused: All weights in one kernel of Adam.
    """

    def __init__(self, batch: int, network: Any, weights: Weights, fused: bool = True) -> None:
        self.batch, self.network = batch, network
        weight_ih, weight_hh, bias_ih, bias_hh = network.gru.parameters()
        parts = [network.embedding.weight, network.stage.weight, weight_ih, bias_ih, weight_hh, bias_hh]
        parts += [network.policy.weight, network.policy.bias, network.value.weight, network.value.bias]
        self.parameters = dict(zip(weights, parts, strict=True))
        self.load(weights)
        self.optimizer = torch.optim.Adam(parts, lr=LEARNING_RATE, fused=fused)
        self.actions = 0

    @abstractmethod
    def problems(self) -> Tensor:
        """Operands of fresh problems, int64 ``[B, 5]``."""

    @abstractmethod
    def episodes(self, operands: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Act, or take the given actions, int64 ``[B, 6]``; mean reward, and loss with gradient."""

    def update(self) -> Tensor:
        """Do one whole update."""
        _, loss = self.episodes(self.problems(), None)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), LARGEST_NORM)
        self.optimizer.step()
        self.actions += self.batch * ACTIONS
        return loss.detach()

    def load(self, weights: Weights) -> None:
        """Take over these weights."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(weights[name]))

    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes, ``[B, 5]`` and ``[B, 6]``, and its gradients, unclipped."""
        _, loss = self.episodes(torch.from_numpy(operands), torch.from_numpy(actions))
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        return loss.item(), {name: g.numpy() for name, g in zip(self.parameters, gradients, strict=True)}

    @torch.no_grad()
    def mean_reward(self, operands: np.ndarray) -> float:
        """Mean reward of actions that it draws itself."""
        return float(self.episodes(torch.from_numpy(operands), None)[0])


class Network(nn.Module):
    """Embeddings, a GRU, and two heads."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, d)
        self.stage = nn.Embedding(STAGES, d)
        self.gru = nn.GRU(d, d)
        self.policy = nn.Linear(d, VOCABULARY)
        self.value = nn.Linear(d, 1)


def initial_weights(d: int, seed: int) -> Weights:
    """Weights as PyTorch draws them at first. Gates of the GRU are stacked as reset, update, new."""
    generator = np.random.default_rng(seed)
    bound = d**-0.5
    linear: dict[str, tuple[int, ...]] = {
        "gru_input": (3 * d, d),
        "gru_input_bias": (3 * d,),
        "gru_hidden": (3 * d, d),
        "gru_hidden_bias": (3 * d,),
        "policy": (VOCABULARY, d),
        "policy_bias": (VOCABULARY,),
        "value": (1, d),
        "value_bias": (1,),
    }
    weights = {"embedding": generator.normal(size=(VOCABULARY, d)), "stage": generator.normal(size=(STAGES, d))}
    weights |= {name: generator.uniform(-bound, bound, shape) for name, shape in linear.items()}
    return {name: value.astype(np.float32) for name, value in weights.items()}
