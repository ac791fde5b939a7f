"""Statistics over a few runs, against their definitions."""

import itertools
import math

import pytest

pytest.importorskip("scipy")

from benchmarks.statistics import bootstrap_interval, interquartile_mean, probability_of_improvement


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_strata():
    assert interquartile_mean([0.0, 1.0, 5.0, 100.0], [2.0, 3.0, 4.0, 6.0]) == (2 + 3 + 4 + 5) / 4


def test_an_interval_holds_its_value_and_is_the_same_each_time():
    strata = [[0.1, 0.2, 0.4, 0.9, 0.5], [0.7, 0.8, 0.7, 0.95, 0.6]]
    interval = bootstrap_interval(strata)
    assert interval.low < interval.value < interval.high
    assert bootstrap_interval(strata) == interval
    assert bootstrap_interval([[0.5, 0.5], [0.5, 0.5]]) == (0.5, 0.5, 0.5)


def test_runs_are_drawn_within_their_stratum():
    """Whatever is drawn, half of the scores are 0 and half are 1: the mean of the middle half does not move."""
    assert bootstrap_interval([[0.0] * 4, [1.0] * 4]) == (0.5, 0.5, 0.5)


def test_a_single_run_has_no_interval():
    value, *ends = bootstrap_interval([[0.25], [0.75]])
    assert value == 0.5
    assert all(map(math.isnan, ends))


def test_the_probability_of_improvement_counts_pairs_within_strata():
    ours, theirs = [[1.0, 2.0, 3.0], [0.0, 0.5]], [[2.0, 2.0], [0.5, 0.7, 0.9]]
    wanted = []
    for one, other in zip(ours, theirs, strict=True):
        pairs = list(itertools.product(one, other))
        wanted.append(sum((x > y) + 0.5 * (x == y) for x, y in pairs) / len(pairs))
    interval = probability_of_improvement(ours, theirs)
    assert interval.value == pytest.approx(sum(wanted) / 2)
    assert interval.low <= interval.value <= interval.high
    assert probability_of_improvement([[1.0, 2.0]], [[0.0, 0.5]]) == (1, 1, 1)
    with pytest.raises(ValueError, match="got 1 and 2, expected as many"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
