"""The metrics of public sets, against their definitions and scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, f1_score

import shiftproof as sp
from shiftproof.data.families.corruptions import ALEXNET_ERRORS
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import array_set
from shiftproof.evaluation.metrics import scores
from shiftproof.evaluation.scoring import evaluate_set
from shiftproof.evaluation.set_metrics import Answers, is_imbalanced, measure_metrics, metric_intervals

REGIONS = ["Asia", "Europe", "Other"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=60))
def test_macro_f1_and_the_worst_region_follow_their_definitions(rows: list[tuple[int, int, int]]) -> None:
    prediction, labels, region = (np.array(column) for column in zip(*rows, strict=True))
    groups = [REGIONS[k] for k in region]
    values = measure_metrics(["macro F1", "macro accuracy", "worst region"], Answers(prediction, labels, groups))
    present = np.unique(labels)
    expected = f1_score(labels, prediction, labels=present, average="macro", zero_division=0)
    assert values["macro F1"] == pytest.approx(expected)
    recalls = [np.mean(prediction[labels == k] == k) for k in present]
    assert values["macro accuracy"] == pytest.approx(np.mean(recalls))
    if len(present) > 1 and set(prediction) <= set(present):  # otherwise scikit-learn warns
        assert values["macro accuracy"] == pytest.approx(balanced_accuracy_score(labels, prediction))
    by_region = [np.mean([p == y for (p, y, r) in rows if r == k]) for k in (0, 1) if any(r == k for _, _, r in rows)]
    assert values.get("worst region") == (pytest.approx(min(by_region)) if by_region else None)


def test_mce_is_the_mean_of_errors_relative_to_alexnet() -> None:
    generator = np.random.default_rng(0)
    groups = [f"{name}-{severity}" for name in ALEXNET_ERRORS for severity in range(1, 6) for _ in range(8)]
    labels = np.zeros(len(groups), dtype=int)
    prediction = (generator.random(len(groups)) < 0.4).astype(int)
    values = measure_metrics(["mCE", "mean of corruptions"], Answers(prediction, labels, groups))
    errors = prediction.reshape(15, -1).mean(1)
    assert values["mCE"] == pytest.approx(np.mean(errors / np.array(list(ALEXNET_ERRORS.values()))))
    assert values["mean of corruptions"] == pytest.approx(1 - errors.mean())


def test_mce_needs_every_corruption_at_every_severity() -> None:
    groups = [f"{name}-{severity}" for name in ALEXNET_ERRORS for severity in range(1, 6)][:-1]
    zeros = np.zeros(len(groups), dtype=int)
    values = measure_metrics(["mCE", "mean of corruptions"], Answers(zeros, zeros, groups))
    assert values == pytest.approx({"mean of corruptions": 1.0})


def test_alexnet_itself_has_an_mce_of_one() -> None:
    groups, prediction = [], []
    for name, error in ALEXNET_ERRORS.items():
        wrong = round(1000 * error)
        for severity in range(1, 6):
            groups += [f"{name}-{severity}"] * 1000
            prediction += [1] * wrong + [0] * (1000 - wrong)
    values = measure_metrics(["mCE"], Answers(np.array(prediction), np.zeros(len(groups), dtype=int), groups))
    assert values["mCE"] == pytest.approx(1, abs=1e-3)


def test_the_background_gap_needs_both_variants() -> None:
    labels = np.zeros(4, dtype=int)
    prediction, groups = np.array([0, 0, 0, 1]), ["mixed_same", "mixed_same", "mixed_rand", "mixed_rand"]
    assert measure_metrics(["background gap"], Answers(prediction, labels, groups)) == {"background gap": 0.5}
    assert measure_metrics(["background gap"], Answers(prediction, labels, ["original"] * 4)) == {}


ALEXNET_GROUPS = [f"{name}-{severity}" for name in ALEXNET_ERRORS for severity in range(1, 6)]


def corrupted(pictures: int, rate: float = 0.4, seed: int = 0) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Whether each version of some pictures is wrong, which is alike within a picture; the groups and pictures."""
    generator = np.random.default_rng(seed)
    hard = generator.beta(2 * rate, 2 * (1 - rate), pictures)
    pairs = list(product(range(pictures), ALEXNET_GROUPS))
    wrong = np.array([int(generator.random() < hard[picture]) for picture, _ in pairs])
    return wrong, [group for _, group in pairs], [str(picture) for picture, _ in pairs]


