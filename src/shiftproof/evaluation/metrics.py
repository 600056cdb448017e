"""Metrics of logits: accuracy, its breakdown, and the compact scores that are stored for every alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.data.protocols import Projection
from shiftproof.errors import InputError, require_at_least, require_equal_length
from shiftproof.evaluation.calibration import calibration_error
from shiftproof.evaluation.proportions import measure_proportion
from shiftproof.records.accuracy import AccuracyRecord, GroupRecord


@dataclass(frozen=True)
class Scores:
    """The compact form of N predictions, as (N,) arrays.

    ``prediction`` is the class, ``confidence`` its probability, ``margin`` the difference of the two largest logits,
    ``log_probability`` the natural logarithm of the true class's probability, and ``square_sum`` the sum of the squared
    probabilities over the classes, from which the Brier score follows.
    """

    prediction: NDArray[np.int64]
    confidence: NDArray[np.float32]
    margin: NDArray[np.float32]
    log_probability: NDArray[np.float32]
    square_sum: NDArray[np.float32]

    @classmethod
    def concatenated(cls, parts: Sequence[Scores]) -> Scores:
        """The predictions of several parts of a set, one after the other."""
        return cls(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        )


def accuracy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The fraction of rows of (N, K) logits whose largest entry is that of the (N,) label.

    Raises an InputError for logits that are not finite, and for labels of another length or range.

    >>> accuracy(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0]))
    0.5
    """
    return float(correct_rows(logits, labels).mean())


