"""What a run's kept predictions tell: against twins, and at the edges where little is known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.diagnosis.evidence import (
    Correctness,
    find_by_class,
    find_confidence,
    find_differences,
    find_overrides,
    find_pairs,
    find_robustness,
    find_temperatures,
)
from shiftproof.evaluation.calibration import confident_share
from shiftproof.evaluation.metrics import Scores, scores
from shiftproof.records.codec import to_json
from shiftproof.records.runs import MODELS

ALPHAS = (0.0, 0.5, 1.0)


def evidence(name: str, n: int = 60, *, seed: int = 0, clusters: int | None = None) -> sp.diagnosis.SetEvidence:
    """A set of four classes that three models know more or less."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=n)
    logits = {
        model: (2 * np.eye(4)[labels] * skill + generator.normal(size=(n, 4))).astype(np.float32)
        for model, skill in zip(MODELS, (0.5, 1.0, 1.2), strict=True)
    }
    along = dict(zip(ALPHAS, (scores(logits[m], labels) for m in ("zero_shot", "ensemble", "fine_tuned")), strict=True))
    groups = [f"g{i % 3}" for i in range(n)]
    names = None if clusters is None else np.array([f"drawing {i % clusters}" for i in range(n)])
    return sp.diagnosis.SetEvidence(name, labels, logits, along, groups, names)


def slow_macro_f1(named: Sequence[int], truth: Sequence[int]) -> float:
    result = []
    for k in sorted(set(truth)):
        hits = sum(a == b == k for a, b in zip(named, truth, strict=True))
        precision = hits / max(named.count(k), 1)
        recall = hits / truth.count(k)
        result.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(result) / len(result)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_macro_f1_is_the_mean_over_the_classes_present(pairs: list[tuple[int, int]]) -> None:
    named, truth = (list(side) for side in zip(*pairs, strict=True))
    assert sp.evaluation.macro_f1(np.array(named), np.array(truth)) == pytest.approx(slow_macro_f1(named, truth))
    # A sample that counts twice is one that is there twice.
    weights = np.ones(len(named))
    weights[0] = 2
    doubled = slow_macro_f1([named[0], *named], [truth[0], *truth])
    assert sp.evaluation.macro_f1(np.array(named), np.array(truth), weights) == pytest.approx(doubled)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 12), st.booleans())
def test_a_contrast_is_resampled_as_by_hand(seed: int, clusters: int, shared: bool) -> None:
    generator = np.random.default_rng(seed)
    values = {"a": generator.normal(size=40), "b": generator.normal(1, 2, size=60)}
    names = {"a": np.arange(40) % clusters, "b": np.arange(60) % clusters + (0 if shared else clusters)}
    weights = {"a": 0.5, "b": -0.25}
    result = sp.evaluation.contrast_interval(values, weights, names, draws=1500, seed=3)
    every = sorted({*names["a"].tolist(), *names["b"].tolist()})
    drawn = []
    while len(drawn) < 1500:
        picked = generator.choice(every, size=len(every)).tolist()
        parts = {s: np.concatenate([values[s][names[s] == c] for c in picked] or [values[s][:0]]) for s in ("a", "b")}
        means = {s: part.mean() if len(part) else values[s].mean() for s, part in parts.items()}
        drawn.append(sum(weights[s] * means[s] for s in weights))
    assert result == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.25 * float(np.ptp(result)) + 1e-6)


def test_sets_of_the_same_drawings_are_not_independent() -> None:
    values = np.random.default_rng(0).normal(size=30)
    both, own = {"a": values, "b": values}, {"a": np.arange(30), "b": np.arange(30)}
    # The difference of a set with itself is certain where its drawings are drawn together.
    assert sp.evaluation.contrast_interval(both, {"a": 1.0, "b": -1.0}, own) == (0.0, 0.0)
    apart = sp.evaluation.contrast_interval(both, {"a": 1.0, "b": -1.0})
    assert apart[0] < -0.2 < 0.2 < apart[1]


def test_an_interval_lies_around_a_statistic_that_resampling_biases() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, size=300)
    right = generator.uniform(size=300) < confidence  # calibrated: what is measured is noise
    result = sp.evaluation.calibration_error(confidence, right)
    low, high = sp.evaluation.calibration_interval(confidence, right)
    assert 0 <= low < result < high


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.floats(0, 1))
def test_the_most_confident_are_at_least_so_many(tenths: list[int], coverage: float) -> None:
    confidence = np.array(tenths) / 10
    weights = confident_share(confidence, coverage)
    assert weights.sum() == pytest.approx(max(round(coverage * len(tenths)), 1))
    parts = weights[(weights > 0) & (weights < 1)]
    assert len(set(parts.tolist())) <= 1 and len(set(confidence[(weights > 0) & (weights < 1)].tolist())) <= 1
    assert not (weights == 0).any() or confidence[weights > 0].min() > confidence[weights == 0].max()