def test_the_interval_of_mce_resamples_pictures_with_all_their_versions() -> None:
    wrong, groups, pictures = corrupted(30)
    answers = Answers(wrong, np.zeros_like(wrong), groups, np.array(pictures))
    value = measure_metrics(["mCE"], answers)["mCE"]
    low, high = metric_intervals(["mCE"], answers)["mCE"]
    # A slow twin: whole pictures are drawn, and mCE is computed anew.
    errors = np.array(list(ALEXNET_ERRORS.values()))
    by_picture = (wrong.reshape(30, 15, 5).mean(2) / errors).mean(1)
    assert value == pytest.approx(by_picture.mean())
    draws = np.random.default_rng(1).integers(30, size=(4000, 30))
    expected = np.quantile(by_picture[draws].mean(1), [0.025, 0.975])
    assert [low, high] == pytest.approx(expected, abs=0.03)
    alone = metric_intervals(["mCE"], Answers(wrong, np.zeros_like(wrong), groups))["mCE"]
    assert alone[1] - alone[0] < (high - low) / 2  # as if every version were a picture of its own


def test_metrics_without_a_spread_have_intervals_with_a_width() -> None:
    zeros = np.zeros(150, dtype=int)
    answers = Answers(zeros, zeros, ALEXNET_GROUPS * 2, np.repeat(["a", "b"], 75))
    names = ["mCE", "mean of corruptions", "macro F1", "macro accuracy"]
    assert measure_metrics(names, answers) == pytest.approx({"mCE": 0, **dict.fromkeys(names[1:], 1)})
    for name, (low, high) in metric_intervals(names, answers).items():
        assert (low == 0 < high) if name == "mCE" else (low < high == pytest.approx(1))


@pytest.mark.parametrize("name", ["macro F1", "mean of corruptions", "background gap"])
def test_samples_of_one_cluster_have_no_interval(name: str) -> None:
    groups = ["fog-1", "fog-2"] if name != "background gap" else ["mixed_same", "mixed_rand"]
    answers = Answers(np.array([0, 1]), np.array([0, 0]), groups, np.array(["only", "only"]))
    assert name in measure_metrics([name], answers)
    assert metric_intervals([name], answers) == {}


def test_the_interval_of_the_worst_region_ignores_other_and_holds_the_worst() -> None:
    correct = np.array([1] * 45 + [0] * 15 + [1] * 50 + [0] * 10 + [0] * 40)
    groups = ["Asia"] * 60 + ["Europe"] * 60 + ["Other"] * 40
    answers = Answers(1 - correct, np.zeros_like(correct), groups, np.array(groups))
    low, high = metric_intervals(["worst region"], answers)["worst region"]
    assert measure_metrics(["worst region"], answers) == {"worst region": 0.75}
    assert (low, high) == sp.evaluation.worst_group_interval(correct[:120], groups[:120])
    assert metric_intervals(["worst region"], Answers(correct, correct, ["Other"] * len(correct))) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["macro accuracy", "mean of corruptions"])
def test_intervals_of_metrics_cover(name: str) -> None:
    covered, draws = 0, 120
    for seed in range(draws):
        wrong, groups, pictures = corrupted(40, 0.3, seed)
        labels = np.zeros_like(wrong)
        if name == "macro accuracy":  # a third of the pictures are of another class, with as many mistakes
            labels = (np.arange(len(wrong)) // 75 % 3 == 0).astype(int)
        answers = Answers(labels ^ wrong, labels, groups, np.array(pictures))
        low, high = metric_intervals([name], answers)[name]
        covered += low <= 0.7 <= high
    assert covered / draws >= (0.87 if name == "macro accuracy" else 0.9)


def scored(counts: list[int], **changes: Any) -> sp.records.AccuracyRecord:
    """A model that names the first class always, on a set with these numbers of images by class."""
    classes = sp.ClassSpace.from_ids(["fig", "lemon", "pear"])
    labels = np.repeat(np.arange(len(counts)), counts)
    ids = [str(i) for i in range(len(labels))]
    images = array_set("fruit", classes, ids, labels, lambda: np.zeros((len(labels), 2, 2, 3), np.uint8))
    images = replace(images, **changes)
    logits = np.tile([1.0, 0.0, 0.0], (len(labels), 1))
    return evaluate_set(scores(logits, labels), images, model="first", alpha=None, set_name="fruit")


def test_macro_accuracy_is_measured_where_classes_have_unequally_many_images() -> None:
    assert scored([10, 10, 10]).metrics == {}
    unequal = scored([60, 20])
    assert unequal.accuracy == 0.75
    assert unequal.metrics == {"macro accuracy": 0.5}
    low, high = unequal.metric_intervals["macro accuracy"]
    assert low <= 0.5 <= high
    assert not is_imbalanced(np.array([3, 3, 7, 7]))  # classes without images are no matter


def test_a_protocol_may_ask_for_macro_accuracy() -> None:
    record = scored([10, 10, 10], protocol=Protocol("fruit", metrics=("macro accuracy", "macro F1")))
    assert list(record.metrics) == list(record.metric_intervals) == ["macro accuracy", "macro F1"]
    assert record.metrics["macro accuracy"] == pytest.approx(1 / 3)
    assert list(scored([60, 20], protocol=Protocol("fruit", metrics=("macro accuracy",))).metrics) == ["macro accuracy"]
