"""Metrics by stage."""

import pytest
import torch

from toolagent_pl.metrics import StageMean


def means(metric):
    return metric.compute().view(-1).tolist()  # torchmetrics hands out a single number as a scalar


def test_mean_of_each_stage_over_all_batches():
    metric = StageMean(3)
    metric.update(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 2, 0]))
    metric.update(torch.tensor([False, False]), torch.tensor([2, 0]))
    assert means(metric) == [0.5, pytest.approx(float("nan"), nan_ok=True), 0.5]


def test_rewards_are_averaged_too():
    metric = StageMean(2)
    metric.update(torch.tensor([0.2, 1.2, 3.0]), torch.tensor([0, 0, 1]))
    assert means(metric) == pytest.approx([0.7, 3.0])


def test_reset_forgets():
    metric = StageMean(2)
    metric.update(torch.tensor([1.0, 1.0]), torch.tensor([0, 1]))
    metric.reset()
    metric.update(torch.tensor([0.0, 0.5]), torch.tensor([0, 1]))
    assert means(metric) == [0.0, 0.5]


def test_a_single_stage():
    metric = StageMean(1)
    metric.update(torch.tensor([0.5]), torch.tensor([0]))
    assert means(metric) == [0.5]


def test_one_mistake_in_a_million_is_not_rounded_away():
    metric = StageMean(2)
    stage = torch.zeros(100_000, dtype=torch.int64)
    for _ in range(9):
        metric.update(stage == 0, stage)
    metric.update(torch.arange(100_000) > 0, stage)
    assert means(metric)[0] < 1
