"""Confidence intervals."""

from __future__ import annotations

from shiftproof.errors import InputError, require_between

LEVEL = 0.95
METHOD = "clopper-pearson"


def accuracy_interval(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The Clopper-Pearson interval of ``correct`` successes in ``n`` trials, as fractions.

    It never covers less than ``level``; with none or all correct, one end is 0 or 1.

    >>> accuracy_interval(0, 10)[0], round(accuracy_interval(0, 10)[1], 4)
    (0.0, 0.3085)
    """
    from scipy.stats import beta

    require_between("level", level, 0, 1)
    if not (n >= 1 and 0 <= correct <= n):
        raise InputError(f"correct is {correct} of n = {n}; it must lie between 0 and n, and n be at least 1.")
    tail = (1 - level) / 2
    low = 0.0 if correct == 0 else float(beta.ppf(tail, correct, n - correct + 1))
    high = 1.0 if correct == n else float(beta.ppf(1 - tail, correct + 1, n - correct))
    return low, high
