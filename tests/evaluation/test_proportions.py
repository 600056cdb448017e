"""Intervals of shares whose samples belong together, against twins written from the formulas, and their coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

import shiftproof as sp
from shiftproof.evaluation import measure_proportion, worst_group_interval


def slow_korn_graubard(right: Sequence[bool], clusters: Sequence[int], level: float) -> tuple[float, float]:
    """The interval of Korn and Graubard (1998), cluster by cluster; its ends solve the incomplete beta function."""
    n, names = len(right), sorted(set(clusters))
    share, tail = sum(right) / n, (1 - level) / 2
    if share in (0.0, 1.0):
        size = float(len(names))
    else:
        residuals = [sum(r - share for r, c in zip(right, clusters, strict=True) if c == name) for name in names]
        variance = len(names) / (len(names) - 1) * sum(r**2 for r in residuals) / n**2
        quantiles = [stats.t.isf(tail, n - 1), stats.t.isf(tail, len(names) - 1)]
        effect = variance / (share * (1 - share) / (n - 1))
        size = n if effect == 0 else min(n, n / effect * (quantiles[0] / quantiles[1]) ** 2)
    successes = share * size
    low = 0.0 if share == 0 else float(special.betaincinv(successes, size - successes + 1, tail))
    high = 1.0 if share == 1 else float(special.betaincinv(successes + 1, size - successes, 1 - tail))
    return low, high


@given(st.data())
def test_clustered_intervals_agree_with_the_formula(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 40))
    clusters = data.draw(st.lists(st.integers(0, 8), min_size=n, max_size=n).filter(lambda c: 1 < len(set(c)) < n))
    right = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    level = data.draw(st.sampled_from([0.8, 0.95, 0.99]))
    share = measure_proportion(right, clusters, level=level)
    assert share.interval == pytest.approx(slow_korn_graubard(right, clusters, level), abs=1e-7)
    assert share.value == sum(right) / n
    assert (share.n, share.method, share.clusters) == (n, "korn-graubard", len(set(clusters)))
    assert share.interval[0] <= share.value <= share.interval[1]


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_clusters_of_one_sample_change_nothing(right: list[bool]) -> None:
    alone = measure_proportion(right)
    assert measure_proportion(right, range(len(right))) == alone
    assert alone.interval == sp.evaluation.accuracy_interval(sum(right), len(right))


@given(st.lists(st.booleans(), min_size=2, max_size=20), st.integers(2, 5))
def test_repeated_samples_are_no_evidence(right: list[bool], copies: int) -> None:
    once = measure_proportion(right).interval
    clusters = [i for i in range(len(right)) for _ in range(copies)]
    repeated = measure_proportion([value for value in right for _ in range(copies)], clusters).interval
    assert repeated[1] - repeated[0] >= once[1] - once[0] - 0.03
    if all(right) or not any(right):
        assert repeated == pytest.approx(once)


def test_one_cluster_says_nothing_about_others() -> None:
    share = measure_proportion([True, False, True], ["a"] * 3)
    assert (share.interval, share.clusters) == ((0.0, 1.0), 1)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(sp.InputError, match="the number of samples is 0"):
        measure_proportion([])
    with pytest.raises(sp.InputError, match=r"the samples have the shape \(1, 2\); they must be \(N,\)"):
        measure_proportion(np.ones((1, 2), bool))
    with pytest.raises(sp.InputError, match="samples and clusters"):
        measure_proportion([True, False], ["a"])
    with pytest.raises(sp.InputError, match="level is 2"):
        measure_proportion([True], level=2)


def correlated(
    generator: np.random.Generator, clusters: int, size: int, share: float, correlation: float
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Samples that are right with probability ``share``, alike within clusters: beta-binomial."""
    names = np.repeat(np.arange(clusters), size)
    spread = (1 - correlation) / correlation
    return generator.random(len(names)) < generator.beta(share * spread, (1 - share) * spread, clusters)[names], names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clusters", "size", "share", "correlation"),
    [(267, 8, 0.75, 0.6), (267, 8, 0.95, 0.6), (30, 10, 0.8, 0.5), (10, 20, 0.8, 0.5), (60, 5, 0.5, 0.05)],
)
def test_clustered_intervals_cover_where_clopper_pearson_does_not(
    clusters: int, size: int, share: float, correlation: float
) -> None:
    generator, draws = np.random.default_rng(0), 400
    covered = naive = 0
    for _ in range(draws):
        right, names = correlated(generator, clusters, size, share, correlation)
        low, high = measure_proportion(right, names).interval
        covered += low <= share <= high
        low, high = measure_proportion(right).interval
        naive += low <= share <= high
    assert covered / draws >= 0.92
    if correlation >= 0.5:
        assert naive / draws < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("shares", [[0.7] * 3, [0.5, 0.7, 0.9], [0.8] * 10])
