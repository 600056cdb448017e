"""Calibration: whether predictions of 80 % confidence are right in 80 % of the cases."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import InputError, require_at_least, require_between, require_equal_length
from shiftproof.evaluation.blocks import ROWS, Logits, logit_blocks
from shiftproof.evaluation.intervals import LEVEL, centred_interval, resampled_weights

BINS = 15
_TEMPERATURES = (0.01, 100.0)
_FIT_LIMIT = 10_000  # a temperature is a single number, so that this many samples determine it


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error over the whole set, the mean |accuracy - confidence| over bins of equal width.

    ``confidence`` (N,) in [0, 1] is the probability of the predicted class, ``correct`` (N,) says whether it was
    right; each bin is weighted by its share of the samples (Guo et al. 2017, arXiv 1706.04599, Eq. 3). The result lies
    in [0, 1]. Do not average it over batches, which is biased upward. Raises an InputError for a confidence outside
    [0, 1] and for arrays that are empty or of different lengths.

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
    """The 95 % bootstrap interval of the true calibration error in these bins, resampling samples or ``clusters`` (N,).

    The measured error is biased upward, since the noise of every bin counts as error, and most where the predictor is
    well calibrated. The interval is that of ``statistic_interval``, and reaches down to 0 unless the error is larger
    than what noise alone gives: the 97.5 % quantile over resamples in which every bin is calibrated, because its mean
    gap was subtracted (consistency resampling; Broecker and Smith 2007). The lower end may lie far below the measured
    value. Raises an InputError as ``calibration_error`` does, and for fewer than two clusters.

    >>> low, high = calibration_interval(np.full(100, 0.9), np.arange(100) < 60)
    >>> 0.15 < low < 0.3 < high < 0.45
    True
    >>> calibration_interval(np.full(100, 0.6), np.arange(100) < 58)[0]
    0.0
    """
    index = _bin_index(confidence, correct, bins)
    gap = correct.astype(np.float64) - confidence.astype(np.float64)
    noise = _without_mean(gap, index, bins)

    def error(weights: NDArray[np.float64], of: NDArray[np.float64]) -> float:
        return float(np.abs(np.bincount(index, weights * of, bins)).sum() / weights.sum())

    value, errors, noise_errors = error(np.ones(len(gap)), gap), [], []
    for weights in resampled_weights(len(gap), clusters, draws=draws, seed=seed):
        errors.append(error(weights, gap))
        noise_errors.append(error(weights, noise))
    low, high = centred_interval(value, errors)
    is_noise = value <= np.quantile(noise_errors, (1 + LEVEL) / 2)
    return 0.0 if is_noise else max(low, 0.0), high


def _without_mean(gap: NDArray[np.float64], index: NDArray[np.intp], bins: int) -> NDArray[np.float64]:
    """(N,) gaps less their bin's mean, scaled to the unbiased variance; a bin's only gap says nothing and stays."""
    sizes = np.bincount(index, minlength=bins)
    means = np.bincount(index, gap, bins) / np.maximum(sizes, 1)
    several = sizes > 1
    scale = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    return np.where(several[index], (gap - means[index]) * scale[index], gap)


def negative_log_likelihood(log_probability: NDArray[np.floating]) -> float:
    """The mean negative log-likelihood, in nats, from the (N,) natural logarithms of the true classes' probabilities.

    Raises an InputError for an empty array.

    >>> round(negative_log_likelihood(np.log([0.5, 0.25])), 6)
    1.039721
    """
    require_at_least("the number of samples", len(log_probability), 1)
    return -float(log_probability.astype(np.float64).mean())


def brier_score(log_probability: NDArray[np.floating], square_sum: NDArray[np.floating]) -> float:
    """The mean squared distance of the probabilities to the true class's one-hot vector, in [0, 2] (Brier 1950).

    ``log_probability`` (N,) belongs to the true class and ``square_sum`` (N,) is the sum of all squared probabilities,
    as in ``Scores``: sum_k (p_k - y_k)^2 = square_sum - 2 p_true + 1. Raises an InputError for arrays that are empty or
    of different lengths.

    >>> brier_score(np.log([1.0]), np.array([1.0]))
    0.0
    """
    require_at_least("the number of samples", len(log_probability), 1)
    return float(brier_scores(log_probability, square_sum).mean())


def brier_scores(log_probability: NDArray[np.floating], square_sum: NDArray[np.floating]) -> NDArray[np.float64]:
    """The (N,) squared distances whose mean is ``brier_score``; raises an InputError for different lengths.

    >>> brier_scores(np.log([1.0]), np.array([1.0])).tolist()
    [0.0]
    """
    require_equal_length("log_probability and square_sum", log_probability, square_sum)
    true_probability = np.exp(log_probability.astype(np.float64))
    return np.asarray(square_sum.astype(np.float64) - 2 * true_probability + 1)


def selective_accuracy(confidence: NDArray[np.floating], correct: NDArray[np.bool_], coverage: float) -> float:
    """The accuracy on the most confident ``coverage`` share, in [0, 1], of the (N,) samples, at least one of them.

    Samples of equal confidence at the edge of the share count by their mean, so that their order does not matter.
    Raises an InputError for another coverage and for arrays that are empty or of different lengths.

    >>> selective_accuracy(np.array([0.9, 0.8, 0.4, 0.3]), np.array([True, True, False, True]), 0.5)
    1.0
    """
    require_equal_length("confidence and correct", confidence, correct)
    weights = confident_share(confidence, coverage)
    return float(weights @ correct / weights.sum())


def confident_share(confidence: NDArray[np.floating], coverage: float) -> NDArray[np.float64]:
    """(N,) weights in [0, 1] that select the most confident ``coverage`` share of the samples, at least one of them.

    Samples of equal confidence at the edge of the share divide the rest equally. Raises an InputError for an empty
    array, or for a coverage outside [0, 1].

    >>> confident_share(np.array([0.9, 0.3, 0.8, 0.3]), 0.75).tolist()
    [1.0, 0.5, 1.0, 0.5]
    """
    require_at_least("the number of samples", len(confidence), 1)
    require_between("coverage", coverage, 0, 1)
    count = max(round(coverage * len(confidence)), 1)
    edge = np.partition(confidence, len(confidence) - count)[len(confidence) - count]
    above, tied = confidence > edge, confidence == edge
    return np.asarray(above + tied * ((count - above.sum()) / tied.sum()))


def fit_temperature(logits: Logits, labels: NDArray[np.integer]) -> float:
    """The temperature T that minimises the negative log-likelihood of (N, K) logits divided by T.

    Fit it on the reference's validation split, never on a shift (Guo et al. 2017, arXiv 1706.04599, sec. 4.2). It lies
    between 0.01 and 100; if every prediction is right, or none is better than chance, the best T is at an end of the
    range. At most 10,000 samples are used, evenly spaced. ``logits`` may be an array or stored predictions; ``labels``
    are (N,) positions of classes. Raises an InputError for logits that are not finite and for different lengths.

    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 3)
    2.0
    """
    from scipy.optimize import minimize_scalar

    require_equal_length("logits and labels", range(logits.shape[0]), labels)
    require_at_least("the number of samples", len(labels), 1)
    step = -(-len(labels) // _FIT_LIMIT)
    fit_logits, fit_labels = _every(logits, step), labels[::step]

    def loss(log_temperature: float) -> float:
        blocks = enumerate(logit_blocks(fit_logits))
        return sum(_loss(block, fit_labels[n * ROWS : (n + 1) * ROWS], np.exp(-log_temperature)) for n, block in blocks)

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x))


def _every(logits: Logits, step: int) -> NDArray[np.floating]:
    """Every ``step``-th row; raises an InputError if any row is not finite. The other rows are not held in memory."""
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
    """The (N,) bins of the samples; raises an InputError if a confidence is not a probability."""
    require_equal_length("confidence and correct", confidence, correct)
    require_at_least("the number of samples", len(confidence), 1)
    require_at_least("bins", bins, 1)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError("a confidence lies outside 0 to 1; it must be a probability, not a percentage or a logit.")
    return np.minimum((confidence * bins).astype(np.intp), bins - 1)
