"""What a few runs say: interquartile means, their intervals, and how likely one way beats another.

Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021. Scores
come in strata, one for each task; the runs of a stratum differ in their seeds. Needs SciPy.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Strata = Sequence[Sequence[float]]


class Interval(NamedTuple):
    """A number, and the ends of its 95% interval; these are not numbers where a stratum has a single run."""

    value: float
    low: float
    high: float


def interquartile_mean(*strata: Any, axis: int = -1) -> Any:
    """Mean of the middle half of all scores, strata taken together (section 4.3)."""
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(strata, axis), 0.25, axis=axis)


def bootstrap_interval(strata: Strata, statistic: Callable[..., Any] = interquartile_mean) -> Interval:
    """A statistic with its 95% interval, by percentile bootstrap that draws within each stratum (section 4.1).

    Args:
        strata: Scores, a sequence for each task.
        statistic: Of arrays, one for each stratum, along ``axis``.
    """
    from scipy.stats import bootstrap

    arrays = tuple(np.asarray(scores, dtype=np.float64) for scores in strata)
    value = float(statistic(*arrays, axis=-1))
    if min(map(len, arrays)) < 2:
        return Interval(value, float("nan"), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scores that are all the same
        found = bootstrap(arrays, statistic, method="percentile", n_resamples=2000, vectorized=True, rng=0)
    return Interval(value, float(found.confidence_interval.low), float(found.confidence_interval.high))


def probability_of_improvement(ours: Strata, theirs: Strata) -> Interval:
    """How likely a run of ours has a higher score than one of theirs, ties by half; mean over strata (section 4.3).

    Args:
        ours, theirs: Scores, a sequence for each task, of the same tasks.
    """

    def statistic(*arrays: Any, axis: int = -1) -> Any:
        half, wins = len(arrays) // 2, []
        for mine, other in zip(arrays[:half], arrays[half:], strict=True):
            one, two = np.expand_dims(mine, axis), np.expand_dims(other, axis - 1)
            wins.append(((one > two) + 0.5 * (one == two)).mean((-2, -1)))
        return np.mean(wins, 0)

    if len(ours) != len(theirs):
        raise ValueError(f"strata: got {len(ours)} and {len(theirs)}, expected as many of each")
    return bootstrap_interval([*ours, *theirs], statistic)
