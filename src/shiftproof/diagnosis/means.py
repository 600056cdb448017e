"""Means over samples with bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import require_at_least
from shiftproof.evaluation.intervals import alike_interval, bootstrap_interval
from shiftproof.records.comparisons import Measured

_ROUNDING = 1e-12  # relative to the mean; a narrower interval holds rounding errors only


def measured_mean(
    samples: NDArray[np.floating] | NDArray[np.bool_],
    clusters: ArrayLike | None = None,
    value: float | None = None,
    *,
    bounds: tuple[float, float] | None = None,
) -> Measured:
    """Returns the mean of (N,) samples with its 95 % bootstrap interval, which is None if there is only one cluster.

    ``clusters`` (N,) name the samples that are resampled together. ``value`` is reported in place of the mean of the
    samples, and ``bounds`` are the least and the greatest value that a sample can have; booleans have 0 and 1. Where
    all clusters have the same mean, resampling shows no spread. The interval is then ``alike_interval`` over the
    clusters (for booleans, that of Clopper and Pearson), or None without bounds. Raises an InputError for no samples.

    >>> measured_mean(np.array([True])).interval is None
    True
    """
    require_at_least("the number of samples", len(samples), 1)
    names = range(len(samples)) if clusters is None else np.unique(np.asarray(clusters))
    mean = float(samples.mean())
    value = mean if value is None else value
    if len(names) < 2:
        return Measured(value, None)
    interval = bootstrap_interval(samples, clusters)
    if interval[1] - interval[0] > _ROUNDING * max(1.0, abs(mean)):
        return Measured(value, interval)
    bounds = (0.0, 1.0) if samples.dtype == bool else bounds
    return Measured(
        value, None if bounds is None else alike_interval(float(np.clip(value, *bounds)), len(names), bounds)
    )
