"""The statistics of a table: mean and deviation over seeds, the paired test, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy import optimize, stats

__all__ = [
    "binomial_error",
    "half_interval",
    "holm",
    "mean_and_deviation",
    "paired_difference",
    "paired_differences",
    "visible_difference",
]


def mean_and_deviation(values: Collection[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (ddof = 1); of one value there is no deviation.

    >>> mean_and_deviation([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    values = list(values)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def paired_difference(
    ours: Mapping[int, float], baseline: Mapping[int, float]
) -> tuple[float | None, float | None]:
    """Mean difference ours − baseline over the seeds of both, and two-sided p of the paired t-test.

    Args:
      ours: seed → accuracy.
      baseline: seed → accuracy.

    Returns:
      No difference without a common seed; no p with fewer than two, or where all differences are
      equal: t has no value.

    >>> delta, p = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    >>> delta, round(p, 6)
    (2.0, 0.07418)
    """
    differences = paired_differences(ours, baseline)
    if not differences:
        return None, None
    if not _vary(differences):
        return float(np.mean(differences)), None
    test = stats.ttest_1samp(differences, 0.0)
    p = float(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    return float(np.mean(differences)), p


def paired_differences(ours: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """ours − baseline of each seed that both have."""
    return [ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())]


def half_interval(differences: Sequence[float], confidence: float = 0.95) -> float | None:
    """Half the width of the confidence interval of the mean: Student's t times s/√n.

    >>> round(half_interval([0.0, 1.0, 2.0, 3.0, 4.0]), 3)
    1.963
    """
    if not _vary(differences):
        return None
    bound = float(stats.t.isf((1 - confidence) / 2, len(differences) - 1))
    return _standard_error(differences) * bound


def visible_difference(
    differences: Sequence[float], comparisons: int, *, level: float = 0.05, power: float = 0.8
) -> float | None:
    """The true difference that as many pairs, of this deviation, would have shown.

    The paired t-test at the level of Holm's first step, `level` / `comparisons`, finds it with the
    probability `power`: s/√n times the non-centrality of Student's t that has it.

    Returns:
      None with fewer than two differences, or where all are equal.

    >>> round(visible_difference([0.0, 1.0, 2.0, 3.0, 4.0], comparisons=1), 3)
    2.659
    """
    if not _vary(differences):
        return None
    n = len(differences)
    bound = stats.t.isf(level / comparisons / 2, n - 1)

    def missing(noncentrality: float) -> float:
        return power - float(stats.nct.sf(bound, n - 1, noncentrality))

    found = optimize.brentq(missing, 0.0, 4 * bound + 10)
    return _standard_error(differences) * float(found)  # pyright: ignore[reportArgumentType]


def _standard_error(differences: Sequence[float]) -> float:
    """s/√n of the mean."""
    return float(np.std(differences, ddof=1)) / math.sqrt(len(differences))


def _vary(differences: Sequence[float]) -> bool:
    """Whether t has a value: accuracies are multiples of 1/images, less is rounding alone."""
    return len(differences) > 1 and float(np.ptp(differences)) > 1e-9


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of tests, in the order given.

    p_(i) sorted upwards becomes max over j ≤ i of min(1, (m − j + 1)·p_(j)).

    >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def binomial_error(accuracy: float, images: int) -> float:
    """Standard error of one accuracy from the finite test set, a fraction like the accuracy.

    >>> round(binomial_error(0.68, 10_000), 5)
    0.00466
    """
    return math.sqrt(accuracy * (1 - accuracy) / images)
