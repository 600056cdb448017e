"""How different two models' predictions are, and whom an ensemble follows (WiSE-FT, sec. 5.1 and app. E).

All functions take (N, K) logits of the same samples in the same order; numpy only. What gives
intervals takes kept predictions as well, block by block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import InputError, require_at_least, require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks
from shiftproof.evaluation.intervals import accuracy_interval, alike_interval, bootstrap_interval
from shiftproof.evaluation.metrics import log_probabilities, top_margins
from shiftproof.records.comparisons import AgreementRecord, FollowedRecord, Measured, OverrideRecord

_AT_ONCE = 1 << 20  # logits that are held in float64 together
_ROUNDING = 1e-12  # of a mean; a narrower interval is no interval


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
    return _kappa_complement(one, other, first.shape[1])[0]


def error_consistency(first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Cohen's kappa of being right: 1 where two models err on the same samples, 0 as by chance (Geirhos et al. 2020).

    It is 1, too, where both are right, or both wrong, on every sample, for which kappa is not defined.

    >>> error_consistency(np.eye(2), np.eye(2), np.array([0, 0]))
    1.0
    """
    one, other = (_right(logits, labels).astype(np.int64) for logits in _aligned(first, second))
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
    return top_margins(*_aligned(logits))


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
    right = _who_was_right(zero, tuned, labels)
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
    _require_alike(first, second)
    rows = max(_AT_ONCE // first.shape[1], 1)
    blocks = zip(logit_blocks(first, rows), logit_blocks(second, rows), strict=True)
    parts = [_compared(*_aligned(*pair, start=number * rows)) for number, pair in enumerate(blocks)]
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
    right = None if labels is None else [_hits(side, labels).astype(np.int64) for side in (one, other)]

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
    apart = [np.not_equal(*(_hits(named_classes(logits), labels) for logits in pair)) for pair in (first, second)]
    return measured_mean(apart[0].astype(np.float64) - apart[1], clusters, bounds=(-1.0, 1.0))


def measure_overrides(
    zero_shot: Logits,
    fine_tuned: Logits,
    ensemble: Logits,
    labels: NDArray[np.integer] | None = None,
    clusters: ArrayLike | None = None,
) -> FollowedRecord:
    """``override_rates`` with 95 % intervals, and apart by who was right where labels are given.

    Clopper-Pearson over the disagreements, or bootstrap intervals over the ``clusters`` (N,) that these fall into;
    where they fall into one alone, nothing is known, and the interval is 0 to 1. With labels, ``beyond_both`` is
    ``gain_beyond_both``.

    >>> zero, tuned = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2)
    >>> measure_overrides(zero, tuned, zero).zero_shot.interval[1]
    1.0
    """
    _require_alike(zero_shot, fine_tuned, ensemble)
    return overrides_of(*map(named_classes, (zero_shot, fine_tuned, ensemble)), labels=labels, clusters=clusters)


def overrides_of(
    zero: NDArray[np.int64],
    tuned: NDArray[np.int64],
    followed: NDArray[np.int64],
    *,
    labels: NDArray[np.integer] | None = None,
    clusters: ArrayLike | None = None,
) -> FollowedRecord:
    """``measure_overrides`` of the (N,) classes that the three models name."""
    for named in (tuned, followed):
        require_equal_length("two models' predictions", zero, named)
    groups = None if clusters is None else np.asarray(clusters)
    if groups is not None:
        require_equal_length("logits and clusters", zero, groups)
    differ = zero != tuned
    found = _followed(zero, tuned, followed, differ, groups)
    if labels is None:
        return found
    right = _who_was_right(zero, tuned, labels)
    by_right = {name: _followed(zero, tuned, followed, differ & own, groups) for name, own in right.items()}
    gained = _hits(followed, labels) & ~right["fine_tuned"]
    beyond = _rate(~right["zero_shot"][gained], None if groups is None else groups[gained]) if gained.any() else None
    return replace(found, by_right=by_right, beyond_both=beyond)


def named_classes(logits: Logits) -> NDArray[np.int64]:
    """(N,) the classes that (N, K) logits name; kept predictions are read block by block.

    >>> named_classes(np.eye(3)).tolist()
    [0, 1, 2]
    """
    rows = max(_AT_ONCE // logits.shape[1], 1)
    blocks = enumerate(logit_blocks(logits, rows))
    return np.concatenate([_aligned(block, start=number * rows)[0].argmax(1) for number, block in blocks])


def measured_mean(
    samples: NDArray[np.floating] | NDArray[np.bool_],
    clusters: ArrayLike | None = None,
    value: float | None = None,
    *,
    bounds: tuple[float, float] | None = None,
) -> Measured:
    """The mean of (N,) samples with its 95 % bootstrap interval, which is None where there is one cluster alone.

    Where all clusters are alike, resampling shows no spread: then it is ``alike_interval`` over the clusters, for cases
    (true or false) Clopper-Pearson's, and None where the ``bounds`` of a sample are not known.

    >>> measured_mean(np.array([True])).interval is None
    True
    """
    require_at_least("the number of samples", len(samples), 1)
    names = range(len(samples)) if clusters is None else np.unique(np.asarray(clusters))
    mean = float(samples.mean())
    value = mean if value is None else value
    if len(names) < 2:
        return Measured(value, None)
    interval = bootstrap_interval(samples, clusters)
    if interval[1] - interval[0] > _ROUNDING * max(1.0, abs(mean)):
        return Measured(value, interval)
    bounds = (0.0, 1.0) if samples.dtype == bool else bounds
    return Measured(
        value, None if bounds is None else alike_interval(float(np.clip(value, *bounds)), len(names), bounds)
    )


def _compared(first: NDArray[np.floating], second: NDArray[np.floating]) -> tuple[NDArray[Any], ...]:
    one, other = log_probabilities(first), log_probabilities(second)
    apart = one - other
    forward, backward = (np.exp(one) * apart).sum(1), -(np.exp(other) * apart).sum(1)
    wider = top_margins(first) - top_margins(second)
    return first.argmax(1), second.argmax(1), forward, backward, wider


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
    ahead = (cases["zero_shot"].astype(np.float64) - cases["fine_tuned"])[among]
    lead = measured_mean(ahead, own, bounds=(-1.0, 1.0)) if count else None
    return FollowedRecord(disagreements=count, n=len(zero), by_right={}, lead=lead, **rates)


def _rate(cases: NDArray[np.bool_], groups: NDArray[Any] | None) -> Measured:
    value = float(cases.mean())
    if groups is None:
        return Measured(value, accuracy_interval(int(cases.sum()), len(cases)))
    found = measured_mean(cases, groups)
    return found if found.interval else Measured(value, (0.0, 1.0))


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


def _kappa_complement(one: NDArray[np.integer], other: NDArray[np.integer], classes: int) -> tuple[float, float | None]:
    """The complement of kappa, and what it were if the two never agreed; None where kappa is not defined."""
    shares = [np.bincount(named, minlength=classes) / len(named) for named in (one, other)]
    if (expected := float(shares[0] @ shares[1])) >= 1:
        return 0.0, None
    return (1 - float((one == other).mean())) / (1 - expected), 1 / (1 - expected)


def _who_was_right(
    zero: NDArray[np.integer], tuned: NDArray[np.integer], labels: NDArray[np.integer]
) -> dict[str, NDArray[np.bool_]]:
    right = {"zero_shot": _hits(zero, labels), "fine_tuned": _hits(tuned, labels)}
    return right | {"neither": ~(right["zero_shot"] | right["fine_tuned"])}


def _right(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    return _hits(logits.argmax(1), labels)


def _hits(named: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    require_equal_length("predictions and labels", named, labels)
    if len(labels) and labels.min() < 0:
        raise InputError(f"a label is {labels.min()}, which no class has: the images are unlabelled. Leave labels out.")
    return np.asarray(named == labels)


def _aligned(*several: NDArray[np.floating], start: int = 0) -> tuple[NDArray[np.floating], ...]:
    """The logits, once they are finite and of the same samples and classes; ``start`` is the first sample's number."""
    _require_alike(*several)
    for logits in several:
        if not np.isfinite(logits).all():
            row = start + int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
            raise InputError(f"the logits of sample {row} are not finite. The model's weights are broken.")
    return several


def _require_alike(*several: Logits) -> None:
    for logits in several:
        if len(logits.shape) != 2 or logits.shape[1] < 2:
            raise InputError(f"logits have the shape {logits.shape}; they must be (N, K) with two classes at least.")
        if tuple(logits.shape) != tuple(several[0].shape):
            raise InputError(
                f"the logits have the shapes {several[0].shape} and {logits.shape}; they must be of the same samples "
                "and classes. Align them by sample id and class id first."
            )
        require_at_least("the number of samples", logits.shape[0], 1)
