"""Metrics of logits: accuracy, its breakdown, and the compact scores that are stored for every alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, require_at_least, require_equal_length
from shiftproof.evaluation.calibration import calibration_error
from shiftproof.evaluation.intervals import accuracy_interval
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


def accuracy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The fraction of rows of (N, K) logits whose largest entry is that of the (N,) label.

    Raises an InputError for logits that are not finite, and for labels of another length or range.

    >>> accuracy(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0]))
    0.5
    """
    _require_logits(logits, labels)
    return float((logits.argmax(1) == labels).mean())


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

    def __init__(self, labels: NDArray[np.integer]) -> None:
        self._labels = labels
        self._parts: list[Scores] = []
        self._count = 0

    def add(self, logits: NDArray[np.floating]) -> None:
        """Adds the (B, K) logits of the next samples."""
        self._parts.append(scores(logits, self._labels[self._count : self._count + len(logits)]))
        self._count += len(logits)

    def whole(self) -> Scores:
        """The scores of all samples; raises an InputError if some are missing."""
        require_equal_length("logits and labels", range(self._count), self._labels)
        return Scores(
            **{f.name: np.concatenate([getattr(part, f.name) for part in self._parts]) for f in fields(Scores)}
        )


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


def evaluate(
    set_scores: Scores,
    labels: NDArray[np.integer],
    class_ids: Sequence[str],
    *,
    model: str,
    alpha: float | None,
    set_name: str,
    groups: Sequence[str] | None = None,
) -> AccuracyRecord:
    """Accuracy with its 95 % interval, calibration error, accuracy per class and, where given, per group.

    ``labels`` and ``groups`` are (N,), ``class_ids`` (K,); accuracies are fractions in [0, 1]. Raises an InputError for
    labels of another length than the scores.
    """
    require_equal_length(f"predictions and labels of {set_name}", set_scores.prediction, labels)
    correct = set_scores.prediction == labels
    counts = np.bincount(labels, minlength=len(class_ids))
    hits = np.bincount(labels, weights=correct, minlength=len(class_ids))
    group_names = np.array(groups) if groups is not None else np.empty(0, dtype=str)
    return AccuracyRecord(
        model=model,
        alpha=alpha,
        set=set_name,
        accuracy=float(correct.mean()),
        interval=accuracy_interval(int(correct.sum()), len(correct)),
        n=len(correct),
        calibration_error=calibration_error(set_scores.confidence, correct),
        per_class={class_ids[k]: float(hits[k] / counts[k]) for k in range(len(class_ids)) if counts[k]},
        groups={str(name): _group(correct[group_names == name]) for name in sorted(set(group_names.tolist()))},
        class_counts={class_ids[k]: int(counts[k]) for k in range(len(class_ids)) if counts[k]},
    )


def _group(correct: NDArray[np.bool_]) -> GroupRecord:
    return GroupRecord(float(correct.mean()), accuracy_interval(int(correct.sum()), len(correct)), len(correct))


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