def test_accuracy_among_ties_lies_inside_its_interval() -> None:
    # Half of the samples share the edge's confidence and are all wrong; those above are all right.
    right = np.arange(100) < 40
    confidence = np.where(np.arange(100) < 40, 0.9, 0.5).astype(np.float32)
    labels = np.zeros(100, np.int64)
    saved = Scores(np.where(right, 0, 1), confidence, confidence, np.log(confidence), confidence)
    own = sp.diagnosis.SetEvidence("photo", labels, {}, {0.5: saved})
    (record,) = find_confidence([own])
    measured = record.selective["0.5"]
    assert measured.value == pytest.approx(0.8) and measured.interval is not None
    assert measured.interval[0] < 0.8 < measured.interval[1] <= 1
    # By hand: the share's weights stay with the samples, which are drawn with replacement.
    weights, generator = confident_share(confidence, 0.5), np.random.default_rng(3)
    sure = np.flatnonzero(weights)
    drawn = [generator.choice(sure, size=len(sure)) for _ in range(2000)]
    expected = np.quantile([(weights[rows] @ right[rows]) / weights[rows].sum() for rows in drawn], [0.025, 0.975])
    assert measured.interval == pytest.approx(tuple(expected), abs=0.03)


def test_few_samples_that_are_all_alike_make_nobody_sure() -> None:
    own = evidence("photo", n=5)
    always = {model: 9 * np.eye(4, dtype=np.float32)[own.labels] for model in MODELS}
    along = {alpha: scores(always["zero_shot"], own.labels) for alpha in ALPHAS}
    alike = sp.diagnosis.SetEvidence("photo", own.labels, always, along, ["g"] * 2 + ["h"] * 3)
    known = Correctness.of([alike])
    unseen = sp.evaluation.accuracy_interval(0, 5)[1]
    for record in find_differences(known, ()):
        assert record.difference == sp.records.Measured(0.0, (-unseen, unseen))
    for classes in find_by_class([alike]):
        assert classes.macro_f1.interval == pytest.approx((1 - unseen, 1))
        assert classes.worst_accuracy is not None  # of two samples in the smaller group
        assert classes.worst_accuracy.interval == pytest.approx((sp.evaluation.accuracy_interval(2, 2)[0], 1))
    for confidence in find_confidence([alike]):
        assert confidence.selective["0.8"].interval == pytest.approx((1 - unseen, 1))  # one confidence: all share it
        assert confidence.calibration_error.interval is None and confidence.nll.interval is None
    (pair, *_) = find_pairs([alike])
    assert pair.agreement.kappa_complement.interval is not None and pair.agreement.kappa_complement.interval[1] > unseen
    # One set alone that is all alike widens a mean over sets by its part.
    other = evidence("sketch", n=60)
    both = Correctness.of([alike, other])
    values = {name: both.right["zero_shot"][name] for name in ("photo", "sketch")}
    result, narrow = (
        both.contrast(values, {"photo": 0.5, "sketch": 0.5}).interval,
        sp.evaluation.contrast_interval(values, {"photo": 0.5, "sketch": 0.5}),
    )
    assert result == pytest.approx((narrow[0] - unseen / 2, narrow[1]))


@given(st.floats(-1, 1), st.integers(1, 500))
def test_an_interval_of_what_is_all_alike_lies_within_the_bounds(value: float, n: int) -> None:
    low, high = sp.evaluation.alike_interval(value, n, (-1.0, 1.0))
    assert -1 - 1e-12 <= low <= value <= high <= 1 + 1e-12
    wider = sp.evaluation.alike_interval(value, n, (-2.0, 2.0))
    assert wider[0] <= low and high <= wider[1]
    with pytest.raises(sp.InputError, match="must lie within its bounds"):
        sp.evaluation.alike_interval(3.0, n, (-1.0, 1.0))


