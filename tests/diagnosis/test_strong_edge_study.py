"""Means, intervals, summaries and contrasts of planted window measurements."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from support.windows import WINDOWS, planted

from shiftproof.diagnosis.strong_edge import (
    CLEAN,
    MEASURES,
    strong_edge_study,
)
from shiftproof.evaluation.intervals import bootstrap_interval
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.codec import document, from_json
from shiftproof.records.windows import StrongEdgeStudy


def test_means_are_over_defined_values_and_intervals_over_classes() -> None:
    result = planted()
    name = WINDOWS[0].name
    result.values[name]["window_share"][[1, 4]] = np.nan
    record = strong_edge_study({"a": result}, set_name="x").models["a"][name].means
    saved = [0, 2, 3, 5, 6, 7]
    values = result.values[name]["window_share"][saved]
    assert record["window_share"].value == pytest.approx(math.fsum(values) / 6)
    assert record["window_share"].n == 6
    assert record["window_share"].interval == bootstrap_interval(values, result.classes[saved])
    assert record["window_share"].interval != bootstrap_interval(values)
    for measure, mean in record.items():
        assert mean.interval is not None and mean.value is not None
        assert mean.interval[0] <= mean.value <= mean.interval[1], measure
    # With classes that go across, the values vary less between them.
    mixed = replace(result, classes=np.array([0, 1, 2, 3, 3, 2, 1, 0]))
    across = strong_edge_study({"a": mixed}, set_name="x").models["a"][name].means["score"].interval
    along = record["score"].interval
    assert across is not None and along is not None
    assert across[1] - across[0] < along[1] - along[0]


def test_one_class_with_a_value_gives_no_mean() -> None:
    result = planted()
    result.values[CLEAN]["width"][2:] = np.nan
    assert strong_edge_study({"a": result}, set_name="x").models["a"][CLEAN].means["width"] == MeanRecord(None, None, 2)


def test_summaries_average_the_windows_of_a_place_and_edge_first() -> None:
    result = planted()
    result.values[WINDOWS[1].name]["width"][0] = np.nan
    study = strong_edge_study({"a": result}, set_name="x")
    assert [(s.model, s.second, s.place, s.edge) for s in study.summaries] == [
        ("a", None, "away", 0.0),
        ("a", None, "away", 0.5),
    ]
    hard, soft = (study.summary("a", "away", edge) for edge in (0, 0.5))
    first, second, third = (result.values[window.name] for window in WINDOWS)
    for name in MEASURES:
        average = (first[name] + second[name]) / 2
        saved = average[1:] if name == "width" else average
        classes = result.classes[1:] if name == "width" else result.classes
        assert hard.means[name].value == pytest.approx(saved.mean())
        assert hard.means[name].interval == pytest.approx(bootstrap_interval(saved, classes))
        assert hard.means[name].n == len(saved)
        assert soft.means[name].value == pytest.approx(third[name].mean())


def test_a_contrast_is_paired() -> None:
    first, second = planted(0.1, seed=1), planted(seed=2)
    result = strong_edge_study({"a": first, "b": second}, [("a", "b")], set_name="x")
    assert [(c.model, c.second, c.edge) for c in result.contrasts] == [("a", "b", 0.0), ("a", "b", 0.5)]
    hard = result.contrasts[0].means
    for name in MEASURES:
        values = [result.summary(model, "away", 0).means[name].value for model in ("a", "b")]
        assert values[0] is not None and values[1] is not None
        assert hard[name].value == pytest.approx(values[0] - values[1])
        assert hard[name].value == pytest.approx(0.15, abs=0.02)
        # Classes differ by far more than models; pairs take that out.
        assert hard[name].interval is not None
        assert hard[name].interval[1] - hard[name].interval[0] < 0.05
    # A sample counts where both have a value.
    first.values[WINDOWS[0].name]["width"][3] = np.nan
    second.values[WINDOWS[1].name]["width"][[3, 6]] = np.nan
    result = strong_edge_study({"a": first, "b": second}, [("a", "b")], set_name="x")
    assert result.contrasts[0].means["width"].n == 6
    assert (result.summary("a", "away", 0).means["width"].n, result.summary("b", "away", 0).means["width"].n) == (7, 6)


def test_a_study_comes_back_from_json() -> None:
    first = planted()
    first.values[CLEAN]["width"][:] = np.nan  # None in the file
    study = strong_edge_study({"a": first, "b": planted(0.1)}, [("b", "a")], set_name="x", seed=4)
    text = json.dumps(document(study), allow_nan=False)
    assert from_json(StrongEdgeStudy, json.loads(text)) == study
    assert (study.seed, study.level, study.kinds) == (4, 0.95, {"a": "cam", "b": "cam"})
    assert {w.name: (w.content, w.edge, w.side, w.place) for w in WINDOWS} | {CLEAN: (None,) * 4} == {
        name: (w.content, w.edge, w.side, w.place) for name, w in study.models["b"].items()
    }
