"""Which model an ensemble follows where the zero-shot and the fine-tuned model disagree (WiSE-FT, sec. 5.1).

All functions take the (N, K) logits of the three models for the same samples in the same order. Each raises an
InputError where logits are not finite or differ in shape, and where labels are given for unlabelled images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis.logits import (
    checked_logits,
    correct_logits,
    correct_predictions,
    named_classes,
    require_alike,
)
from shiftproof.diagnosis.means import measured_mean
from shiftproof.errors import require_equal_length
from shiftproof.evaluation.blocks import Logits
from shiftproof.evaluation.proportions import measure_proportion
from shiftproof.records.comparisons import FollowedRecord, Measured, OverrideRecord


def override_rates(
    zero_shot: NDArray[np.floating], fine_tuned: NDArray[np.floating], ensemble: NDArray[np.floating]
) -> OverrideRecord:
    """Returns how often the ensemble follows each model where the two disagree (WiSE-FT, arXiv 2109.01903, sec. 5.1).

    The three (N, K) logits suffice; no labels are needed. The rates are fractions of the disagreements, in [0, 1], and
    sum to 1; without disagreements all are 0.

    >>> zero, tuned = np.array([[2.0, 1, 0]] * 4), np.array([[2.0, 1, 0]] + [[0.0, 2, 1]] * 3)
    >>> rates = override_rates(zero, tuned, np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    >>> rates.disagreements, round(rates.zero_shot, 3), round(rates.fine_tuned, 3), round(rates.neither, 3)
    (3, 0.333, 0.333, 0.333)
    """
    zero, tuned, followed = (logits.argmax(1) for logits in checked_logits(zero_shot, fine_tuned, ensemble))
    return _rates(zero, tuned, followed, zero != tuned)


def override_rates_by_right(
    zero_shot: NDArray[np.floating],
    fine_tuned: NDArray[np.floating],
    ensemble: NDArray[np.floating],
    labels: NDArray[np.integer],
) -> dict[str, OverrideRecord]:
    """Returns ``override_rates`` for three kinds of disagreements, which differ in the model that is right.

    The keys are "zero_shot", "fine_tuned" and "neither". ``labels`` are (N,) class indices.

    >>> zero, tuned = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2)
    >>> rates = override_rates_by_right(zero, tuned, zero, np.array([0, 1]))
    >>> rates["fine_tuned"].zero_shot, rates["neither"].disagreements
    (1.0, 0)
    """
    zero, tuned, followed = (logits.argmax(1) for logits in checked_logits(zero_shot, fine_tuned, ensemble))
    right = _who_was_right(zero, tuned, labels)
    return {name: _rates(zero, tuned, followed, (zero != tuned) & cases) for name, cases in right.items()}


def gain_beyond_both(
    zero_shot: NDArray[np.floating],
    fine_tuned: NDArray[np.floating],
    ensemble: NDArray[np.floating],
    labels: NDArray[np.integer],
) -> float:
    """Returns how much of the ensemble's gain over the fine-tuned model neither model contributes alone.

    Of the samples that the ensemble gets right and the fine-tuned model does not, this is the fraction, in [0, 1],
    that the zero-shot model gets wrong as well. It is 0 where there are no such samples. The logits are (N, K),
    ``labels`` (N,) class indices.

    >>> zero, tuned, both = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2), np.array([[0, 0, 1.0], [1, 0, 0]])
    >>> gain_beyond_both(zero, tuned, both, np.array([2, 0]))
    0.5
    """
    zero, tuned, followed = (
        correct_logits(logits, labels) for logits in checked_logits(zero_shot, fine_tuned, ensemble)
    )
    gained = followed & ~tuned
    return float((~zero)[gained].mean()) if gained.any() else 0.0


def measure_overrides(
    zero_shot: Logits,
    fine_tuned: Logits,
    ensemble: Logits,
    labels: NDArray[np.integer] | None = None,
    clusters: ArrayLike | None = None,
) -> FollowedRecord:
    """Measures ``override_rates`` with 95 % intervals and, with labels, also by the model that is right.

    The logits are (N, K), as arrays or as predictions on disk; ``labels`` are (N,) class indices. Intervals are those
    of ``measure_proportion`` over the disagreements and their ``clusters`` (N,); where these are in one cluster only,
    the interval is 0 to 1. With labels, ``beyond_both`` is ``gain_beyond_both``.
    Raises an InputError if the shapes of the logits differ.

    >>> zero, tuned = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2)
    >>> measure_overrides(zero, tuned, zero).zero_shot.interval[1]
    1.0
    """
    require_alike(zero_shot, fine_tuned, ensemble)
    return overrides_of(*map(named_classes, (zero_shot, fine_tuned, ensemble)), labels=labels, clusters=clusters)


def overrides_of(
    zero: NDArray[np.int64],
    tuned: NDArray[np.int64],
    followed: NDArray[np.int64],
    *,
    labels: NDArray[np.integer] | None = None,
    clusters: ArrayLike | None = None,
) -> FollowedRecord:
    """Returns what ``measure_overrides`` does, from the (N,) classes that the three models predict."""
    for named in (tuned, followed):
        require_equal_length("two models' predictions", zero, named)
    groups = None if clusters is None else np.asarray(clusters)
    if groups is not None:
        require_equal_length("logits and clusters", zero, groups)
    differ = zero != tuned
    overrides = _followed(zero, tuned, followed, differ, groups)
    if labels is None:
        return overrides
    right = _who_was_right(zero, tuned, labels)
    by_right = {name: _followed(zero, tuned, followed, differ & cases, groups) for name, cases in right.items()}
    gained = correct_predictions(followed, labels) & ~right["fine_tuned"]
    beyond = _rate(~right["zero_shot"][gained], None if groups is None else groups[gained]) if gained.any() else None
    return replace(overrides, by_right=by_right, beyond_both=beyond)


def _followed(
    zero: NDArray[np.intp],
    tuned: NDArray[np.intp],
    followed: NDArray[np.intp],
    among: NDArray[np.bool_],
    groups: NDArray[Any] | None,
) -> FollowedRecord:
    count = int(among.sum())
    clusters = None if groups is None else groups[among]
    cases = {"zero_shot": followed == zero, "fine_tuned": followed == tuned}
    cases["neither"] = ~(cases["zero_shot"] | cases["fine_tuned"])
    rates = {name: _rate(case[among], clusters) if count else None for name, case in cases.items()}
    ahead = (cases["zero_shot"].astype(np.float64) - cases["fine_tuned"])[among]
    lead = measured_mean(ahead, clusters, bounds=(-1.0, 1.0)) if count else None
    return FollowedRecord(disagreements=count, n=len(zero), by_right={}, lead=lead, **rates)


def _rate(cases: NDArray[np.bool_], groups: NDArray[Any] | None) -> Measured:
    share = measure_proportion(cases, groups)
    return Measured(share.value, share.interval)


def _rates(
    zero: NDArray[np.intp], tuned: NDArray[np.intp], followed: NDArray[np.intp], among: NDArray[np.bool_]
) -> OverrideRecord:
    count = int(among.sum())
    by_zero, by_tuned = ((followed == named)[among].sum() / max(count, 1) for named in (zero, tuned))
    neither = 1 - by_zero - by_tuned if count else 0.0
    return OverrideRecord(float(by_zero), float(by_tuned), max(float(neither), 0.0), count, len(zero))


def _who_was_right(
    zero: NDArray[np.integer], tuned: NDArray[np.integer], labels: NDArray[np.integer]
) -> dict[str, NDArray[np.bool_]]:
    right = {"zero_shot": correct_predictions(zero, labels), "fine_tuned": correct_predictions(tuned, labels)}
    return right | {"neither": ~(right["zero_shot"] | right["fine_tuned"])}