def correct_rows(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(N,) whether the largest entry of each row of (N, K) logits is at its label; raises what ``accuracy`` raises.

    >>> correct_rows(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0])).tolist()
    [True, False]
    """
    _require_logits(logits, labels)
    return np.asarray(logits.argmax(1) == labels)


def scores(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Scores:
    """The compact form of (N, K) logits with their (N,) labels, computed in float64 and stored in float32.

    Raises an InputError for logits that are not finite, and for labels of another length or range.
    """
    _require_logits(logits, labels)
    logarithms = log_probabilities(logits)
    probability = np.exp(logarithms)
    prediction = logits.argmax(1)
    rows = np.arange(len(logits))
    return Scores(
        prediction=prediction.astype(np.int64),
        confidence=probability[rows, prediction].astype(np.float32),
        margin=top_margins(logits).astype(np.float32),
        log_probability=logarithms[rows, labels].astype(np.float32),
        square_sum=(probability**2).sum(1).astype(np.float32),
    )


class ScoreCollector:
    """Collects the scores of samples whose logits arrive in batches; the logits are not held in memory.

    >>> collector = ScoreCollector(np.array([0, 1, 1]))
    >>> collector.add(np.eye(2))
    >>> collector.add(np.array([[1.0, 0.0]]))
    >>> collector.whole().prediction.tolist()
    [0, 1, 0]
    """

    def __init__(self, labels: NDArray[np.integer], projection: Projection | None = None) -> None:
        self._labels = labels
        self._projection = projection
        self._parts: list[Scores] = []
        self._count = 0

    def add(self, logits: NDArray[np.floating]) -> None:
        """Adds the (B, K) logits of the next samples, which are projected first if there is a projection."""
        projected = logits if self._projection is None else self._projection.apply(logits)
        self._parts.append(scores(projected, self._labels[self._count : self._count + len(logits)]))
        self._count += len(logits)

    def whole(self) -> Scores:
        """The scores of all samples; raises an InputError if some are missing."""
        require_equal_length("logits and labels", range(self._count), self._labels)
        return Scores.concatenated(self._parts)


def log_probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The (N, K) natural logarithms of the softmax of (N, K) logits, in float64.

    >>> np.exp(log_probabilities(np.array([[0.0, 0.0]]))).tolist()
    [[0.5, 0.5]]
    """
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def top_margins(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The (N,) differences of the two largest entries in every row of (N, K) logits, in float64.

    >>> top_margins(np.array([[3.0, 1.0, 2.5]])).tolist()
    [0.5]
    """
    top = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def macro_f1(
    prediction: NDArray[np.integer], labels: NDArray[np.integer], weights: NDArray[np.floating] | None = None
) -> float:
    """The mean F1 over the classes that occur among the (N,) labels, with (N,) ``weights`` of the samples.

    This is the measure of iWildCam (WILDS, arXiv 2012.07421): a class that is only predicted has no F1, but lowers the
    precision of the others. The result lies in [0, 1] and is NaN if all weights are 0. Raises an InputError for arrays
    that are empty or of different lengths.

    >>> round(macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1])), 3)
    0.667
    """
    require_equal_length("predictions and labels", prediction, labels)
    require_at_least("the number of samples", len(labels), 1)
    weights = np.ones(len(labels)) if weights is None else weights
    classes = 1 + max(int(prediction.max()), int(labels.max()))
    hits = np.bincount(labels, weights * (prediction == labels), classes)
    predicted, true = (np.bincount(side, weights, classes) for side in (prediction, labels))
    present = true > 0
    return float((2 * hits[present] / (predicted + true)[present]).mean()) if present.any() else float("nan")


def macro_accuracy(
    prediction: NDArray[np.integer], labels: NDArray[np.integer], weights: NDArray[np.floating] | None = None
) -> float:
    """The mean, over the classes that occur among the (N,) labels, of the accuracy on each, with (N,) ``weights``.

    It is also called balanced accuracy: a model that names one class only has 1 / (number of classes). The result
    lies in [0, 1] and is NaN if all weights are 0. Raises an InputError for arrays that are empty or of different
    lengths.

    >>> macro_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    0.5
    """
    require_equal_length("predictions and labels", prediction, labels)
    require_at_least("the number of samples", len(labels), 1)
    weights = np.ones(len(labels)) if weights is None else weights
    true, hits = np.bincount(labels, weights), np.bincount(labels, weights * (prediction == labels))
    present = true > 0
    return float((hits[present] / true[present]).mean()) if present.any() else float("nan")


def evaluate(
    set_scores: Scores,
    labels: NDArray[np.integer],
    class_ids: Sequence[str],
    *,
    model: str,
    alpha: float | None,
    set_name: str,
    groups: Sequence[str] | None = None,
    clusters: ArrayLike | None = None,
) -> AccuracyRecord:
    """Accuracy with its 95 % interval, calibration error, accuracy per class and, where given, per group.

    The record also says how often the commonest answer was given, so that a constant classifier can be recognised.

    ``labels``, ``groups`` and ``clusters`` are (N,), ``class_ids`` (K,); accuracies are fractions in [0, 1]. Samples of
    one cluster, such as the views of one drawing, are not independent, and the intervals respect that
    (``measure_proportion``). Where the groups are themselves the clusters, a group's samples are independent within
    it, because its interval says nothing about other groups. Raises an InputError for
    labels of another length than the scores.
    """
    require_equal_length(f"predictions and labels of {set_name}", set_scores.prediction, labels)
    correct = set_scores.prediction == labels
    counts = np.bincount(labels, minlength=len(class_ids))
    hits = np.bincount(labels, weights=correct, minlength=len(class_ids))
    group_names = np.array(groups) if groups is not None else np.empty(0, dtype=str)
    overall, inner = measure_proportion(correct, clusters), clusters_within(group_names, clusters)
    answers = np.bincount(set_scores.prediction, minlength=len(class_ids))
    top = int(answers.argmax())
    return AccuracyRecord(
        model=model,
        alpha=alpha,
        set=set_name,
        accuracy=overall.value,
        interval=overall.interval,
        n=overall.n,
        interval_method=overall.method,
        clusters=overall.clusters,
        calibration_error=calibration_error(set_scores.confidence, correct),
        per_class={class_ids[k]: float(hits[k] / counts[k]) for k in range(len(class_ids)) if counts[k]},
        groups=_by_group(correct, group_names, inner),
        class_counts={class_ids[k]: int(counts[k]) for k in range(len(class_ids)) if counts[k]},
        class_count=len(class_ids),
        top_class=class_ids[top],
        top_share=float(answers[top] / len(labels)),
        majority_share=float(counts.max() / len(labels)),
    )


def clusters_within(groups: NDArray[np.str_], clusters: ArrayLike | None) -> NDArray[Any] | None:
    """The clusters of samples within a group, None where the groups are the clusters."""
    names = None if clusters is None else np.asarray(clusters)
    return None if names is None or np.array_equal(names, groups) else names


def _by_group(
    correct: NDArray[np.bool_], groups: NDArray[np.str_], clusters: NDArray[Any] | None
) -> dict[str, GroupRecord]:
    members = {str(name): groups == name for name in np.unique(groups)}
    return {
        name: measure_group(correct[member], None if clusters is None else clusters[member])
        for name, member in members.items()
    }


def measure_group(correct: NDArray[np.bool_], clusters: NDArray[Any] | None = None) -> GroupRecord:
    """The accuracy on a group of samples, with its 95 % interval, from whether each is right (N,).

    ``clusters`` (N,) and the errors are those of ``measure_proportion``.

    >>> measure_group(np.array([True, False])).accuracy
    0.5
    """
    share = measure_proportion(correct, clusters)
    return GroupRecord(share.value, share.interval, share.n, share.method, share.clusters)


def _require_logits(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"logits have the shape {logits.shape}; they must be (N, K) with at least two classes.")
    require_equal_length("logits and labels", logits, labels)
    require_at_least("the number of samples", len(logits), 1)
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
        raise InputError(f"the logits of sample {row} are not finite. The model's weights are broken; retrain it.")
    if not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise InputError(
            f"labels range from {labels.min()} to {labels.max()}; they must be in 0..{logits.shape[1] - 1}."
        )
