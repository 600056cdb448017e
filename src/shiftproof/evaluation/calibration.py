"""Calibration: does a confidence of 80 % mean right in 80 %?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, require_at_least, require_equal_length


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error over the whole set: the mean |accuracy - confidence| of equal-width bins.

    ``confidence`` (N,) in [0, 1] is the probability of the predicted class, ``correct`` (N,) whether it was
    right; each bin counts by its share of the samples (Guo et al. 2017, arXiv 1706.04599, Eq. 3). Never average it
    over batches: that is biased upward.

    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    require_equal_length("confidence and correct", confidence, correct)
    require_at_least("the number of samples", len(confidence), 1)
    require_at_least("bins", bins, 1)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError("a confidence lies outside 0 to 1; it must be a probability, no percentage and no logit.")
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.zeros(bins)
    np.add.at(gap, index, correct.astype(np.float64) - confidence.astype(np.float64))
    return round(float(np.abs(gap).sum() / len(confidence)), 12)