def test_intervals_of_the_worst_group_cover(shares: list[float]) -> None:
    generator, draws, covered = np.random.default_rng(1), 400, 0
    groups = np.repeat(np.arange(len(shares)), 60)
    for _ in range(draws):
        right = generator.random(len(groups)) < np.asarray(shares)[groups]
        low, high = worst_group_interval(right, groups)
        covered += low <= min(shares) <= high
    assert covered / draws >= 0.95


@pytest.mark.long
@pytest.mark.parametrize("samples", [100, 300, 1000])
@pytest.mark.parametrize("overconfidence", [0.0, 0.05, 0.1])
def test_intervals_of_the_calibration_error_cover(samples: int, overconfidence: float) -> None:
    generator, draws, covered = np.random.default_rng(2), 150, 0
    for seed in range(draws):
        confidence = 0.3 + 0.7 * generator.beta(3, 1.5, samples)
        right = generator.random(samples) < confidence - overconfidence
        low, high = sp.evaluation.calibration_interval(confidence, right, draws=125, seed=seed)
        covered += low <= overconfidence <= high  # every bin is off by as much
    assert covered / draws >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "samples"), [(5, 300), (20, 400), (3, 60)])
def test_intervals_of_macro_f1_cover(classes: int, samples: int) -> None:
    generator, draws, covered = np.random.default_rng(3), 120, 0
    accuracies = np.linspace(0.9, 0.5, classes)

    def predictions(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        labels = generator.integers(classes, size=count)
        right = generator.random(count) < accuracies[labels]
        return np.where(right, labels, generator.integers(classes, size=count)), labels

    truth = sp.evaluation.macro_f1(*predictions(400_000))
    for seed in range(draws):
        predicted, labels = predictions(samples)
        low, high = sp.evaluation.statistic_interval(
            lambda weights, p=predicted, y=labels: sp.evaluation.macro_f1(p, y, weights), samples, draws=100, seed=seed
        )
        covered += low <= truth <= high
    assert covered / draws >= 0.9


def slow_sign_flips(differences: Sequence[int]) -> float:
    """The share of all sign patterns whose sum is at least as far from 0 as the observed one."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    return math.fsum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) >= observed for p in patterns) / len(
        patterns
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=9))
def test_the_clustered_mcnemar_test_counts_sign_patterns(clusters: list[tuple[int, int, int]]) -> None:
    pairs = [
        (c, *pair) for c, (a, b, both) in enumerate(clusters) for pair in [(1, 0)] * a + [(0, 1)] * b + [(1, 1)] * both
    ]
    assume(pairs)
    names, first, second = (np.array(column) for column in zip(*pairs, strict=True))
    p = sp.evaluation.mcnemar_test(first.astype(bool), second.astype(bool), names)
    assert p == pytest.approx(slow_sign_flips([a - b for a, b, _ in clusters]))


@pytest.mark.slow
def test_the_clustered_mcnemar_test_keeps_its_level() -> None:
    generator, draws, rejected, naive = np.random.default_rng(4), 600, 0, 0
    names = np.repeat(np.arange(40), 8)
    for _ in range(draws):
        tendency = generator.normal(size=40)[names] + generator.normal(size=len(names))
        first, second = tendency > 0.7, tendency < -0.7
        rejected += sp.evaluation.mcnemar_test(first, second, names) < 0.05
        naive += sp.evaluation.mcnemar_test(first, second) < 0.05
    assert rejected / draws <= 0.075
    assert naive / draws > 0.2
