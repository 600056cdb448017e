"""Tests of a difference between two models on the same samples, and what several of them are worth together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import require_at_least, require_between, require_equal_length


def mcnemar_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """McNemar's exact p value: are two models, right or wrong on the same (N,) samples, equally accurate?

    Only samples that one alone gets right count; the binomial test asks whether they fall to either side alike. 1 where
    there are none. It takes samples as independent: for several views of one drawing, trust the clustered interval.

    >>> right, wrong = np.ones(10, bool), np.zeros(10, bool)
    >>> mcnemar_test(right, wrong)
    0.001953125
    """
    from scipy.stats import binomtest

    require_equal_length("the two models' results", first, second)
    require_at_least("the number of samples", len(first), 1)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0


def holm_correction(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values of several tests: below a level with at most that probability of any false alarm.

    >>> {name: round(p, 12) for name, p in holm_correction({"sketch": 0.01, "clutter": 0.04, "painting": 0.03}).items()}
    {'sketch': 0.03, 'clutter': 0.06, 'painting': 0.06}
    """
    found, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda entry: entry[1])):
        require_between(f"the p value of {name}", p, 0, 1)
        highest = max(highest, min((len(p_values) - rank) * p, 1.0))
        found[name] = highest
    return {name: found[name] for name in p_values}
