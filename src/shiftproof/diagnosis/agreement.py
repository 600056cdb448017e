"""How much two models' predictions differ (WiSE-FT, sec. 5.1 and app. E).

All functions take the (N, K) logits of two models for the same samples in the same order, and need only numpy. Those
that return intervals also take predictions on disk, which they read block by block. Each raises an InputError where
logits are not finite or differ in shape, and where labels are given for unlabelled images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis.logits import (
    block_rows,
    checked_logits,
    correct_logits,
    correct_predictions,
    named_classes,
    require_alike,
)
from shiftproof.diagnosis.means import measured_mean
from shiftproof.evaluation.blocks import Logits, logit_blocks
from shiftproof.evaluation.metrics import log_probabilities, top_margins
from shiftproof.records.comparisons import AgreementRecord, Measured


def prediction_diversity(
    first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.integer]
) -> float:
    """Returns the fraction of samples, in [0, 1], that exactly one of two models gets right (WiSE-FT, app. E).

    ``first`` and ``second`` are (N, K) logits, ``labels`` (N,) class indices.

    >>> one, other = np.eye(4), np.roll(np.eye(4), 1, axis=1)
    >>> prediction_diversity(one, other, np.array([0, 1, 2, 0]))
    1.0
    """
    right = [correct_logits(logits, labels) for logits in checked_logits(first, second)]
    return float((right[0] != right[1]).mean())


def kappa_complement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Returns 1 minus Cohen's kappa of two models' predictions, from (N, K) logits each (WiSE-FT, app. E).

    It is (1 - observed agreement) / (1 - agreement expected by chance): 0 where the models always agree, about 1 where
    they agree as often as by chance, and up to 2 where they agree less often. It is also 0 where both predict the same
    single class for every sample, for which kappa is not defined.

    >>> kappa_complement(np.eye(2), np.eye(2)[::-1])
    2.0
    """
    one, other = (logits.argmax(1) for logits in checked_logits(first, second))
    return _kappa_complement(one, other, first.shape[1])[0]


