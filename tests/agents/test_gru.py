"""The recurrences that know their gradients, against those of PyTorch."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from toolagent_pl.agents.gru import gru_step


def gradients(value, *inputs):
    weights = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(7))
    return torch.autograd.grad((value * weights).sum(), inputs)


@pytest.mark.parametrize(("batch", "d"), [(1, 1), (5, 3), (4, 8)])
def test_a_step_and_its_gradients_are_those_of_grucell(batch, d):
    torch.manual_seed(0)
    cell = nn.GRUCell(d, d).double()
    heard = torch.randn(batch, d, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(batch, d, dtype=torch.float64, requires_grad=True)
    inputs = [heard, hidden, *cell.parameters()]
    got = gru_step(heard @ cell.weight_ih.T + cell.bias_ih, hidden, cell)
    wanted = cell(heard, hidden)
    assert_close(got, wanted)
    for one, other in zip(gradients(got, *inputs), gradients(wanted, *inputs), strict=True):
        assert_close(one, other)


def test_several_steps_have_the_gradients_of_grucell():
    torch.manual_seed(1)
    cell = nn.GRUCell(4, 4).double()
    heard = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    first = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    got, wanted = first, first
    for one in heard:
        got = gru_step(one @ cell.weight_ih.T + cell.bias_ih, got, cell)
        wanted = cell(one, wanted)
    inputs = [heard, first, *cell.parameters()]
    for one, other in zip(gradients(got, *inputs), gradients(wanted, *inputs), strict=True):
        assert_close(one, other)


def test_a_step_in_mixed_precision_is_near():
    torch.manual_seed(2)
    cell, heard, hidden = nn.GRUCell(8, 8), torch.randn(5, 8), torch.randn(5, 8).tanh()
    with torch.autocast("cpu", torch.bfloat16):
        got = gru_step(heard @ cell.weight_ih.T + cell.bias_ih, hidden, cell)
    assert_close(got.float(), cell(heard, hidden), atol=0.03, rtol=0.03)
