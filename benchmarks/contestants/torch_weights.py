"""Exchange of weights with PyTorch modules, whatever they call their parts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.contestants.contestant import Weights


def named_parameters(
    embedding: nn.Embedding, stage: nn.Embedding, gru: nn.GRU | nn.GRUCell, policy: nn.Linear, value: nn.Linear
) -> dict[str, torch.Tensor]:
    """Parameters by their names in ``initial_weights``."""
    weight_ih, weight_hh, bias_ih, bias_hh = gru.parameters()
    parameters: dict[str, Any] = {
        "embedding": embedding.weight,
        "stage": stage.weight,
        "gru_input": weight_ih,
        "gru_input_bias": bias_ih,
        "gru_hidden": weight_hh,
        "gru_hidden_bias": bias_hh,
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
