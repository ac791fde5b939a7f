"""Metrics by stage: sums that are exact."""

import pytest
import torch

from toolagent_pl.training.metrics import StageSums


def sums(stages=3):
    return StageSums(stages, ("tried", "correct"), ("reward",))


def update(metric, stage, correct, reward=None):
    stage, correct = torch.tensor(stage), torch.tensor(correct)
    reward = correct.float() if reward is None else torch.tensor(reward)
    metric.update(stage, tried=torch.ones_like(stage), correct=correct, reward=reward)


def values(metric):
    # torchmetrics hands out a single number as a scalar
    return {name: value.view(-1).tolist() for name, value in metric.compute().items()}


def test_sums_of_each_stage_over_all_batches():
    metric = sums()
    update(metric, [0, 0, 2, 0], [True, False, True, True], [0.25, 1.25, 3.0, 0.0])
    update(metric, [2, 0], [False, False], [0.5, 0.5])
    assert values(metric) == {"tried": [4, 0, 2], "correct": [2, 0, 1], "reward": [2.0, 0.0, 3.5]}


def test_a_single_stage_and_reset():
    metric = sums(1)
    for _ in range(2):
        update(metric, [0], [True], [0.5])
        assert values(metric) == {"tried": [1], "correct": [1], "reward": [0.5]}
        metric.reset()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_counts_and_sums_stay_exact_in_any_precision(dtype):
    """Also where a float32 cannot tell two counts apart, and a bfloat16 not even 256 and 257."""
    module = torch.nn.Module()
    module.sums, module.weight = sums(2), torch.nn.Parameter(torch.zeros(1))
    if dtype:
        module.to(dtype)
        assert module.weight.dtype == dtype
    metric = module.sums
    for count in (2**24, 1, 2**61, 1):
        metric.update(torch.tensor([1]), tried=torch.tensor([count]), correct=torch.tensor([1]), reward=torch.ones(1))
    for _ in range(3):
        update(metric, [0] * 100_000, [True] * 100_000, [0.1] * 100_000)
    assert metric.integers.dtype == torch.int64
    assert metric.floats.dtype == torch.float64
    got = values(metric)
    assert got["tried"] == [300_000, 2**24 + 2**61 + 2]
    assert got["correct"] == [300_000, 4]
    assert got["reward"] == pytest.approx([300_000 * float(torch.tensor(0.1)), 4], rel=1e-10)
