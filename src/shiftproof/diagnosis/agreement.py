"""How different two models' predictions are, and whom an ensemble follows (WiSE-FT, sec. 5.1 and app. E).

All functions take (N, K) logits of the same samples in the same order; numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis_records import AgreementRecord, FollowedRecord, Measured, OverrideRecord
from shiftproof.errors import InputError, require_at_least, require_equal_length
from shiftproof.evaluation.intervals import accuracy_interval, bootstrap_interval
from shiftproof.evaluation.metrics import log_probabilities, top_margins

_AT_ONCE = 1 << 22  # logits that are held in float64 together


def prediction_diversity(
    first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.integer]
) -> float:
    """The fraction of samples that exactly one of two models gets right (WiSE-FT, app. E).

    >>> one, other = np.eye(4), np.roll(np.eye(4), 1, axis=1)
    >>> prediction_diversity(one, other, np.array([0, 1, 2, 0]))
    1.0
    """
    right = [_right(logits, labels) for logits in _aligned(first, second)]
    return float((right[0] != right[1]).mean())


def kappa_complement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """1 minus Cohen's kappa of two models' predictions: (1 - observed) / (1 - expected agreement) (WiSE-FT, app. E).

    0 where they always agree, about 1 where they agree as often as chance, more where less often; at most 2. It is 0,
    too, where both name one class alone, and the same, for which kappa is not defined.

    >>> kappa_complement(np.eye(2), np.eye(2)[::-1])
    2.0
    """
    one, other = (logits.argmax(1) for logits in _aligned(first, second))
    shares = [np.bincount(named, minlength=first.shape[1]) / len(named) for named in (one, other)]
    return _complement(float((one == other).mean()), float(shares[0] @ shares[1]))


def error_consistency(first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Cohen's kappa of being right: 1 where two models err on the same samples, 0 as by chance (Geirhos et al. 2020).

    It is 1, too, where both are right, or both wrong, on every sample, for which kappa is not defined.

    >>> error_consistency(np.eye(2), np.eye(2), np.array([0, 0]))
    1.0
    """
    one, other = (_right(logits, labels) for logits in _aligned(first, second))
    return _consistency(one, other)[0]


def kl_divergence(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The mean over samples of KL(first || second) between the models' probabilities, in nats (WiSE-FT, app. E).

    Logits are taken as they are: a model's temperature is part of what is compared. At least 0.

    >>> round(kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])), 6)
    0.143841
    """
    return max(float(_divergences(*_aligned(first, second)).mean()), 0.0)


def margins(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) differences of the two largest outputs of every sample, without a softmax (WiSE-FT, sec. 5.1).

    Zero-shot's margin minus fine-tuned's is what the paper compares, set by set.

    >>> margins(np.array([[3.0, 1.0, 2.5]])).tolist()
    [0.5]
    """
    (logits,) = _aligned(logits)
    found = np.empty(len(logits))
    for rows in _blocks(logits):
        found[rows] = top_margins(logits[rows])
    return found


def override_rates(
    zero_shot: NDArray[np.floating], fine_tuned: NDArray[np.floating], ensemble: NDArray[np.floating]
) -> OverrideRecord:
    """Whom the ensemble follows where zero-shot and fine-tuned disagree; no labels are needed (WiSE-FT, sec. 5.1).

    >>> zero, tuned = np.array([[2.0, 1, 0]] * 4), np.array([[2.0, 1, 0]] + [[0.0, 2, 1]] * 3)
    >>> found = override_rates(zero, tuned, np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    >>> found.disagreements, round(found.zero_shot, 3), round(found.fine_tuned, 3), round(found.neither, 3)
    (3, 0.333, 0.333, 0.333)
    """
    zero, tuned, followed = (logits.argmax(1) for logits in _aligned(zero_shot, fine_tuned, ensemble))
    return _rates(zero, tuned, followed, zero != tuned)


