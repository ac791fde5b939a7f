"""The work that every contestant does, and how it is asked to do it.

One update: ``batch`` fresh problems of a stage, six sampled actions for each of them over all 18 tokens, the
tutorial's machine and reward, its loss, the backward pass, clipping of the gradient's norm, and Adam. The stage is
given for each problem, as in a mixed batch, and every problem has a state of the network of its own; that the
rows of a batch begin alike is not to be made use of.
"""

from abc import ABC, abstractmethod
from typing import SupportsFloat

import numpy as np

Weights = dict[str, np.ndarray]

ACTIONS = 6  # in each episode
VOCABULARY = 18
STAGES = 3
OPERANDS = 5  # a to e; T0 shows the first 3 of them to the network, T1 4, T2 5
SHOWN = (3, 4, 5)
LEARNING_RATE = 3e-4
LARGEST_NORM = 1.0
VALUE_WEIGHT = 0.5
ENTROPY_WEIGHT = 0.01


class Contestant(ABC):
    """One implementation, ready to train."""

    @abstractmethod
    def update(self) -> tuple[SupportsFloat, SupportsFloat]:
        """Do one whole update.

        Returns:
            Mean reward and loss. They need not be computed yet; whoever turns them into a float waits for them.
        """

    @abstractmethod
    def load(self, weights: Weights) -> None:
        """Take over these weights, named and shaped as in ``initial_weights``."""

    @abstractmethod
    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes and its gradients, unclipped.

        Args:
            operands: int64 ``[B, 5]``.
            actions: int64 ``[B, 6]``, tokens.
        """


def initial_weights(d: int, seed: int) -> Weights:
    """Weights as PyTorch draws them at first. Gates of the GRU are stacked as reset, update, new."""
    generator = np.random.default_rng(seed)
    bound = d**-0.5
    linear = {
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


def flop_per_token(d: int) -> int:
    """Floating-point operations that training on one token takes at least; see ``FLOP_FORMULA``."""
    return 3 * 2 * (3 * d * d + d * (VOCABULARY + 1))


FLOP_FORMULA = (
    "FLOP per trained token = 3 * 2 * (3*d*d + d*(18+1)): recurrent product of the GRU, policy and value heads;\n"
    "the input projection is a table; one forward pass, and a backward pass of twice that"
)
