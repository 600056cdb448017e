"""How two models differ, and whom their ensemble follows: against twins that count one sample after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import shiftproof as sp
from shiftproof.diagnosis import agreement

Logits = NDArray[np.float64]


@st.composite
def outputs(draw: st.DrawFn, models: int) -> tuple[list[Logits], NDArray[np.int64]]:
    """Logits of several models on the same few samples, who agree now and then, and labels."""
    n, classes = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    shared = generator.normal(size=(n, classes))
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    result = [share * shared + (1 - share) * generator.normal(size=(n, classes)) for _ in range(models)]
    return result, generator.integers(classes, size=n)


def named(logits: Logits) -> list[int]:
    return [max(range(len(row)), key=row.__getitem__) for row in logits.tolist()]


def probabilities(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def slow_kappa(one: list[Any], other: list[Any]) -> float | None:
    """Cohen's kappa from the table of who says what; None where chance alone would always agree."""
    n, kinds = len(one), {*one, *other}
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    expected = sum((one.count(kind) / n) * (other.count(kind) / n) for kind in kinds)
    return None if math.isclose(expected, 1) else (observed - expected) / (1 - expected)


@given(outputs(2))
def test_measures_of_two_are_those_counted_by_hand(drawn: tuple[list[Logits], NDArray[np.int64]]) -> None:
    (one, other), labels = drawn
    a, b, truth = named(one), named(other), labels.tolist()
    right = [[message == t for message, t in zip(model, truth, strict=True)] for model in (a, b)]
    alone = sum(x != y for x, y in zip(*right, strict=True)) / len(truth)
    assert sp.diagnosis.prediction_diversity(one, other, labels) == pytest.approx(alone)

    kappa = slow_kappa(a, b)
    assert sp.diagnosis.kappa_complement(one, other) == pytest.approx(0 if kappa is None else 1 - kappa, abs=1e-12)
    consistency = slow_kappa(*right)
    assert sp.diagnosis.error_consistency(one, other, labels) == pytest.approx(
        1 if consistency is None else consistency, abs=1e-12
    )

    divergence = 0.0
    for p, q in zip(map(probabilities, one.tolist()), map(probabilities, other.tolist()), strict=True):
        divergence += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / len(truth)
    assert sp.diagnosis.kl_divergence(one, other) == pytest.approx(divergence, abs=1e-12)
    assert sp.diagnosis.margins(one).tolist() == pytest.approx(
        [sorted(row)[-1] - sorted(row)[-2] for row in one.tolist()]
    )


@given(outputs(2))
def test_measures_of_two_are_symmetric_and_bounded(drawn: tuple[list[Logits], NDArray[np.int64]]) -> None:
    (one, other), labels = drawn
    for measure, low, high in ((sp.diagnosis.prediction_diversity, 0, 1), (sp.diagnosis.error_consistency, -1, 1)):
        assert measure(one, other, labels) == pytest.approx(measure(other, one, labels))
        assert low <= measure(one, other, labels) <= high
    assert sp.diagnosis.kappa_complement(one, other) == pytest.approx(sp.diagnosis.kappa_complement(other, one))
    assert 0 <= sp.diagnosis.kappa_complement(one, other) <= 2
    assert sp.diagnosis.kl_divergence(one, other) >= 0
    assert (sp.diagnosis.margins(one) >= 0).all()
    # A model does not differ from itself, nor from what adds the same to all its outputs.
    assert sp.diagnosis.prediction_diversity(one, one, labels) == sp.diagnosis.kappa_complement(one, one) == 0
    assert sp.diagnosis.error_consistency(one, one, labels) == 1
    assert sp.diagnosis.kl_divergence(one, one + 3) == pytest.approx(0, abs=1e-12)
    # Probabilities depend on the scale, predictions do not.
    assert sp.diagnosis.kappa_complement(2 * one, other) == sp.diagnosis.kappa_complement(one, other)


def test_kappa_of_independent_predictions_is_about_none() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 20_000, 5))
    assert sp.diagnosis.kappa_complement(one, other) == pytest.approx(1, abs=0.02)
    assert sp.diagnosis.error_consistency(one, other, generator.integers(5, size=20_000)) == pytest.approx(0, abs=0.02)