def override_rates_by_right(
    zero_shot: NDArray[np.floating],
    fine_tuned: NDArray[np.floating],
    ensemble: NDArray[np.floating],
    labels: NDArray[np.integer],
) -> dict[str, OverrideRecord]:
    """``override_rates`` apart for disagreements in which ``zero_shot``, ``fine_tuned`` or ``neither`` was right.

    >>> zero, tuned = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2)
    >>> found = override_rates_by_right(zero, tuned, zero, np.array([0, 1]))
    >>> found["fine_tuned"].zero_shot, found["neither"].disagreements
    (1.0, 0)
    """
    zero, tuned, followed = (logits.argmax(1) for logits in _aligned(zero_shot, fine_tuned, ensemble))
    right = _who_was_right(zero_shot, fine_tuned, labels)
    return {name: _rates(zero, tuned, followed, (zero != tuned) & own) for name, own in right.items()}


def gain_beyond_both(
    zero_shot: NDArray[np.floating],
    fine_tuned: NDArray[np.floating],
    ensemble: NDArray[np.floating],
    labels: NDArray[np.integer],
) -> float:
    """Of the samples that the ensemble gets right and fine-tuned does not, the share that zero-shot errs on as well.

    What the ensemble knows and neither end does; 0 where it gains nothing.

    >>> zero, tuned, both = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2), np.array([[0, 0, 1.0], [1, 0, 0]])
    >>> gain_beyond_both(zero, tuned, both, np.array([2, 0]))
    0.5
    """
    zero, tuned, followed = (_right(logits, labels) for logits in _aligned(zero_shot, fine_tuned, ensemble))
    gained = followed & ~tuned
    return float((~zero)[gained].mean()) if gained.any() else 0.0


def measure_agreement(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    labels: NDArray[np.integer] | None = None,
    clusters: ArrayLike | None = None,
) -> AgreementRecord:
    """Every measure of two models' difference, with 95 % bootstrap intervals over samples, or over ``clusters`` (N,).

    A measure that is no mean over samples is linearised first (the delta method): of every sample its influence is
    taken, so that classes or drawings that go together are resampled together there as well. At least two clusters.

    >>> found = measure_agreement(np.eye(4), np.roll(np.eye(4), 1, axis=1))
    >>> found.disagreement.value, found.prediction_diversity
    (1.0, None)
    """
    one, other = (logits.argmax(1) for logits in _aligned(first, second))
    alike = one == other
    right = None if labels is None else (_right(first, labels), _right(second, labels))

    def measured(value: float, samples: NDArray[np.floating] | NDArray[np.bool_]) -> Measured:
        return Measured(float(value), bootstrap_interval(samples, clusters))

    kappa = kappa_complement(first, second)
    forward, backward = _divergences(first, second), _divergences(second, first)
    wider = margins(first) - margins(second)
    return AgreementRecord(
        n=len(one),
        disagreement=measured((~alike).mean(), ~alike),
        kappa_complement=measured(kappa, _linearised(kappa, alike, one, other, first.shape[1])),
        kl_forward=measured(forward.mean(), forward),
        kl_backward=measured(backward.mean(), backward),
        margin_difference=measured(wider.mean(), wider),
        prediction_diversity=None if right is None else measured((right[0] != right[1]).mean(), right[0] != right[1]),
        error_consistency=None if right is None else measured(*_consistency(right[0], right[1])),
    )


def measure_overrides(
    zero_shot: NDArray[np.floating],
    fine_tuned: NDArray[np.floating],
    ensemble: NDArray[np.floating],
    labels: NDArray[np.integer] | None = None,
    clusters: ArrayLike | None = None,
) -> FollowedRecord:
    """``override_rates`` with 95 % intervals, and apart by who was right where labels are given.

    Clopper-Pearson over the disagreements, or bootstrap intervals over the ``clusters`` (N,) that these fall into;
    where they fall into one alone, nothing is known, and the interval is 0 to 1.

    >>> zero, tuned = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2)
    >>> measure_overrides(zero, tuned, zero).zero_shot.interval[1]
    1.0
    """
    zero, tuned, followed = (logits.argmax(1) for logits in _aligned(zero_shot, fine_tuned, ensemble))
    groups = None if clusters is None else np.asarray(clusters)
    if groups is not None:
        require_equal_length("logits and clusters", zero, groups)
    differ = zero != tuned
    by_right = {}
    if labels is not None:
        right = _who_was_right(zero_shot, fine_tuned, labels)
        by_right = {name: _followed(zero, tuned, followed, differ & own, groups) for name, own in right.items()}
    return replace(_followed(zero, tuned, followed, differ, groups), by_right=by_right)