def test_a_resample_without_a_set_s_drawings_does_not_make_its_mean_sure() -> None:
    # Two drawings of a hundred are in the small set: most resamples hold one of them alone, or none.
    values = {"small": np.array([0.0, 1.0]), "large": np.zeros(100)}
    names = {"small": np.arange(2), "large": np.arange(100)}
    drawn = sp.evaluation.resampled_means(values, names, draws=4000)["small"]
    assert set(np.unique(drawn[(drawn == 0) | (drawn == 1)])) == {0.0, 1.0}
    # None is drawn in 13 % of the resamples; with the whole set's mean there, 0.5 would come in 31 %, not 24 %.
    assert np.mean(drawn == 0.5) < 0.275


def test_differences_hold_the_plain_ones_with_corrected_tests() -> None:
    sets = [evidence("photo", seed=1, clusters=15), evidence("sketch", seed=2, clusters=15), evidence("toy", seed=3)]
    known = Correctness.of(sets)
    measured = find_differences(known, (("sketch", "toy"),))
    by_pair = {(d.first, d.second, d.sets): d for d in measured}
    for first, second in (("fine_tuned", "zero_shot"), ("ensemble", "zero_shot"), ("ensemble", "fine_tuned")):
        plain = {
            s.name: (s.logits[first].argmax(1) == s.labels).mean() - (s.logits[second].argmax(1) == s.labels).mean()  # type: ignore[union-attr]
            for s in sets
        }
        p = {}
        for own in sets:
            record = by_pair[first, second, (own.name,)]
            assert record.difference.value == pytest.approx(plain[own.name])
            assert record.difference.interval is not None
            assert record.difference.interval[0] <= record.difference.value <= record.difference.interval[1]
            assert record.p == sp.evaluation.mcnemar_test(own.correct(first), own.correct(second), own.clusters)
            p[own.name] = record.p
        for name, corrected in sp.evaluation.holm_correction(p).items():
            assert by_pair[first, second, (name,)].p_holm == corrected
        mean = by_pair[first, second, ("sketch", "toy")]
        assert mean.difference.value == pytest.approx((plain["sketch"] + plain["toy"]) / 2)
        assert mean.p is None and mean.p_holm is None
    gaps = {(r.model, r.shift): r for r in find_robustness(known, "photo")}
    accuracy = {s.name: s.correct("ensemble").mean() for s in sets}
    assert gaps["ensemble", "toy"].gap.value == pytest.approx(accuracy["photo"] - accuracy["toy"])
    assert gaps["fine_tuned", "toy"].relative is None


def test_every_part_holds_for_one_sample_and_one_cluster() -> None:
    for own in (evidence("photo", n=1), evidence("photo", n=12, clusters=1)):
        assert all(pair.agreement.disagreement.interval is None for pair in find_pairs([own]))
        assert set(find_overrides([own])) == {"photo"}
        assert all(c.macro_f1.interval is None for c in find_by_class([own]))
        assert all(c.nll.interval is None and c.calibration_error.interval is None for c in find_confidence([own]))
        assert len(find_temperatures([own], own)) == 3
        known = Correctness.of([own])
        assert all(d.difference.interval is None for d in find_differences(known, ()))


def test_broken_logits_are_named() -> None:
    own = evidence("photo")
    broken = own.logits["ensemble"].copy()  # type: ignore[union-attr]
    broken[7, 2] = np.nan
    sick = sp.diagnosis.SetEvidence("photo", own.labels, {**own.logits, "ensemble": broken}, own.along)
    with pytest.raises(sp.InputError, match="sample 7 are not finite"):
        find_pairs([sick])
    with pytest.raises(sp.InputError, match="labels and the ensemble logits of photo"):
        sp.diagnosis.SetEvidence("photo", own.labels, {"ensemble": broken[:-1]}, {})


def test_a_model_that_says_one_thing_has_no_cka_but_all_the_rest() -> None:
    own = evidence("photo")
    flat = np.tile(np.array([1, 0, 0, 0], np.float32), (60, 1))
    pairs = find_pairs(
        [sp.diagnosis.SetEvidence("photo", own.labels, {"zero_shot": own.logits["zero_shot"], "flat": flat}, {})]
    )
    assert pairs[0].cka is not None and pairs[0].cka.biased is None
    assert pairs[0].agreement.kappa_complement.value == pytest.approx(1)
    json.dumps(to_json(pairs), allow_nan=False)


def test_the_worst_group_is_the_least_accurate_one() -> None:
    own = evidence("photo", clusters=20)
    for record in find_by_class([own]):
        right = own.correct(record.model)
        by_group = {g: right[[x == g for x in own.groups or ()]].mean() for g in set(own.groups or ())}
        assert record.worst_accuracy is not None and record.worst_accuracy.value == min(by_group.values())
        assert record.worst_group is not None and by_group[record.worst_group] == min(by_group.values())