@given(outputs(3))
def test_overrides_are_those_counted_by_hand(drawn: tuple[list[Logits], NDArray[np.int64]]) -> None:
    (zero, tuned, ensemble), labels = drawn
    counts = {"zero_shot": 0, "fine_tuned": 0, "neither": 0}
    cases = [case for case in zip(named(zero), named(tuned), named(ensemble), strict=True) if case[0] != case[1]]
    for by_zero, by_tuned, followed in cases:
        counts["zero_shot" if followed == by_zero else "fine_tuned" if followed == by_tuned else "neither"] += 1
    result = sp.diagnosis.override_rates(zero, tuned, ensemble)
    assert (result.disagreements, result.n) == (len(cases), len(labels))
    for name, count in counts.items():
        assert getattr(result, name) == pytest.approx(count / len(cases) if cases else 0, abs=1e-12)
    assert result.zero_shot + result.fine_tuned + result.neither == pytest.approx(1 if cases else 0)

    apart = sp.diagnosis.override_rates_by_right(zero, tuned, ensemble, labels)
    assert sum(record.disagreements for record in apart.values()) == result.disagreements
    for name in counts:
        whole = sum(getattr(record, name) * record.disagreements for record in apart.values())
        assert whole == pytest.approx(getattr(result, name) * result.disagreements, abs=1e-9)
    # Whoever exchanges the two models exchanges the two rates.
    swapped = sp.diagnosis.override_rates(tuned, zero, ensemble)
    assert (swapped.zero_shot, swapped.fine_tuned) == (result.fine_tuned, result.zero_shot)


@given(outputs(3))
def test_the_gain_beyond_both_is_that_counted_by_hand(drawn: tuple[list[Logits], NDArray[np.int64]]) -> None:
    (zero, tuned, ensemble), labels = drawn
    rows = zip(named(zero), named(tuned), named(ensemble), labels.tolist(), strict=True)
    gained = [(a != truth) for a, b, both, truth in rows if both == truth and b != truth]
    expected = sum(gained) / len(gained) if gained else 0
    assert sp.diagnosis.gain_beyond_both(zero, tuned, ensemble, labels) == pytest.approx(expected)


def test_an_ensemble_that_is_one_of_them_is_overridden_by_none() -> None:
    zero, tuned = np.random.default_rng(1).normal(size=(2, 300, 4))
    assert sp.diagnosis.override_rates(zero, tuned, zero).zero_shot == 1
    assert sp.diagnosis.override_rates(zero, tuned, tuned).fine_tuned == 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = np.random.default_rng(2).normal(size=(2, 50, 4))
    whole = sp.diagnosis.kl_divergence(one, other), sp.diagnosis.margins(one).tolist()
    monkeypatch.setattr("shiftproof.diagnosis.logits._BLOCK_SIZE", 12)
    assert sp.diagnosis.kl_divergence(one, other) == pytest.approx(whole[0], rel=1e-12)
    assert sp.diagnosis.margins(one).tolist() == whole[1]


def test_large_logits_overflow_nothing() -> None:
    one, other = np.array([[1e4, 0.0]], dtype=np.float32), np.array([[0.0, 1e4]], dtype=np.float32)
    assert sp.diagnosis.kl_divergence(one, other) == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (np.zeros((3, 4)), np.zeros((2, 4)), r"shapes \(3, 4\) and \(2, 4\).*Align them by sample id and class id"),
        (np.zeros((3, 4)), np.zeros((3, 5)), r"shapes \(3, 4\) and \(3, 5\)"),
        (np.zeros((3, 1)), np.zeros((3, 1)), "at least two classes"),
        (np.zeros(3), np.zeros(3), "must be .N, K."),
        (np.zeros((0, 4)), np.zeros((0, 4)), "the number of samples is 0"),
        (np.zeros((3, 4)), np.where(np.eye(3, 4) > 0, np.nan, 0), "the logits of sample 0 are not finite"),
        (np.full((3, 4), np.inf), np.zeros((3, 4)), "the logits of sample 0 are not finite"),
    ],
)
def test_logits_that_do_not_fit_are_refused(one: Logits, other: Logits, message: str) -> None:
    for measure in (
        sp.diagnosis.kappa_complement,
        sp.diagnosis.kl_divergence,
        lambda a, b: sp.diagnosis.override_rates(a, b, a),
    ):
        with pytest.raises(sp.InputError, match=message):
            measure(one, other)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(sp.InputError, match="the numbers must be equal"):
        sp.diagnosis.prediction_diversity(np.eye(3), np.eye(3), np.array([0, 1]))