def _followed(
    zero: NDArray[np.intp],
    tuned: NDArray[np.intp],
    followed: NDArray[np.intp],
    among: NDArray[np.bool_],
    groups: NDArray[Any] | None,
) -> FollowedRecord:
    count = int(among.sum())
    own = None if groups is None else groups[among]
    cases = {"zero_shot": followed == zero, "fine_tuned": followed == tuned}
    cases["neither"] = ~(cases["zero_shot"] | cases["fine_tuned"])
    rates = {name: _rate(case[among], own) if count else None for name, case in cases.items()}
    return FollowedRecord(disagreements=count, n=len(zero), by_right={}, **rates)


def _rate(cases: NDArray[np.bool_], groups: NDArray[Any] | None) -> Measured:
    value = float(cases.mean())
    if groups is None:
        return Measured(value, accuracy_interval(int(cases.sum()), len(cases)))
    if len(np.unique(groups)) < 2:
        return Measured(value, (0.0, 1.0))
    return Measured(value, bootstrap_interval(cases, groups))


def _consistency(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """Error consistency, and the samples' values whose mean it is."""
    alike = one == other
    both = one.astype(np.int64), other.astype(np.int64)
    shares = [np.bincount(side, minlength=2) / len(one) for side in both]
    complement = _complement(float(alike.mean()), float(shares[0] @ shares[1]))
    return 1 - complement, 1 - _linearised(complement, alike, *both, 2)


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


def _rates(
    zero: NDArray[np.intp], tuned: NDArray[np.intp], followed: NDArray[np.intp], among: NDArray[np.bool_]
) -> OverrideRecord:
    count = int(among.sum())
    by_zero, by_tuned = ((followed == named)[among].sum() / max(count, 1) for named in (zero, tuned))
    neither = 1 - by_zero - by_tuned if count else 0.0
    return OverrideRecord(float(by_zero), float(by_tuned), max(float(neither), 0.0), count, len(zero))


def _divergences(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) KL divergences."""
    found = np.empty(len(first))
    for rows in _blocks(first):
        one, other = log_probabilities(first[rows]), log_probabilities(second[rows])
        found[rows] = (np.exp(one) * (one - other)).sum(1)
    return found


def _complement(observed: float, expected: float) -> float:
    return 0.0 if expected >= 1 else (1 - observed) / (1 - expected)


def _who_was_right(
    zero_shot: NDArray[np.floating], fine_tuned: NDArray[np.floating], labels: NDArray[np.integer]
) -> dict[str, NDArray[np.bool_]]:
    right = {"zero_shot": _right(zero_shot, labels), "fine_tuned": _right(fine_tuned, labels)}
    return right | {"neither": ~(right["zero_shot"] | right["fine_tuned"])}


def _right(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    require_equal_length("logits and labels", logits, labels)
    return np.asarray(logits.argmax(1) == labels)


def _blocks(logits: NDArray[np.floating]) -> Iterator[slice]:
    step = max(_AT_ONCE // logits.shape[1], 1)
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _aligned(*several: NDArray[np.floating]) -> tuple[NDArray[np.floating], ...]:
    """The logits, once they are finite and of the same samples and classes."""
    for logits in several:
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise InputError(f"logits have the shape {logits.shape}; they must be (N, K) with two classes at least.")
        if logits.shape != several[0].shape:
            raise InputError(
                f"the logits have the shapes {several[0].shape} and {logits.shape}; they must be of the same samples "
                "and classes. Align them by sample id and class id first."
            )
        require_at_least("the number of samples", len(logits), 1)
        if not np.isfinite(logits).all():
            row = int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
            raise InputError(f"the logits of sample {row} are not finite. The model's weights are broken.")
    return several
