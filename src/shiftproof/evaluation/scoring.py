"""Scores of a whole set under its protocol, and their variants for sets that have only some of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.data.protocols import Projection, Protocol
from shiftproof.data.sets import ImageSet
from shiftproof.evaluation.blocks import ROWS
from shiftproof.evaluation.metrics import Scores, evaluate, measure_group
from shiftproof.evaluation.predictions import Predictions, StoredPredictions
from shiftproof.evaluation.set_metrics import (
    MACRO_ACCURACY,
    Answers,
    is_imbalanced,
    measure_metrics,
    metric_intervals,
)
from shiftproof.records.accuracy import (
    MASKED,
    OVER_ALL,
    REFERENCE_MASKED,
    REFERENCE_OVER_ALL,
    AccuracyRecord,
    GroupRecord,
)


def evaluate_set(
    set_scores: Scores,
    images: ImageSet,
    *,
    model: str,
    alpha: float | None,
    set_name: str,
    intervals_of_metrics: bool = True,
) -> AccuracyRecord:
    """Does what ``evaluate`` does with a set's labels, groups and clusters, and adds the set's protocol and metrics.

    The metrics are those of the protocol and, where the classes have unequally many images, the macro accuracy. Their
    intervals take a while, since they resample the images.
    """
    record = evaluate(
        set_scores,
        images.labels,
        images.classes.ids,
        model=model,
        alpha=alpha,
        set_name=set_name,
        groups=images.groups,
        clusters=images.clusters.names,
    )
    projection, protocol = images.projection, images.protocol
    names = [*(protocol.metrics if protocol else ()), *([MACRO_ACCURACY] if is_imbalanced(images.labels) else [])]
    names = list(dict.fromkeys(names))
    answers = Answers(set_scores.prediction, images.labels, images.groups, images.clusters.names)
    return replace(
        record,
        class_count=record.class_count if projection is None else projection.choices,
        protocol=None if protocol is None else protocol.name,
        skipped=images.skipped,
        metrics=measure_metrics(names, answers),
        metric_intervals=metric_intervals(names, answers) if intervals_of_metrics else {},
    )


@dataclass(frozen=True)
class Scored:
    """A set with the predictions of a model on it."""

    images: ImageSet
    predictions: Predictions | StoredPredictions

    def model_blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields the logits that the model gave, some rows at a time."""
        if isinstance(self.predictions, StoredPredictions):
            yield from self.predictions.model_blocks()
            return
        stored = self.predictions
        logits = stored.logits if stored.model_logits is None else stored.model_logits
        yield from (logits[start : start + ROWS] for start in range(0, len(logits), ROWS))


def measure_variants(scored: Scored, reference: Scored | None) -> dict[str, GroupRecord]:
    """The accuracies on a set that has only some of the classes: over all classes, and masked to those of the set.

    Both are also measured on the images of the ``reference`` of these classes, so that the two sets can be compared. A
    set that has all classes has no variants.
    """
    protocol = scored.images.protocol
    if protocol is None or not protocol.answers:
        return {}
    rules = {OVER_ALL: replace(protocol, others=True, pooled=False), MASKED: replace(protocol, others=False)}
    variants = _accuracies(scored, rules, scored.images.labels, slice(None))
    if reference is not None and reference.images is not scored.images:
        rows, labels = _labelled(reference.images, protocol)
        if len(rows):
            names = {OVER_ALL: REFERENCE_OVER_ALL, MASKED: REFERENCE_MASKED}
            measured = _accuracies(reference, {names[name]: rule for name, rule in rules.items()}, labels, rows)
            variants |= measured
    return variants


def _labelled(images: ImageSet, protocol: Protocol) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images whose classes a protocol has, as (M,) positions, and the answers that are right for them."""
    position = {name: k for k, name in enumerate(images.classes.ids)}
    answers = np.full(len(images.classes), -1)
    for ids in protocol.answers:
        members = [position[name] for name in ids if name in position]
        answers[members] = members[:1] * len(members)
    labels = answers[images.labels]
    rows = np.flatnonzero(labels >= 0)
    return rows, labels[rows]


def _accuracies(
    scored: Scored, rules: dict[str, Protocol], labels: NDArray[np.integer], rows: NDArray[np.int64] | slice
) -> dict[str, GroupRecord]:
    """The accuracy by each of several protocols on the given rows, with the right answers of those rows."""
    projections = {name: rule.projection(scored.images.classes.ids) for name, rule in rules.items()}
    answers: dict[str, list[NDArray[np.int64]]] = {name: [] for name in rules}
    for block in scored.model_blocks():
        for name, projection in projections.items():
            answers[name].append(_answers(block, projection))
    clusters = scored.images.clusters.names
    chosen = None if clusters is None else clusters[rows]
    return {name: measure_group(_concatenated(parts)[rows] == labels, chosen) for name, parts in answers.items()}


def _answers(logits: NDArray[np.float32], projection: Projection | None) -> NDArray[np.int64]:
    return np.asarray((logits if projection is None else projection.apply(logits)).argmax(1))


def _concatenated(parts: Iterable[ArrayLike]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(part) for part in parts])
