"""CLIP_benchmark's metrics agree with scikit-learn and with a count in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.evaluation.benchmark_metrics import measure_benchmark
from shiftproof.evaluation.predictions import Predictions, open_predictions, save_predictions


@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 10_000), st.booleans())
def test_the_metrics_are_those_of_a_slow_count(n: int, classes: int, seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)).astype(np.float32)
    logits = logits.round() if ties else logits
    labels = generator.integers(0, classes, n)
    first, five, recalls = 0, 0, {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(classes), key=lambda k: (-row[k], k))
        first += ranked[0] == label
        five += label in ranked[:5]
        recalls.setdefault(label, []).append(ranked[0] == label)
    metrics = measure_benchmark(logits, labels)
    assert metrics.acc1 == first / n == sp.evaluation.accuracy(logits, labels)
    assert metrics.acc5 == (five / n if classes >= 5 else None)
    assert metrics.mean_per_class_recall == pytest.approx(np.mean([np.mean(hits) for hits in recalls.values()]))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_metrics_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits = np.random.default_rng(0).normal(size=(500, 7))
    labels = np.random.default_rng(1).integers(0, 6, 500)  # no image of the last class
    measured = measure_benchmark(logits, labels)
    assert measured.acc5 == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert measured.mean_per_class_recall == pytest.approx(metrics.balanced_accuracy_score(labels, logits.argmax(1)))


def test_stored_logits_are_read_in_blocks(tmp_path) -> None:
    logits = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 6, 3000)
    path = save_predictions(Predictions(tuple(map(str, range(3000))), labels, logits), tmp_path / "a.npz")
    assert measure_benchmark(open_predictions(path), labels) == measure_benchmark(logits, labels)


def test_nothing_has_no_metrics() -> None:
    with pytest.raises(sp.InputError, match="the number of samples is 0"):
        measure_benchmark(np.empty((0, 3)), np.empty(0, dtype=int))


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(sp.InputError, match="not finite"):
        measure_benchmark(np.full((2, 3), np.nan), np.array([0, 1]))