# With intervals.


def resampled(measure: Any, models: list[Logits], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> list[float]:
    """The measure itself, on resamples of whole groups: what the linearised samples stand for."""
    generator, result = np.random.default_rng(5), []
    places = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(400):
        picked = np.concatenate([places[i] for i in generator.integers(len(places), size=len(places))])
        result.append(measure(*(model[picked] for model in models), labels[picked]))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_about_those_of_resampling_the_measures_themselves(grouped: bool) -> None:
    generator = np.random.default_rng(3)
    labels = np.repeat(generator.integers(4, size=150), 4)
    # Views of one drawing are alike, so that they count for less than as many drawings.
    shared = np.repeat(generator.normal(size=(2, 150, 4)), 4, axis=1)
    one, other = 1.5 * shared + generator.normal(size=(2, 600, 4)) + np.eye(4)[labels]
    groups = np.repeat(np.arange(150), 4) if grouped else np.arange(600)
    result = sp.diagnosis.measure_agreement(one, other, labels, groups if grouped else None)
    measures = {
        "prediction_diversity": sp.diagnosis.prediction_diversity,
        "kappa_complement": lambda a, b, _: sp.diagnosis.kappa_complement(a, b),
        "error_consistency": sp.diagnosis.error_consistency,
        "kl_forward": lambda a, b, _: sp.diagnosis.kl_divergence(a, b),
        "kl_backward": lambda a, b, _: sp.diagnosis.kl_divergence(b, a),
        "margin_difference": lambda a, b, _: float((sp.diagnosis.margins(a) - sp.diagnosis.margins(b)).mean()),
        "disagreement": lambda a, b, _: float((a.argmax(1) != b.argmax(1)).mean()),
    }
    for name, measure in measures.items():
        measured = getattr(result, name)
        assert measured.value == pytest.approx(measure(one, other, labels), abs=1e-12)
        low, high = measured.interval
        assert low < measured.value < high
        expected = np.quantile(resampled(measure, [one, other], labels, groups), [0.025, 0.975])
        assert (low, high) == pytest.approx(tuple(expected), abs=0.2 * (expected[1] - expected[0])), name


@given(outputs(2))
def test_the_linearised_samples_have_the_measure_as_their_mean(drawn: tuple[list[Logits], NDArray[np.int64]]) -> None:
    (one, other), labels = drawn
    named_by = [logits.argmax(1) for logits in (one, other)]
    complement = sp.diagnosis.kappa_complement(one, other)
    samples = agreement._linearised(complement, named_by[0] == named_by[1], *named_by, one.shape[1])
    assert samples.mean() == pytest.approx(complement, abs=1e-9)
    right = [(side == labels).astype(np.int64) for side in named_by]
    complement, most = agreement._kappa_complement(*right, 2)
    assert agreement._linearised(complement, right[0] == right[1], *right, 2).mean() == pytest.approx(complement)
    assert most is None or complement <= most + 1e-12


@given(outputs(4))
def test_the_contrasts_are_differences_of_their_parts(drawn: tuple[list[Logits], NDArray[np.int64]]) -> None:
    (one, other, third, fourth), labels = drawn
    result = sp.diagnosis.diversity_contrast((one, other), (third, fourth), labels)
    apart, close = (
        sp.diagnosis.prediction_diversity(one, other, labels),
        sp.diagnosis.prediction_diversity(third, fourth, labels),
    )
    assert result.value == pytest.approx(apart - close)
    turned = sp.diagnosis.diversity_contrast((third, fourth), (one, other), labels)
    assert turned.value == pytest.approx(-result.value)
    assert result.interval is None or -1 <= result.interval[0] <= result.value <= result.interval[1] <= 1
    followed = sp.diagnosis.measure_overrides(one, other, third, labels)
    rates = sp.diagnosis.override_rates(one, other, third)
    if rates.disagreements:
        assert followed.lead is not None
        assert followed.lead.value == pytest.approx(rates.zero_shot - rates.fine_tuned)


def test_without_labels_what_needs_them_is_left_out() -> None:
    one, other = np.random.default_rng(4).normal(size=(2, 30, 3))
    measured = sp.diagnosis.measure_agreement(one, other)
    assert measured.prediction_diversity is None and measured.error_consistency is None
    assert measured.n == 30


def test_what_always_holds_is_as_sure_as_its_clusters_are_many() -> None:
    always, drawings = np.ones(12, dtype=bool), np.arange(12) // 3
    assert agreement.measured_mean(always).interval == sp.evaluation.accuracy_interval(12, 12)
    assert agreement.measured_mean(~always, drawings).interval == sp.evaluation.accuracy_interval(0, 4)
    # Of a number that does not vary: what is known of its bounds.
    assert agreement.measured_mean(np.ones(12)).interval is None
    low, high = agreement.measured_mean(np.zeros(12), bounds=(-1, 1)).interval or (0, 0)
    assert (-low, high) == (sp.evaluation.accuracy_interval(0, 12)[1],) * 2


def test_models_that_always_agree_are_not_known_to_do_so_for_ever() -> None:
    logits, labels = np.random.default_rng(5).normal(size=(20, 3)), np.arange(20) % 3
    result = sp.diagnosis.measure_agreement(logits, logits, labels)
    unseen = sp.evaluation.accuracy_interval(0, 20)[1]
    for measured, value in (
        (result.disagreement, 0.0),
        (result.kappa_complement, 0.0),
        (result.prediction_diversity, 0.0),
        (result.error_consistency, 1.0),
    ):
        assert measured is not None and measured.value == value and measured.interval is not None
        low, high = measured.interval
        assert high - low >= unseen and low <= value <= high
    assert result.kl_forward == sp.records.Measured(0.0, None)


def test_one_sample_has_values_and_no_intervals() -> None:
    one, other = np.random.default_rng(4).normal(size=(2, 1, 3))
    measured = sp.diagnosis.measure_agreement(one, other, np.array([0]))
    assert measured.n == 1
    assert measured.disagreement == sp.records.Measured(float(one.argmax() != other.argmax()), None)
    assert measured.margin_difference.interval is None
    both = np.concatenate([one, other])
    assert sp.diagnosis.measure_agreement(both, both[::-1], clusters=["a", "a"]).disagreement.interval is None


@given(outputs(3), st.booleans())
def test_overrides_with_intervals_have_the_plain_rates(
    drawn: tuple[list[Logits], NDArray[np.int64]], grouped: bool
) -> None:
    (zero, tuned, ensemble), labels = drawn
    clusters = np.arange(len(labels)) // 2 if grouped else None
    result = sp.diagnosis.measure_overrides(zero, tuned, ensemble, labels, clusters)
    plain = {
        "": sp.diagnosis.override_rates(zero, tuned, ensemble),
        **sp.diagnosis.override_rates_by_right(zero, tuned, ensemble, labels),
    }
    for name, rates in plain.items():
        record = result.by_right[name] if name else result
        assert (record.disagreements, record.n) == (rates.disagreements, rates.n)
        for follows in ("zero_shot", "fine_tuned", "neither"):
            measured = getattr(record, follows)
            if not rates.disagreements:
                assert measured is None
                continue
            assert measured.value == pytest.approx(getattr(rates, follows), abs=1e-12)
            assert 0 <= measured.interval[0] <= measured.value <= measured.interval[1] <= 1
            if not grouped:
                count = round(measured.value * rates.disagreements)
                assert measured.interval == sp.evaluation.accuracy_interval(count, rates.disagreements)
    assert sp.diagnosis.measure_overrides(zero, tuned, ensemble).by_right == {}


def test_alike_cases_of_one_cluster_count_as_one() -> None:
    # Ten drawings in ten views each; the ensemble follows zero-shot on all views of half of them.
    zero, tuned = np.eye(2)[np.zeros(100, int)], np.eye(2)[np.ones(100, int)]
    drawings = np.repeat(np.arange(10), 10)
    ensemble = np.where((drawings % 2 == 0)[:, None], zero, tuned)
    plain, clustered = (
        sp.diagnosis.measure_overrides(zero, tuned, ensemble, clusters=c).zero_shot for c in (None, drawings)
    )
    assert plain.value == clustered.value == 0.5
    assert clustered.interval[1] - clustered.interval[0] > 2 * (plain.interval[1] - plain.interval[0])
    alone = sp.diagnosis.measure_overrides(zero, tuned, ensemble, clusters=np.zeros(100))
    assert alone.zero_shot is not None and alone.zero_shot.interval == (0, 1)
    with pytest.raises(sp.InputError, match="logits and clusters have 100 and 3 entries"):
        sp.diagnosis.measure_overrides(zero, tuned, ensemble, clusters=[1, 2, 3])
