"""Calibration: does a confidence of 80 % mean right in 80 %?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, require_at_least, require_between, require_equal_length

_TEMPERATURES = (0.01, 100.0)


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


def negative_log_likelihood(log_probability: NDArray[np.floating]) -> float:
    """The mean of minus the (N,) natural logarithms of the true classes' probabilities, in nats.

    >>> round(negative_log_likelihood(np.log([0.5, 0.25])), 6)
    1.039721
    """
    require_at_least("the number of samples", len(log_probability), 1)
    return -float(log_probability.astype(np.float64).mean())


def brier_score(log_probability: NDArray[np.floating], square_sum: NDArray[np.floating]) -> float:
    """The mean squared distance of the probabilities to the true class's one-hot vector, in [0, 2] (Brier 1950).

    From (N,) ``log_probability`` of the true class and ``square_sum`` of all squared probabilities, as ``Scores`` keep
    them: sum_k (p_k - y_k)^2 = square_sum - 2 p_true + 1.

    >>> brier_score(np.log([1.0]), np.array([1.0]))
    0.0
    """
    require_equal_length("log_probability and square_sum", log_probability, square_sum)
    require_at_least("the number of samples", len(log_probability), 1)
    true = np.exp(log_probability.astype(np.float64))
    return float((square_sum.astype(np.float64) - 2 * true + 1).mean())


def selective_accuracy(confidence: NDArray[np.floating], correct: NDArray[np.bool_], coverage: float) -> float:
    """The accuracy on the most confident ``coverage`` share of the (N,) samples, at least one of them.

    Samples of one confidence at the edge count by their mean, so that their order plays no part.

    >>> selective_accuracy(np.array([0.9, 0.8, 0.4, 0.3]), np.array([True, True, False, True]), 0.5)
    1.0
    """
    require_equal_length("confidence and correct", confidence, correct)
    require_at_least("the number of samples", len(confidence), 1)
    require_between("coverage", coverage, 0, 1)
    taken = max(round(coverage * len(confidence)), 1)
    edge = np.partition(confidence, len(confidence) - taken)[len(confidence) - taken]
    above, level = confidence > edge, confidence == edge
    right = correct[above].sum() + (taken - above.sum()) * correct[level].mean()
    return float(right / taken)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature T to divide (N, K) logits by for the least negative log-likelihood (Guo et al. 2017).

    To be fitted on the reference's validation split, never on a shift. Between 0.01 and 100: where every prediction is
    right, or none better than chance, the best T lies at an end.

    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 3)
    2.0
    """
    from scipy.optimize import minimize_scalar

    require_equal_length("logits and labels", logits, labels)
    require_at_least("the number of samples", len(labels), 1)
    if not np.isfinite(logits).all():
        raise InputError("a logit is not finite. The model's weights are broken.")
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    true = shifted[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        return float((np.log(np.exp(sharpness * shifted).sum(1)) - sharpness * true).mean())

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x))
