"""How much two models' predictions differ (WiSE-FT, sec. 5.1 and app. E).

All functions take the (N, K) logits of the same samples in the same order and need numpy only. The functions that
return intervals also take predictions on disk, which they read block by block.
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
    """The fraction of samples that exactly one of two models gets right (WiSE-FT, app. E).

    >>> one, other = np.eye(4), np.roll(np.eye(4), 1, axis=1)
    >>> prediction_diversity(one, other, np.array([0, 1, 2, 0]))
    1.0
    """
    right = [correct_logits(logits, labels) for logits in checked_logits(first, second)]
    return float((right[0] != right[1]).mean())


def kappa_complement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """1 minus Cohen's kappa of two models' predictions: (1 - observed) / (1 - expected agreement) (WiSE-FT, app. E).

    0 where they always agree, about 1 where they agree as often as chance, more where less often; at most 2. It is 0,
    too, where both name one class alone, and the same, for which kappa is not defined.

    >>> kappa_complement(np.eye(2), np.eye(2)[::-1])
    2.0
    """
    one, other = (logits.argmax(1) for logits in checked_logits(first, second))
    return _kappa_complement(one, other, first.shape[1])[0]


def error_consistency(first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Cohen's kappa of being right: 1 where two models err on the same samples, 0 as by chance (Geirhos et al. 2020).

    It is 1, too, where both are right, or both wrong, on every sample, for which kappa is not defined.

    >>> error_consistency(np.eye(2), np.eye(2), np.array([0, 0]))
    1.0
    """
    one, other = (correct_logits(logits, labels).astype(np.int64) for logits in checked_logits(first, second))
    return 1 - _kappa_complement(one, other, 2)[0]


def kl_divergence(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The mean over samples of KL(first || second) between the models' probabilities, in nats (WiSE-FT, app. E).

    Logits are taken as they are: a model's temperature is part of what is compared. At least 0.

    >>> round(kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])), 6)
    0.143841
    """
    return max(float(compare_logits(first, second).forward.mean()), 0.0)


def margins(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) differences of the two largest outputs of every sample, without a softmax (WiSE-FT, sec. 5.1).

    Zero-shot's margin minus fine-tuned's is what the paper compares, set by set.

    >>> margins(np.array([[3.0, 1.0, 2.5]])).tolist()
    [0.5]
    """
    return top_margins(*checked_logits(logits))


@dataclass(frozen=True)
class Comparison:
    """Two models, sample by sample: (N,) arrays, whatever the number of classes.

    ``first`` and ``second`` are the named classes, ``forward`` is KL(first || second) and ``backward`` the other way
    round, in nats, ``wider`` the first's margin minus the second's; ``classes`` is their number.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    forward: NDArray[np.float64]
    backward: NDArray[np.float64]
    wider: NDArray[np.float64]
    classes: int


def compare_logits(first: Logits, second: Logits) -> Comparison:
    """Two models' (N, K) logits in one pass; kept predictions are read block by block.

    >>> found = compare_logits(np.eye(3), np.roll(np.eye(3), 1, axis=1))
    >>> found.second.tolist()
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
    """Every measure of two models' difference, with 95 % bootstrap intervals over samples, or over ``clusters`` (N,).

    A measure that is no mean over samples is linearised first (the delta method): of every sample its influence is
    taken, so that classes or drawings that go together are resampled together there as well. Where there is one
    cluster alone, nothing is known of how the measures vary, and the intervals are None; so are those of KL and of the
    margins where all samples have one value. Logits may be arrays or kept predictions, which are read block by block.

    >>> found = measure_agreement(np.eye(4), np.roll(np.eye(4), 1, axis=1))
    >>> found.disagreement.value, found.prediction_diversity
    (1.0, None)
    """
    return agreement_of(compare_logits(first, second), labels, clusters)


def agreement_of(
    found: Comparison, labels: NDArray[np.integer] | None = None, clusters: ArrayLike | None = None
) -> AgreementRecord:
    """``measure_agreement`` of what ``compare_logits`` found."""
    one, other = found.first, found.second
    alike = one == other
    right = None if labels is None else [correct_predictions(side, labels).astype(np.int64) for side in (one, other)]

    def measured(samples: NDArray[np.floating] | NDArray[np.bool_]) -> Measured:
        return measured_mean(samples, clusters)

    def chance_corrected(one: NDArray[np.integer], other: NDArray[np.integer], kinds: int) -> Measured:
        """The kappa complement of two (N,) choices among so many kinds."""
        value, most = _kappa_complement(one, other, kinds)
        samples = _linearised(value, one == other, one, other, kinds)
        return measured_mean(samples, clusters, value, bounds=None if most is None else (0.0, most))

    return AgreementRecord(
        n=len(one),
        disagreement=measured(~alike),
        kappa_complement=chance_corrected(one, other, found.classes),
        kl_forward=measured(found.forward),
        kl_backward=measured(found.backward),
        margin_difference=measured(found.wider),
        prediction_diversity=None if right is None else measured(right[0] != right[1]),
        error_consistency=None if right is None else chance_corrected(right[0], right[1], 2).one_minus(),
    )


def diversity_contrast(
    first: tuple[Logits, Logits],
    second: tuple[Logits, Logits],
    labels: NDArray[np.integer],
    clusters: ArrayLike | None = None,
) -> Measured:
    """The ``prediction_diversity`` of a first pair of models minus a second pair's, with a paired 95 % interval.

    The paper's first contrast takes zero-shot and fine-tuned, and two fine-tunings (WiSE-FT, app. E). All (N, K) logits
    are of the same samples, arrays or kept predictions, resampled by ``clusters`` (N,) where these are given.

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
    """(N,) values whose mean is a kappa complement, each moved by its sample's influence on it."""
    shares = [np.bincount(side, minlength=kinds) / len(one) for side in (one, other)]
    expected = float(shares[0] @ shares[1])
    if expected >= 1:
        return np.full(len(one), complement)
    of_observed = alike - alike.mean()
    of_expected = shares[1][one] + shares[0][other] - 2 * expected
    return np.asarray(complement + (complement * of_expected - of_observed) / (1 - expected))


def _kappa_complement(one: NDArray[np.integer], other: NDArray[np.integer], classes: int) -> tuple[float, float | None]:
    """The complement of kappa, and what it were if the two never agreed; None where kappa is not defined."""
    shares = [np.bincount(named, minlength=classes) / len(named) for named in (one, other)]
    if (expected := float(shares[0] @ shares[1])) >= 1:
        return 0.0, None
    return (1 - float((one == other).mean())) / (1 - expected), 1 / (1 - expected)
