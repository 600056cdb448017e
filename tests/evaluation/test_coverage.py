"""How often intervals cover the true value, by simulation: at least 90 % of the time for a nominal 95 %."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import shiftproof as sp
from shiftproof.diagnosis.means import measured_mean

Interval = tuple[float, float]
DRAWS = 250  # with a standard deviation of 1.4 % of a coverage of 95 %


def coverage(interval: Callable[[np.random.Generator], Interval], truth: float, draws: int = DRAWS) -> float:
    """The share of simulated data sets whose interval includes the true value."""
    generator = np.random.default_rng(6)
    ends = [interval(generator) for _ in range(draws)]
    return sum(low <= truth <= high for low, high in ends) / draws


def skewed_clusters(
    generator: np.random.Generator, clusters: int, largest: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Skewed values of mean 1 in clusters of 1 to ``largest`` members, which are alike."""
    names = np.repeat(np.arange(clusters), generator.integers(1, largest + 1, clusters))
    return generator.gamma(2, 0.25, clusters)[names] + generator.gamma(2, 0.25, len(names)), names


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("n", [10, 50, 1000])
def test_clopper_pearson_covers_at_any_size(n: int, share: float) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        return sp.evaluation.accuracy_interval(int(generator.binomial(n, share)), n)

    assert coverage(interval, share, 2000) >= 0.94


@pytest.mark.slow
@pytest.mark.parametrize(("clusters", "largest"), [(30, 1), (30, 8), (200, 8), (1000, 1)])
def test_bootstrap_intervals_of_a_mean_cover(clusters: int, largest: int) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        return sp.evaluation.bootstrap_interval(*skewed_clusters(generator, clusters, largest), draws=250)

    assert coverage(interval, 1.0) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 200])
def test_intervals_of_a_contrast_cover_where_sets_share_clusters(clusters: int) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        drawing = generator.normal(size=clusters)
        names = np.repeat(np.arange(clusters), 4)
        sets = {
            name: drawing[names] + mean + generator.normal(size=len(names)) for name, mean in (("a", 0.3), ("b", 0.1))
        }
        return sp.evaluation.contrast_interval(sets, {"a": 1.0, "b": -1.0}, dict.fromkeys(sets, names), draws=250)

    assert coverage(interval, 0.2) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 200])
def test_intervals_of_a_mean_over_sets_cover_where_sets_share_clusters(clusters: int) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        drawing = generator.beta(2, 1, size=clusters)
        names = np.repeat(np.arange(clusters), 4)
        sets = {name: generator.random(len(names)) < drawing[names] for name in "abc"}
        weights = dict.fromkeys(sets, 1 / 3)
        return sp.evaluation.contrast_interval(sets, weights, dict.fromkeys(sets, names), bounds=(0.0, 1.0), draws=250)

    assert coverage(interval, 2 / 3) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("n", "share"), [(20, 0.02), (20, 0.2), (300, 0.004), (300, 0.5)])
def test_intervals_of_measured_shares_cover_also_where_all_samples_are_alike(n: int, share: float) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        return measured_mean(generator.random(n) < share).interval or (0.0, 0.0)

    assert coverage(interval, share) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("n", "rate"), [(50, 0.05), (50, 0.2), (400, 0.01)])
def test_intervals_of_paired_differences_cover_where_models_seldom_differ(n: int, rate: float) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        differs = generator.random(n) < rate
        gained = generator.random(n) < 0.7
        difference = np.where(differs, np.where(gained, 1.0, -1.0), 0.0)
        return sp.evaluation.contrast_interval({"a": difference}, {"a": 1.0}, bounds=(-1.0, 1.0), draws=250)

    assert coverage(interval, 0.4 * rate) >= 0.9


@given(st.integers(1, 300), st.floats(0, 1), st.booleans())
def test_alike_intervals_miss_only_what_seldom_gives_values_that_are_all_alike(n: int, rare: float, up: bool) -> None:
    """At worst, the values that did not occur lie at a bound, so that the true mean is off by their share."""
    low, high = sp.evaluation.alike_interval(0.0, n, (-1.0, 1.0))
    if not low <= (rare if up else -rare) <= high:
        assert (1 - rare) ** n <= 0.025 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("models", [20, 60])
def test_intervals_of_effective_robustness_cover(models: int) -> None:
    n, robustness = 800, 0.05

    def on_line(reference: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sp.evaluation.Baseline("logit", 0.9, -0.4).expected(reference))

    def interval(generator: np.random.Generator) -> Interval:
        logits = generator.uniform(-1, 1.5, models)
        reference = 1 / (1 + np.exp(-logits))
        shift = 1 / (1 + np.exp(-(0.9 * logits - 0.4 + 0.15 * generator.normal(size=models))))
        sets = {"reference": generator.random(n) < 0.7, "shift": generator.random(n) < on_line(np.array(0.7)) + 0.05}
        drawn = sp.evaluation.resampled_means(sets, draws=200)
        return sp.evaluation.effective_interval((drawn["reference"], drawn["shift"]), (reference, shift))

    assert coverage(interval, robustness, 200) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("items", [13, 40])
def test_percentiles_of_the_ratio_of_two_spreads_cover(items: int) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        common = generator.normal(size=items)
        series = {"a": 2 * (common + generator.normal(size=items)), "b": common + generator.normal(size=items)}
        drawn = sp.evaluation.bootstrap_spreads(series, draws=200)
        low, high = np.quantile(drawn["a"] / drawn["b"], [0.025, 0.975])
        return float(low), float(high)

    assert coverage(interval, 2.0) >= (0.87 if items == 13 else 0.9)
