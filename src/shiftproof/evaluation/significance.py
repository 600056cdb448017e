"""Tests of a difference between two models on the same samples, and the correction for several such tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import require_at_least, require_between, require_equal_length


def mcnemar_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """McNemar's exact p value for the hypothesis that two models are equally accurate on the same (N,) samples.

    ``first`` and ``second`` say whether the models are right. Only samples that exactly one model gets right count; a
    binomial test compares their numbers (McNemar 1947). The p value is 1 if there are none. The test assumes that
    samples are independent; for several views of one drawing, use a clustered interval instead. Raises an InputError
    for arrays that are empty or of different lengths.

    >>> right, wrong = np.ones(10, bool), np.zeros(10, bool)
    >>> mcnemar_test(right, wrong)
    0.001953125
    """
    from scipy.stats import binomtest

    require_equal_length("the two models' results", first, second)
    require_at_least("the number of samples", len(first), 1)
    first_only, second_only = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = first_only + second_only
    return float(binomtest(first_only, discordant, 0.5).pvalue) if discordant else 1.0


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
