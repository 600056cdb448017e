"""Intervals, calibration, metrics, predictions and recall, each against a slow twin written from its formula."""

from __future__ import annotations

import dataclasses
import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest
from torch.nn import functional

import shiftproof as sp
from shiftproof import progress
from shiftproof.evaluation.metrics import Scores, evaluate, scores
from shiftproof.evaluation.predictions import load_predictions, load_scores, save_predictions, save_scores
from shiftproof.evaluation.retrieval import recall_at

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(2, 6)),
    elements=st.floats(-80, 80, width=32),
)


def tail_at_least(correct: int, n: int, p: float) -> float:
    """The probability of ``correct`` or more successes in ``n`` trials, term by term."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(correct, n + 1))


def bisected_interval(correct: int, n: int, level: float) -> tuple[float, float]:
    """The p at which each tail of the binomial distribution holds half of what the level leaves."""
    tail = (1 - level) / 2

    def bisect(grows: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(80):
            middle = (low + high) / 2
            # The upper tail grows with p, the lower one falls.
            value = tail_at_least(correct, n, middle) if grows else 1 - tail_at_least(correct + 1, n, middle)
            if (value < tail) == grows:
                low = middle
            else:
                high = middle
        return low

    return (0.0 if correct == 0 else bisect(True)), (1.0 if correct == n else bisect(False))


@given(data=st.data(), n=st.integers(1, 60), level=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_interval_is_that_of_the_binomial_tails(data: st.DataObject, n: int, level: float) -> None:
    correct = data.draw(st.integers(0, n))
    assert sp.evaluation.accuracy_interval(correct, n, level=level) == pytest.approx(
        bisected_interval(correct, n, level), abs=1e-9
    )


@given(data=st.data(), n=st.integers(1, 2000), level=st.sampled_from([0.5, 0.9, 0.95]))
def test_the_interval_is_that_of_scipys_exact_test(data: st.DataObject, n: int, level: float) -> None:
    correct = data.draw(st.integers(0, n))
    exact = binomtest(correct, n).proportion_ci(level, method="exact")
    assert sp.evaluation.accuracy_interval(correct, n, level=level) == pytest.approx((exact.low, exact.high), abs=1e-9)


@given(data=st.data(), n=st.integers(1, 2000))
def test_the_interval_holds_the_estimate_and_mirrors(data: st.DataObject, n: int) -> None:
    correct = data.draw(st.integers(0, n))
    low, high = sp.evaluation.accuracy_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(sp.evaluation.accuracy_interval(n - correct, n), abs=1e-12)


@settings(max_examples=25)
@given(n=st.integers(1, 40), p=st.floats(0.01, 0.99), level=st.sampled_from([0.5, 0.9, 0.95]))
def test_the_interval_covers_the_truth_at_least_as_often_as_it_says(n: int, p: float, level: float) -> None:
    covered = 0.0
    for correct in range(n + 1):
        low, high = sp.evaluation.accuracy_interval(correct, n, level=level)
        if low <= p <= high:
            covered += math.comb(n, correct) * p**correct * (1 - p) ** (n - correct)
    assert covered >= level - 1e-9


@pytest.mark.parametrize(
    ("correct", "n", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 2, 1.5), (1, 2, math.nan)]
)
def test_an_impossible_count_or_level_is_refused(correct: int, n: int, level: float) -> None:
    with pytest.raises(sp.InputError, match="must lie between"):
        sp.evaluation.accuracy_interval(correct, n, level=level)


@given(
    said=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    bins=st.integers(1, 20),
)
def test_the_calibration_error_is_the_mean_gap_over_the_bins(said: list[tuple[float, bool]], bins: int) -> None:
    total = 0.0
    for index in range(bins):
        inside = []
        for confidence, right in said:
            exact = Fraction(confidence) * bins
            assume(abs(exact - round(exact)) > Fraction(1, 10**9) or exact in (0, bins))  # off the bins' edges
            if index <= exact < index + 1 or (exact == bins and index == bins - 1):
                inside.append((confidence, right))
        if inside:
            mean_confidence = math.fsum(confidence for confidence, _ in inside) / len(inside)
            share_right = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(said) * abs(share_right - mean_confidence)
    confidences, rights = (np.array(column) for column in zip(*said, strict=True))
    assert sp.evaluation.calibration_error(confidences, rights, bins) == pytest.approx(total, abs=1e-9)


def test_the_calibration_error_over_batches_would_be_biased_upward() -> None:
    draw_from = np.random.default_rng(0)
    confidence = draw_from.uniform(0, 1, 20_000)
    right = draw_from.uniform(0, 1, 20_000) < confidence  # calibrated by construction
    whole = sp.evaluation.calibration_error(confidence, right)
    batches = np.mean(
        [
            sp.evaluation.calibration_error(c, r)
            for c, r in zip(*(np.split(a, 400) for a in (confidence, right)), strict=True)
        ]
    )
    assert whole < 0.015
    assert batches > 5 * whole


@pytest.mark.parametrize("confidence", [[0.5, 80.0], [-0.1, 0.5], [math.nan, 0.5]])
def test_a_confidence_that_is_no_probability_is_refused(confidence: list[float]) -> None:
    with pytest.raises(sp.InputError, match="must be a probability"):
        sp.evaluation.calibration_error(np.array(confidence), np.array([True, False]))


@given(logits=LOGITS, data=st.data())
def test_scores_are_what_the_softmax_says(logits: np.ndarray, data: st.DataObject) -> None:
    count, classes = logits.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    saved = scores(logits, labels)
    hits = 0
    for i, row in enumerate(logits.tolist()):
        largest = max(row)
        shares = [math.exp(x - largest) for x in row]
        total = math.fsum(shares)
        ordered = sorted(row)
        best = row.index(largest)
        hits += best == labels[i]
        assert saved.prediction[i] == best
        assert saved.confidence[i] == pytest.approx(1 / total, rel=1e-6)
        assert saved.margin[i] == pytest.approx(ordered[-1] - ordered[-2], rel=1e-6)
        assert saved.log_probability[i] == pytest.approx(row[labels[i]] - largest - math.log(total), rel=1e-6, abs=1e-6)
        assert saved.square_sum[i] == pytest.approx(math.fsum((s / total) ** 2 for s in shares), rel=1e-6)
    assert sp.evaluation.accuracy(logits, labels) == pytest.approx(hits / count)


def test_the_brier_score_comes_from_the_compact_form() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    labels = np.arange(50) % 4
    saved = scores(logits, labels)
    compact = (saved.square_sum - 2 * np.exp(saved.log_probability) + 1).mean()
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        shares = [math.exp(x) for x in row]
        total += sum((s / sum(shares) - (k == label)) ** 2 for k, s in enumerate(shares))
    assert compact == pytest.approx(total / 50, rel=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("use", [sp.evaluation.accuracy, scores])
def test_logits_that_are_not_finite_are_an_error_that_names_the_sample(use: object, broken: float) -> None:
    logits = np.zeros((5, 3), dtype=np.float32)
    logits[3, 1] = broken
    with pytest.raises(sp.InputError, match="sample 3 are not finite"):
        use(logits, np.zeros(5, dtype=int))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros((2, 1)), [0, 0], "at least two classes"),
        (np.zeros(4), [0, 0, 0, 0], "at least two classes"),
        (np.zeros((2, 3)), [0], "2 and 1 entries"),
        (np.zeros((2, 3)), [0, 3], "must be in 0..2"),
        (np.zeros((2, 3)), [-1, 0], "must be in 0..2"),
        (np.zeros((0, 3)), [], "number of samples is 0"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(logits: np.ndarray, labels: list[int], said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        sp.evaluation.accuracy(logits, np.array(labels, dtype=int))


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_an_evaluation_counts_by_class_and_by_group(seed: int, count: int) -> None:
    draw_from = random.Random(seed)
    ids = ("lemon", "pear", "plum")
    labels = [draw_from.randrange(3) for _ in range(count)]
    predicted = [draw_from.randrange(3) for _ in range(count)]
    groups = [draw_from.choice(["seen", "withheld"]) for _ in range(count)]
    confidence = np.array([draw_from.random() for _ in range(count)], dtype=np.float32)
    unused = np.zeros(count, dtype=np.float32)
    saved = Scores(np.array(predicted), confidence, unused, unused, unused)
    result = evaluate(saved, np.array(labels), ids, model="ensemble", alpha=0.5, set_name="sketch", groups=groups)
    right = [p == label for p, label in zip(predicted, labels, strict=True)]
    assert (result.model, result.alpha, result.set, result.n) == ("ensemble", 0.5, "sketch", count)
    assert result.accuracy == pytest.approx(sum(right) / count)
    assert result.interval == pytest.approx(bisected_interval(sum(right), count, 0.95), abs=1e-9)
    assert result.calibration_error == sp.evaluation.calibration_error(confidence, np.array(right))
    for k, name in enumerate(ids):
        own = [r for r, label in zip(right, labels, strict=True) if label == k]
        assert (name in result.per_class) == bool(own)  # a class without samples has no accuracy
        if own:
            assert result.per_class[name] == pytest.approx(sum(own) / len(own))
    assert set(result.groups) == set(groups)
    for name, group in result.groups.items():
        own = [r for r, g in zip(right, groups, strict=True) if g == name]
        assert group.n == len(own)
        assert group.accuracy == pytest.approx(sum(own) / len(own))
        assert group.interval == pytest.approx(bisected_interval(sum(own), len(own), 0.95), abs=1e-9)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), ties=st.booleans())
def test_recall_counts_queries_whose_own_entry_is_among_the_nearest(seed: int, count: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, count, 4, generator=generator, dtype=torch.float64)
    queries, gallery = functional.normalize(vectors.sign() if ties else vectors, dim=-1)
    result = recall_at(queries, gallery, ks=(1, 2, 5))
    for k, recall in result.items():
        hits = 0
        for i, query in enumerate(queries.tolist()):
            # The same product as above, so that ties are ties; the count is what is tested.
            similarity = (queries @ gallery.T)[i].tolist()
            assert similarity[i] == pytest.approx(sum(a * b for a, b in zip(query, gallery[i].tolist(), strict=True)))
            ahead = sum(1 for j in range(count) if j != i and similarity[j] >= similarity[i])
            hits += ahead < k
        assert recall == pytest.approx(hits / count)


def test_recall_gives_nothing_to_equal_or_broken_features() -> None:
    assert recall_at(torch.ones(5, 3), torch.ones(5, 3), ks=(1, 5)) == {1: 0.0, 5: 1.0}
    assert recall_at(torch.full((20, 3), math.nan), torch.eye(20, 3)) == {1: 0.0, 5: 0.0, 10: 0.0}


@pytest.fixture(scope="module")
def classifier(tiny: sp.models.Clip) -> sp.Classifier:
    return sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))


def test_predictions_keep_the_sets_order_and_the_last_smaller_batch(folders: Path, classifier: sp.Classifier) -> None:
    images = sp.data.load_set(f"folder:{folders / 'train'}", classifier.classes)
    assert len(images) == 18
    events: list[progress.Event] = []
    with progress.listening(events.append):
        predictions = sp.predict(classifier, images, batch_size=7)
    assert predictions.logits.shape == (18, 3)
    assert predictions.logits.dtype == np.float32
    assert predictions.ids == images.ids
    assert np.array_equal(predictions.labels, images.labels)
    assert [(event.done, event.total) for event in events] == [(7, 18), (14, 18), (18, 18)]
    whole = sp.predict(classifier, images).logits
    np.testing.assert_allclose(predictions.logits, whole, rtol=0, atol=1e-3)
    for i in (0, 6, 7, 17):
        alone = sp.predict(classifier, images.subset([i])).logits
        np.testing.assert_allclose(alone[0], whole[i], rtol=0, atol=1e-3)
    turned = sp.predict(classifier, images.subset(range(17, -1, -1)))
    np.testing.assert_allclose(turned.logits[::-1], whole, rtol=0, atol=1e-3)
    assert turned.ids == images.ids[::-1]


def test_predictions_of_another_class_space_are_refused(folders: Path, classifier: sp.Classifier) -> None:
    other = sp.ClassSpace.from_ids(["red_apple", "pear", "lemon"])
    images = sp.data.load_set(f"folder:{folders / 'test'}", other)
    with pytest.raises(sp.InputError, match="another class space"):
        sp.predict(classifier, images)


@pytest.mark.parametrize("groups", [None, ("seen", "withheld", "seen")])
def test_predictions_come_back_from_a_file_without_pickle(tmp_path: Path, groups: tuple[str, ...] | None) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    made = sp.evaluation.Predictions(("a/1.png", "ä/2.png", "b"), np.array([3, 0, 1]), logits, groups)
    path = save_predictions(made, tmp_path / "predictions" / "sketch.npz")
    with np.load(path, allow_pickle=False) as file:  # raises on an object array
        assert all(file[name].dtype != object for name in file.files)
    result = load_predictions(path)
    assert (result.ids, result.groups) == (made.ids, groups)
    assert np.array_equal(result.labels, made.labels)
    assert result.logits.tobytes() == logits.tobytes()


def test_the_compact_form_comes_back_from_a_file(tmp_path: Path) -> None:
    saved = scores(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), np.zeros(5, dtype=int))
    ids, result = load_scores(save_scores(saved, tuple("abcde"), tmp_path / "photo.npz"))
    assert ids == tuple("abcde")
    for field in dataclasses.fields(Scores):
        assert np.array_equal(getattr(result, field.name), getattr(saved, field.name))


@pytest.mark.parametrize("load", [load_predictions, load_scores])
@pytest.mark.parametrize("content", [None, b"", b"no archive", "cut", "changed", "pickle", "other"])
def test_a_file_that_holds_no_predictions_is_named(tmp_path: Path, load: object, content: object) -> None:
    path = tmp_path / "sketch.npz"
    if content == "pickle":
        np.savez(path, ids=np.array([{"a": 1}], dtype=object), prediction=np.array([object()]))
    elif content in ("cut", "changed"):
        whole = save_predictions(
            sp.evaluation.Predictions(("a",), np.array([0]), np.ones((1, 2), np.float32)), path
        ).read_bytes()
        middle = whole.index(b"labels.npy") + 100
        path.write_bytes(whole[:middle] if content == "cut" else whole[:middle] + b"\xff" * 40 + whole[middle + 40 :])
    elif content == "other":
        np.savez(path, weights=np.zeros(3))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(sp.InputError, match="cannot be read") as caught:
        load(path)  # type: ignore[operator]
    assert str(path) in str(caught.value)
