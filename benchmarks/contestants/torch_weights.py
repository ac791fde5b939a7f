"""Exchange of weights with PyTorch modules, whatever they call their parts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.contestants.contestant import Weights


def named_parameters(
    embedding: nn.Embedding, stage: nn.Embedding, gru: nn.GRU, policy: nn.Linear, value: nn.Linear
) -> dict[str, torch.Tensor]:
    """Parameters by their names in ``initial_weights``."""
    parameters: dict[str, Any] = {
        "embedding": embedding.weight,
        "stage": stage.weight,
        "gru_input": gru.weight_ih_l0,
        "gru_input_bias": gru.bias_ih_l0,
        "gru_hidden": gru.weight_hh_l0,
        "gru_hidden_bias": gru.bias_hh_l0,
        "policy": policy.weight,
        "policy_bias": policy.bias,
        "value": value.weight,
        "value_bias": value.bias,
    }
    return parameters


def load(parameters: Mapping[str, torch.Tensor], weights: Weights) -> None:
    """Overwrite parameters in place."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights[name]))


def gradients(parameters: Mapping[str, torch.Tensor], loss: torch.Tensor) -> Weights:
    """Gradients of a loss; parameters are left without any."""
    loss.backward()
    result = {name: np.array(parameter.grad.cpu()) for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return result
