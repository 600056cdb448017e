"""Spreads, variances and their intervals over the models of a study, and its record on disk."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.studies import FOUND, SETS, ZERO, made, recorded

import shiftproof as sp
from shiftproof.evaluation.intervals import bootstrap_spreads
from shiftproof.records.studies import STUDIED, StudyFailure, StudyMember
from shiftproof.records.summaries import study_from_json, study_json
from shiftproof.report.studies import (
    spread_table,
    study_verdict,
)
from shiftproof.studies.spreads import measure_spreads


@given(
    st.integers(3, 6).flatmap(
        lambda count: st.lists(st.lists(st.floats(0, 1), min_size=count, max_size=count), min_size=1, max_size=3)
    ),
    st.integers(0, 5),
)
def test_drawn_spreads_are_those_of_a_slow_loop(series: list[list[float]], seed: int) -> None:
    named = {str(number): values for number, values in enumerate(series)}
    result = bootstrap_spreads(named, draws=12, seed=seed)
    count = len(series[0])
    picked = np.random.default_rng(seed).integers(count, size=(12, count))
    for name, values in named.items():
        slow = [statistics.stdev([values[i] for i in row]) for row in picked.tolist()]
        np.testing.assert_allclose(result[name], slow, atol=1e-9)


def test_drawn_variances_average_to_that_of_the_items() -> None:
    # Of draws with replacement, the expected variance is the items' own, taken as a population's.
    values = [0.1, 0.4, 0.45, 0.9]
    drawn = bootstrap_spreads({"a": values}, draws=40_000)["a"]
    assert np.mean(drawn**2) == pytest.approx(statistics.pvariance(values), rel=0.02)


@pytest.mark.parametrize("series", [{}, {"a": [1, 2]}, {"a": [1, 2, 3], "b": [1, 2, 3, 4]}])
def test_too_few_or_unequally_many_items_have_no_spread(series: dict[str, list[float]]) -> None:
    with pytest.raises(sp.InputError, match="at least three"):
        bootstrap_spreads(series)


def test_spreads_are_those_computed_by_hand() -> None:
    measured = {(spread.model, spread.sets): spread for spread in measure_spreads(FOUND, SETS[0], SETS[1:])}
    assert set(measured) == {(model, sets) for model in STUDIED for sets in ("reference", "mean")}
    # Seeds of a configuration averaged: by hand, a, b and c have these accuracies.
    by_hand = {
        ("fine_tuned", "reference"): (0.75, 0.6, 0.9),
        ("wise_ft_0.5", "reference"): (0.80, 0.82, 0.84),
        ("wise_ft_chosen", "reference"): (0.80, 0.82, 0.5),
        ("fine_tuned", "mean"): (0.55, 0.4, 0.7),
        ("wise_ft_0.5", "mean"): (0.715, 0.7, 0.73),
        ("wise_ft_chosen", "mean"): (0.655, 0.7, 0.65),
    }
    for key, values in by_hand.items():
        spread = measured[key]
        assert spread.deviation == pytest.approx(statistics.stdev(values))
        assert (spread.lowest, spread.highest) == pytest.approx((min(values), max(values)))
        base = statistics.stdev(by_hand["fine_tuned", key[1]])
        assert spread.ratio == pytest.approx(base / statistics.stdev(values))
        drawn = bootstrap_spreads({"own": values})["own"]
        assert spread.interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert measured["fine_tuned", "reference"].deviation == pytest.approx(0.15)
    assert measured["wise_ft_0.5", "reference"].deviation == pytest.approx(0.02)
    assert measured["wise_ft_0.5", "reference"].ratio == pytest.approx(7.5)
    assert measured["fine_tuned", "mean"].ratio == 1


def test_a_factor_that_holds_in_every_resample_has_no_width() -> None:
    # Resamples of one configuration alone have no deviation at all: they tell nothing about a factor.
    result = [
        made(name, 0, ZERO, (x, x, x), (2 * x, 2 * x, 2 * x)) for name, x in (("a", 0.1), ("b", 0.2), ("c", 0.45))
    ]
    for spread in measure_spreads(result, SETS[0], SETS[1:]):
        factor = 2 if spread.model == "wise_ft_0.5" else 1
        assert (spread.ratio, *spread.ratio_interval) == pytest.approx((factor, factor, factor))


def test_models_that_do_not_vary_are_not_said_to_vary_more() -> None:
    same = [made(name, 0, ZERO, (0.9, 0.8, 0.8), (1.0, 0.7, 0.7)) for name in ("a", "b", "c")]
    reported = study_verdict(recorded(same))
    assert reported.count("does not vary over the configurations; fine-tuned varies by 0.00 points") == 4
    assert "more than" not in reported and "less than" not in reported
    # A factor to nothing would be no number.
    rising = [made(name, 0, ZERO, (0.9, 0.8, 0.8), (x, x, x)) for name, x in (("a", 0.5), ("b", 0.7), ("c", 0.9))]
    result = recorded(rising)
    assert {s.ratio for s in result.spreads if s.model == "wise_ft_0.5"} == {None}
    assert "On the reference, WiSE-FT, alpha 0.5 does not vary over the configurations; fine-tuned varies by 20.00" in (
        study_verdict(result)
    )
    assert [row[-1] for row in spread_table(result).rows if row[0] == "WiSE-FT, alpha 0.5"] == ["no spread"] * 2
    assert study_from_json(json.loads(json.dumps(study_json(result), allow_nan=False))) == result


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_configurations_have_no_spread(count: int) -> None:
    few = [member for member in FOUND if member.configuration in "abc"[:count]]
    assert measure_spreads(few, SETS[0], SETS[1:]) == ()
    assert spread_table(recorded(few)) is None
    assert study_verdict(recorded(few)).startswith("Fewer than three configurations finished")


def test_without_a_shift_the_reference_alone_has_a_spread() -> None:
    assert {spread.sets for spread in measure_spreads(FOUND, SETS[0], ())} == {"reference"}


NUMBERS = st.floats(0, 1, allow_subnormal=False)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
MEMBERS = st.builds(
    made,
    WORDS,
    st.one_of(st.none(), st.integers(0, 9)),
    *(st.tuples(NUMBERS, NUMBERS, NUMBERS) for _ in range(3)),
    chosen=st.sampled_from([0.0, 0.5, 1.0]),
    members=st.lists(WORDS, max_size=2).map(tuple),
)


@given(st.lists(MEMBERS, min_size=1, max_size=5), st.lists(MEMBERS, max_size=2), st.lists(WORDS, max_size=2))
def test_a_record_survives_the_way_to_disk(
    result: list[StudyMember], soups: list[StudyMember], failed: list[str]
) -> None:
    failures = tuple(StudyFailure(name, f"{name}: why") for name in failed)
    record = recorded(result, soups=tuple(soups), failures=failures)
    text = json.dumps(study_json(record), allow_nan=False, ensure_ascii=False)
    assert study_from_json(json.loads(text)) == record


def test_a_member_tells_its_accuracy_at_the_alphas_it_is_studied_at() -> None:
    assert [FOUND[0].alpha_of(model) for model in STUDIED] == [1.0, 0.5, 0.5]
    assert [FOUND[3].accuracy(model, (SETS[0],)) for model in STUDIED] == [0.9, 0.84, 0.5]
    assert FOUND[0].accuracy("fine_tuned", SETS[1:]) == pytest.approx(0.5)
    assert recorded(FOUND).configurations == ("a", "b", "c")