def error_consistency(first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Returns Cohen's kappa of two models' correctness, in [-1, 1] (Geirhos et al. 2020, "error consistency").

    It is 1 where the models err on the same samples, and 0 where their errors coincide as often as by chance. It is
    also 1 where both are right, or both wrong, on every sample, for which kappa is not defined. ``first`` and
    ``second`` are (N, K) logits, ``labels`` (N,) class indices.

    >>> error_consistency(np.eye(2), np.eye(2), np.array([0, 0]))
    1.0
    """
    one, other = (correct_logits(logits, labels).astype(np.int64) for logits in checked_logits(first, second))
    return 1 - _kappa_complement(one, other, 2)[0]


def kl_divergence(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Returns the mean over samples of KL(first || second) in nats, from (N, K) logits each (WiSE-FT, app. E).

    Logits are not rescaled, so the comparison includes a model's temperature. The result is at least 0.

    >>> round(kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])), 6)
    0.143841
    """
    return max(float(compare_logits(first, second).forward.mean()), 0.0)


def margins(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (N,) differences between the two largest of every sample's (N, K) logits (WiSE-FT, sec. 5.1).

    No softmax is applied. The paper compares the zero-shot model's margin with the fine-tuned one's on every set.

    >>> margins(np.array([[3.0, 1.0, 2.5]])).tolist()
    [0.5]
    """
    return top_margins(*checked_logits(logits))


@dataclass(frozen=True)
class Comparison:
    """Two models compared sample by sample, in (N,) arrays for any number of classes.

    ``first`` and ``second`` are the predicted classes. ``forward`` is KL(first || second) and ``backward``
    KL(second || first), in nats. ``wider`` is the first model's margin minus the second's, and ``classes`` the number
    of classes.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    forward: NDArray[np.float64]
    backward: NDArray[np.float64]
    wider: NDArray[np.float64]
    classes: int


def compare_logits(first: Logits, second: Logits) -> Comparison:
    """Compares two models' (N, K) logits in one pass; predictions on disk are read block by block.

    Raises an InputError if the shapes differ, or for logits that are not finite.

    >>> comparison = compare_logits(np.eye(3), np.roll(np.eye(3), 1, axis=1))
    >>> comparison.second.tolist()
    [1, 2, 0]
    """
    require_alike(first, second)
    rows = block_rows(first)
    blocks = zip(logit_blocks(first, rows), logit_blocks(second, rows), strict=True)
    parts = [_compared(*checked_logits(*pair, start=number * rows)) for number, pair in enumerate(blocks)]
    one, other, forward, backward, wider = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Comparison(one, other, forward, backward, wider, first.shape[1])


def measure_agreement(
    first: Logits,
    second: Logits,
    labels: NDArray[np.integer] | None = None,
    clusters: ArrayLike | None = None,
) -> AgreementRecord:
    """Measures how two models differ in every way of this module, with 95 % bootstrap intervals.

    ``first`` and ``second`` are (N, K) logits, as arrays or as predictions on disk. ``labels`` (N,) are class indices,
    without which the measures that need them are None. ``clusters`` (N,) name the samples that are resampled together;
    without them, every sample is resampled by itself. The kappas are no means over samples, so they are linearised
    first (the delta method): each sample is represented by its influence, which can be resampled like any other value.
    With only one cluster all intervals are None; those of KL and of the margins are also None where all samples have
    the same value.

    >>> agreement = measure_agreement(np.eye(4), np.roll(np.eye(4), 1, axis=1))
    >>> agreement.disagreement.value, agreement.prediction_diversity
    (1.0, None)
    """
    return agreement_of(compare_logits(first, second), labels, clusters)


def agreement_of(
    comparison: Comparison, labels: NDArray[np.integer] | None = None, clusters: ArrayLike | None = None
) -> AgreementRecord:
    """Returns what ``measure_agreement`` does, from the comparison that ``compare_logits`` made."""
    one, other = comparison.first, comparison.second
    alike = one == other
    right = None if labels is None else [correct_predictions(side, labels).astype(np.int64) for side in (one, other)]

    def measured(samples: NDArray[np.floating] | NDArray[np.bool_]) -> Measured:
        return measured_mean(samples, clusters)

    def chance_corrected(one: NDArray[np.integer], other: NDArray[np.integer], kinds: int) -> Measured:
        """Returns the kappa complement of two (N,) choices among ``kinds`` kinds."""
        value, largest = _kappa_complement(one, other, kinds)
        samples = _linearised(value, one == other, one, other, kinds)
        return measured_mean(samples, clusters, value, bounds=None if largest is None else (0.0, largest))

    return AgreementRecord(
        n=len(one),
        disagreement=measured(~alike),
        kappa_complement=chance_corrected(one, other, comparison.classes),
        kl_forward=measured(comparison.forward),
        kl_backward=measured(comparison.backward),
        margin_difference=measured(comparison.wider),
        prediction_diversity=None if right is None else measured(right[0] != right[1]),
        error_consistency=None if right is None else chance_corrected(right[0], right[1], 2).one_minus(),
    )


def diversity_contrast(
    first: tuple[Logits, Logits],
    second: tuple[Logits, Logits],
    labels: NDArray[np.integer],
    clusters: ArrayLike | None = None,
) -> Measured:
    """Returns the prediction diversity of one pair of models minus that of another, with a paired 95 % interval.

    The paper contrasts the zero-shot and the fine-tuned model with two fine-tuned ones (WiSE-FT, app. E). All (N, K)
    logits are of the same samples, as arrays or as predictions on disk; ``labels`` are (N,) class indices.
    ``clusters`` (N,) name the samples that are resampled together. The value lies in [-1, 1].

    >>> one, other, labels = np.eye(4), np.roll(np.eye(4), 1, axis=1), np.arange(4)
    >>> diversity_contrast((one, other), (one, one), labels).value
    1.0
    """
    apart = [
        np.not_equal(*(correct_predictions(named_classes(logits), labels) for logits in pair))
        for pair in (first, second)
    ]
    return measured_mean(apart[0].astype(np.float64) - apart[1], clusters, bounds=(-1.0, 1.0))


def _compared(first: NDArray[np.floating], second: NDArray[np.floating]) -> tuple[NDArray[Any], ...]:
    one, other = log_probabilities(first), log_probabilities(second)
    apart = one - other
    forward, backward = (np.exp(one) * apart).sum(1), -(np.exp(other) * apart).sum(1)
    wider = top_margins(first) - top_margins(second)
    return first.argmax(1), second.argmax(1), forward, backward, wider


def _linearised(
    complement: float, alike: NDArray[np.bool_], one: NDArray[np.integer], other: NDArray[np.integer], kinds: int
) -> NDArray[np.float64]:
    """Returns (N,) values whose mean is the kappa complement: the complement plus each sample's influence on it."""
    shares = [np.bincount(side, minlength=kinds) / len(one) for side in (one, other)]
    expected = float(shares[0] @ shares[1])
    if expected >= 1:
        return np.full(len(one), complement)
    of_observed = alike - alike.mean()
    of_expected = shares[1][one] + shares[0][other] - 2 * expected
    return np.asarray(complement + (complement * of_expected - of_observed) / (1 - expected))


def _kappa_complement(one: NDArray[np.integer], other: NDArray[np.integer], classes: int) -> tuple[float, float | None]:
    """Returns the complement of kappa and its largest value, which two models that never agree have.

    The largest value is None where kappa is not defined.
    """
    shares = [np.bincount(named, minlength=classes) / len(named) for named in (one, other)]
    if (expected := float(shares[0] @ shares[1])) >= 1:
        return 0.0, None
    return (1 - float((one == other).mean())) / (1 - expected), 1 / (1 - expected)
