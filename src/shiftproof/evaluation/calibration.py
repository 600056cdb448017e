"""Calibration: does a confidence of 80 % mean right in 80 %?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import InputError, require_at_least, require_between, require_equal_length
from shiftproof.evaluation.blocks import ROWS, Logits, logit_blocks
from shiftproof.evaluation.intervals import statistic_interval

BINS = 15
_TEMPERATURES = (0.01, 100.0)
_FITTED = 10_000  # samples that a temperature is fitted on, at most: it is one number


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error over the whole set: the mean |accuracy - confidence| of equal-width bins.

    ``confidence`` (N,) in [0, 1] is the probability of the predicted class, ``correct`` (N,) whether it was
    right; each bin counts by its share of the samples (Guo et al. 2017, arXiv 1706.04599, Eq. 3). Never average it
    over batches: that is biased upward.

    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    index = _bin_index(confidence, correct, bins)
    gap = np.bincount(index, correct.astype(np.float64) - confidence.astype(np.float64), bins)
    return round(float(np.abs(gap).sum() / len(confidence)), 12)


def calibration_interval(
    confidence: NDArray[np.floating],
    correct: NDArray[np.bool_],
    clusters: ArrayLike | None = None,
    *,
    bins: int = BINS,
    draws: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of ``calibration_error``, by resampling samples or ``clusters`` (N,); at least 0.

    The error is biased upward, since every bin's noise counts as error; the interval lies around it all the same.

    >>> low, high = calibration_interval(np.full(100, 0.9), np.arange(100) < 60)
    >>> 0.15 < low < 0.3 < high < 0.45
    True
    """
    index = _bin_index(confidence, correct, bins)
    gap = correct.astype(np.float64) - confidence.astype(np.float64)

    def error(weights: NDArray[np.float64]) -> float:
        return float(np.abs(np.bincount(index, weights * gap, bins)).sum() / weights.sum())

    low, high = statistic_interval(error, len(index), clusters, draws=draws, seed=seed)
    return max(low, 0.0), high


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
    require_at_least("the number of samples", len(log_probability), 1)
    return float(brier_scores(log_probability, square_sum).mean())


def brier_scores(log_probability: NDArray[np.floating], square_sum: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) the squared distances whose mean is ``brier_score``.

    >>> brier_scores(np.log([1.0]), np.array([1.0])).tolist()
    [0.0]
    """
    require_equal_length("log_probability and square_sum", log_probability, square_sum)
    true = np.exp(log_probability.astype(np.float64))
    return np.asarray(square_sum.astype(np.float64) - 2 * true + 1)


def selective_accuracy(confidence: NDArray[np.floating], correct: NDArray[np.bool_], coverage: float) -> float:
    """The accuracy on the most confident ``coverage`` share of the (N,) samples, at least one of them.

    Samples of one confidence at the edge count by their mean, so that their order plays no part.

    >>> selective_accuracy(np.array([0.9, 0.8, 0.4, 0.3]), np.array([True, True, False, True]), 0.5)
    1.0
    """
    require_equal_length("confidence and correct", confidence, correct)
    weights = confident_share(confidence, coverage)
    return float(weights @ correct / weights.sum())


def confident_share(confidence: NDArray[np.floating], coverage: float) -> NDArray[np.float64]:
    """(N,) how far each sample is among the most confident ``coverage`` share: 1, 0 or, at the edge, a part.

    At least one sample is taken; those of one confidence at the edge share what is left.

    >>> confident_share(np.array([0.9, 0.3, 0.8, 0.3]), 0.75).tolist()
    [1.0, 0.5, 1.0, 0.5]
    """
    require_at_least("the number of samples", len(confidence), 1)
    require_between("coverage", coverage, 0, 1)
    taken = max(round(coverage * len(confidence)), 1)
    edge = np.partition(confidence, len(confidence) - taken)[len(confidence) - taken]
    above, level = confidence > edge, confidence == edge
    return np.asarray(above + level * ((taken - above.sum()) / level.sum()))


def fit_temperature(logits: Logits, labels: NDArray[np.integer]) -> float:
    """The temperature T to divide (N, K) logits by for the least negative log-likelihood (Guo et al. 2017).

    To be fitted on the reference's validation split, never on a shift. Between 0.01 and 100: where every prediction is
    right, or none better than chance, the best T lies at an end. Of more than 10,000 samples, so many are taken, spread
    evenly. Logits may be an array or kept predictions.

    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 3)
    2.0
    """
    from scipy.optimize import minimize_scalar

    require_equal_length("logits and labels", range(logits.shape[0]), labels)
    require_at_least("the number of samples", len(labels), 1)
    step = -(-len(labels) // _FITTED)
    some, named = _every(logits, step), labels[::step]

    def loss(log_temperature: float) -> float:
        blocks = enumerate(logit_blocks(some))
        return sum(_loss(block, named[n * ROWS : (n + 1) * ROWS], np.exp(-log_temperature)) for n, block in blocks)

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x))


def _every(logits: Logits, step: int) -> NDArray[np.floating]:
    """Every ``step``-th row, once all are finite; of the others nothing is held."""
    rows, start = [], 0
    for block in logit_blocks(logits):
        if not np.isfinite(block).all():
            raise InputError("a logit is not finite. The model's weights are broken.")
        rows.append(block[-start % step :: step].copy())
        start += len(block)
    return np.concatenate(rows)


def _loss(logits: NDArray[np.floating], labels: NDArray[np.integer], sharpness: float) -> float:
    """The sum of the negative log-likelihoods of logits that are multiplied by ``sharpness``, in float64."""
    shifted = sharpness * (logits.astype(np.float64) - logits.max(1, keepdims=True))
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).sum())


def _bin_index(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int) -> NDArray[np.intp]:
    """(N,) the bin of every sample, once they are probabilities."""
    require_equal_length("confidence and correct", confidence, correct)
    require_at_least("the number of samples", len(confidence), 1)
    require_at_least("bins", bins, 1)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError("a confidence lies outside 0 to 1; it must be a probability, no percentage and no logit.")
    return np.minimum((confidence * bins).astype(np.intp), bins - 1)
