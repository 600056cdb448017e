"""Tests of a difference between two models on the same samples, and the correction for several such tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import require_at_least, require_between, require_equal_length

_LONG = 4096  # sums, from which on a convolution is computed by Fourier transform


def mcnemar_test(first: NDArray[np.bool_], second: NDArray[np.bool_], clusters: ArrayLike | None = None) -> float:
    """McNemar's exact p value for the hypothesis that two models are equally accurate on the same (N,) samples.

    ``first`` and ``second`` say whether the models are right. Only samples that exactly one model gets right count; a
    binomial test compares their numbers (McNemar 1947). The p value is 1 if there are none.

    ``clusters`` (N,) are labels of what belongs together: the drawing, patient, or camera that a sample comes from. The
    test then flips the sign of whole clusters (Fisher 1935): if the models are equally accurate, the difference D_c of
    correct samples in a cluster is as likely to be D_c as -D_c, independently of the other clusters. The p value is the
    probability of a sum at least as far from 0 as the observed one, and is exact. With one sample per cluster this is
    McNemar's test. Raises an InputError for arrays that are empty or of different lengths.

    >>> right, wrong = np.ones(10, bool), np.zeros(10, bool)
    >>> round(mcnemar_test(right, wrong), 9)
    0.001953125
    >>> mcnemar_test(right, wrong, ["a"] * 5 + ["b"] * 5)
    0.5
    """
    require_equal_length("the two models' results", first, second)
    require_at_least("the number of samples", len(first), 1)
    names = np.arange(len(first)) if clusters is None else np.asarray(clusters)
    require_equal_length("samples and clusters", first, names)
    _, index = np.unique(names, return_inverse=True)
    by_cluster = np.bincount(index, first.astype(np.float64) - second).round().astype(np.int64)
    return _sign_flip_test(by_cluster)


def _sign_flip_test(differences: NDArray[np.int64]) -> float:
    """The probability that the sum of (C,) whole numbers is as far from 0 as it is, if every sign were a fair coin."""
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    probability = np.ones(1)  # of the sums -total, ..., total; each step adds the clusters of one size
    for size, count in zip(sizes, counts, strict=True):
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        probability = (
            fftconvolve(probability, steps)
            if min(len(probability), len(steps)) > _LONG
            else np.convolve(probability, steps)
        )
    sums = np.abs(np.arange(len(probability)) - len(probability) // 2)
    return float(min(probability[sums >= abs(int(differences.sum()))].sum(), 1.0))


def holm_correction(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values of several tests (Holm 1979).

    Rejecting the hypotheses whose adjusted value is below a level has at most that probability of any false alarm.
    Raises an InputError for a p value outside [0, 1].

    >>> {name: round(p, 12) for name, p in holm_correction({"sketch": 0.01, "clutter": 0.04, "painting": 0.03}).items()}
    {'sketch': 0.03, 'clutter': 0.06, 'painting': 0.06}
    """
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda entry: entry[1])):
        require_between(f"the p value of {name}", p, 0, 1)
        highest = max(highest, min((len(p_values) - rank) * p, 1.0))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
