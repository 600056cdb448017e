"""Shares of samples, such as accuracies, with intervals that respect which samples belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import InputError, require_at_least, require_between, require_equal_length
from shiftproof.evaluation.intervals import LEVEL, accuracy_interval
from shiftproof.records.accuracy import CLUSTERED, INDEPENDENT


@dataclass(frozen=True)
class Proportion:
    """The share of ``n`` samples for which something holds, with its confidence interval.

    ``method`` is ``clopper-pearson`` where every sample is independent, and ``korn-graubard`` where the samples form
    ``clusters``.
    """

    value: float
    interval: tuple[float, float]
    n: int
    method: str = INDEPENDENT
    clusters: int | None = None


def measure_proportion(holds: ArrayLike, clusters: ArrayLike | None = None, *, level: float = LEVEL) -> Proportion:
    """The share of (N,) booleans that are true, with an interval for samples that may belong together.

    ``clusters`` (N,) are labels of any kind: the drawing, patient, or camera that a sample comes from. Without them,
    samples are independent and the interval is that of Clopper and Pearson (1934). With them it is that of Korn and
    Graubard (1998, Survey Methodology 24, 193-201): Clopper-Pearson with the effective number of samples

        n* = n / deff * (t(n - 1) / t(C - 1))^2,    deff = var_C / (p (1 - p) / (n - 1)),

    where var_C is the between-cluster variance of the ratio p over the C clusters and t(d) is the quantile of
    Student's t with d degrees of freedom. n* is at most n. Where all samples agree, no variance can be estimated, and
    n* is the number of clusters, as if a cluster were one sample. With clusters of one sample, n* = n.

    Raises an InputError for no samples, arrays of other shapes than (N,), lengths that differ, and a level outside 0
    to 1. A single cluster says nothing about others: the interval is then 0 to 1.

    >>> alone = measure_proportion([True] * 8 + [False] * 2)
    >>> [round(end, 3) for end in alone.interval], alone.method
    ([0.444, 0.975], 'clopper-pearson')
    >>> pairs = measure_proportion([True] * 8 + [False] * 2, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    >>> [round(end, 3) for end in pairs.interval], pairs.clusters
    ([0.154, 0.999], 5)
    """
    require_between("level", level, 0, 1)
    right = np.asarray(holds, dtype=bool)
    require_at_least("the number of samples", right.size, 1)
    if right.ndim != 1:
        raise InputError(f"the samples have the shape {right.shape}; they must be (N,).")
    n, value = len(right), float(right.mean())
    if clusters is None:
        return Proportion(value, accuracy_interval(int(right.sum()), n, level=level), n)
    names = np.asarray(clusters)
    require_equal_length("samples and clusters", right, names)
    _, index = np.unique(names, return_inverse=True)
    count = int(index.max()) + 1
    if count == n:
        return Proportion(value, accuracy_interval(int(right.sum()), n, level=level), n)
    interval = (0.0, 1.0)
    if count > 1:
        interval = _beta_interval(value, _effective_size(right, index, count, level), level)
    return Proportion(value, interval, n, CLUSTERED, count)


def _effective_size(right: NDArray[np.bool_], index: NDArray[np.intp], count: int, level: float) -> float:
    """n*, the number of independent samples that would leave as much uncertainty as these clusters do."""
    from scipy.stats import t

    n, share = len(right), right.mean()
    if share in (0, 1):
        return float(count)
    residuals = np.bincount(index, right - share)
    variance = count / (count - 1) * (residuals @ residuals) / n**2
    tail = (1 - level) / 2
    few = (t.ppf(tail, n - 1) / t.ppf(tail, count - 1)) ** 2
    # Clusters that are more alike than chance makes them are no reason to claim more samples than there are.
    return float(min(n, n * few * (share * (1 - share) / (n - 1)) / variance)) if variance > 0 else float(n)


def _beta_interval(share: float, size: float, level: float) -> tuple[float, float]:
    """Clopper-Pearson's bounds for a number of samples that need not be whole."""
    from scipy.stats import beta

    tail, successes = (1 - level) / 2, share * size
    low = 0.0 if share == 0 else float(beta.ppf(tail, successes, size - successes + 1))
    high = 1.0 if share == 1 else float(beta.ppf(1 - tail, successes + 1, size - successes))
    return low, high


def worst_group_interval(
    holds: ArrayLike, groups: ArrayLike, clusters: ArrayLike | None = None, *, level: float = LEVEL
) -> tuple[float, float]:
    """An interval of the least accuracy of any group; it covers at least ``level`` where the groups' intervals do.

    The measured minimum lies below the true one on average, because the luckless group is picked after the fact, so
    resampling it covers too little. The lower end here is the least of the groups' own lower ends; the upper end is
    the least of their upper ends after Bonferroni's correction for the number of groups. ``holds``, ``groups`` and
    ``clusters`` are (N,). Raises an InputError if their lengths differ, or if there is no sample.

    >>> right, group = [True] * 90 + [False] * 10 + [True] * 70 + [False] * 30, ["a"] * 100 + ["b"] * 100
    >>> [round(end, 3) for end in worst_group_interval(right, group)]
    [0.6, 0.798]
    """
    right, names = np.asarray(holds, dtype=bool), np.asarray(groups)
    require_equal_length("samples and groups", right, names)
    require_at_least("the number of samples", len(right), 1)
    labels = None if clusters is None else np.asarray(clusters)
    distinct = np.unique(names)
    ends = []
    for name in distinct:
        member = names == name
        among = None if labels is None else labels[member]
        low, _ = measure_proportion(right[member], among, level=level).interval
        _, high = measure_proportion(right[member], among, level=1 - (1 - level) / len(distinct)).interval
        ends.append((low, high))
    return min(low for low, _ in ends), min(high for _, high in ends)
