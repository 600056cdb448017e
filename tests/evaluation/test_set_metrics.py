"""The metrics of public sets, against their definitions and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from shiftproof.data.families.corruptions import ALEXNET_ERRORS
from shiftproof.evaluation.set_metrics import metrics_of

REGIONS = ["Asia", "Europe", "Other"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=60))
def test_macro_f1_and_the_worst_region_follow_their_definitions(rows: list[tuple[int, int, int]]) -> None:
    prediction, labels, region = (np.array(column) for column in zip(*rows, strict=True))
    groups = [REGIONS[k] for k in region]
    values = metrics_of(["macro F1", "worst region"], prediction, labels, groups)
    present = np.unique(labels)
    expected = f1_score(labels, prediction, labels=present, average="macro", zero_division=0)
    assert values["macro F1"] == pytest.approx(expected)
    by_region = [np.mean([p == y for (p, y, r) in rows if r == k]) for k in (0, 1) if any(r == k for _, _, r in rows)]
    assert values.get("worst region") == (pytest.approx(min(by_region)) if by_region else None)


def test_mce_is_the_mean_of_errors_relative_to_alexnet() -> None:
    generator = np.random.default_rng(0)
    groups = [f"{name}-{severity}" for name in ALEXNET_ERRORS for severity in range(1, 6) for _ in range(8)]
    labels = np.zeros(len(groups), dtype=int)
    prediction = (generator.random(len(groups)) < 0.4).astype(int)
    values = metrics_of(["mCE", "mean of corruptions"], prediction, labels, groups)
    errors = prediction.reshape(15, -1).mean(1)
    assert values["mCE"] == pytest.approx(np.mean(errors / np.array(list(ALEXNET_ERRORS.values()))))
    assert values["mean of corruptions"] == pytest.approx(1 - errors.mean())


def test_mce_needs_every_corruption_at_every_severity() -> None:
    groups = [f"{name}-{severity}" for name in ALEXNET_ERRORS for severity in range(1, 6)][:-1]
    zeros = np.zeros(len(groups), dtype=int)
    assert metrics_of(["mCE", "mean of corruptions"], zeros, zeros, groups) == {"mean of corruptions": 1.0}


def test_alexnet_itself_has_an_mce_of_one() -> None:
    groups, prediction = [], []
    for name, error in ALEXNET_ERRORS.items():
        wrong = round(1000 * error)
        for severity in range(1, 6):
            groups += [f"{name}-{severity}"] * 1000
            prediction += [1] * wrong + [0] * (1000 - wrong)
    values = metrics_of(["mCE"], np.array(prediction), np.zeros(len(groups), dtype=int), groups)
    assert values["mCE"] == pytest.approx(1, abs=1e-3)


def test_the_background_gap_needs_both_variants() -> None:
    labels = np.zeros(4, dtype=int)
    prediction, groups = np.array([0, 0, 0, 1]), ["mixed_same", "mixed_same", "mixed_rand", "mixed_rand"]
    assert metrics_of(["background gap"], prediction, labels, groups) == {"background gap": 0.5}
    assert metrics_of(["background gap"], prediction, labels, ["original"] * 4) == {}
