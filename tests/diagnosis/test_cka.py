"""CKA in one pass against its definitions over whole kernels, and what it does not depend on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

import shiftproof as sp

Floats = NDArray[np.float64]


def features(seed: int, n: int, widths: tuple[int, int], related: float = 0.5) -> tuple[Floats, Floats]:
    """Features of two layers that share a part, far from the origin."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(n, 2))
    x, y = (
        related * shared @ generator.normal(size=(2, width)) + generator.normal(size=(n, width)) for width in widths
    )
    return x + 50, y + 50


def slow_biased(x: Floats, y: Floats) -> float:
    """Kornblith et al. 2019, Eq. 3 and 4, over kernels: HSIC = tr(KHLH)."""
    n = len(x)
    centring = np.eye(n) - 1 / n

    def hsic(k: Floats, m: Floats) -> float:
        return float(np.trace(k @ centring @ m @ centring))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def slow_unbiased_hsic(k: Floats, m: Floats) -> float:
    """Song et al. 2012, Eq. 4, entry by entry: sums over samples that are all different."""
    n = len(k)
    pairs = sum(k[i, j] * m[i, j] for i, j in itertools.permutations(range(n), 2)) / (n * (n - 1))
    triples = sum(k[i, j] * m[i, q] for i, j, q in itertools.permutations(range(n), 3)) / (n * (n - 1) * (n - 2))
    quadruples = sum(k[i, j] * m[q, r] for i, j, q, r in itertools.permutations(range(n), 4))
    return float(pairs - 2 * triples + quadruples / (n * (n - 1) * (n - 2) * (n - 3)))


@given(st.integers(0, 10**6), st.integers(3, 40), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_cka_is_that_of_whole_kernels(seed: int, n: int, widths: tuple[int, int]) -> None:
    x, y = features(seed, n, widths)
    assert sp.diagnosis.linear_cka(x, y) == pytest.approx(slow_biased(x, y), rel=1e-7, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(4, 7))
def test_the_debiased_is_that_of_sums_over_different_samples(seed: int, n: int) -> None:
    x, y = features(seed, n, (3, 2), related=2)
    hsic = [slow_unbiased_hsic(a @ a.T, b @ b.T) for a, b in ((x, y), (x, x), (y, y))]
    assume(abs(min(hsic[1:])) > 1e-6)
    if min(hsic[1:]) < 0:
        with pytest.raises(sp.InputError, match="too little for so few samples"):
            sp.diagnosis.linear_cka(x, y, debiased=True)
        return
    expected = hsic[0] / np.sqrt(hsic[1] * hsic[2])
    assert sp.diagnosis.linear_cka(x, y, debiased=True) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.booleans())
def test_neither_rotation_nor_scale_nor_offset_matters(seed: int, scale: float, debiased: bool) -> None:
    x, y = features(seed, 60, (5, 4))
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    result = sp.diagnosis.linear_cka(x, y, debiased=debiased)
    assert sp.diagnosis.linear_cka(scale * x @ rotation - 7, y, debiased=debiased) == pytest.approx(result, rel=1e-8)
    assert sp.diagnosis.linear_cka(y, x, debiased=debiased) == pytest.approx(result, rel=1e-12)
    assert sp.diagnosis.linear_cka(x, 3 - scale * x @ rotation, debiased=debiased) == pytest.approx(1, rel=1e-9)
    order = np.random.default_rng(seed).permutation(60)
    assert sp.diagnosis.linear_cka(x[order], y[order], debiased=debiased) == pytest.approx(result, rel=1e-9)
    if not debiased:
        assert 0 <= result <= 1 + 1e-12


def test_only_the_debiased_is_about_none_for_unrelated_features() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 100, 300))
    assert sp.diagnosis.linear_cka(x, y) > 0.6
    assert abs(sp.diagnosis.linear_cka(x, y, debiased=True)) < 0.05


@given(st.integers(0, 10**6), st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_blocks_are_as_good_as_the_whole(seed: int, sizes: list[int]) -> None:
    x, y = features(seed, sum(sizes) + 4, (4, 3))
    sums = sp.diagnosis.CkaSums()
    for start, stop in itertools.pairwise([0, *np.cumsum(sizes), len(x)]):
        sums.add(x[start:stop], y[start:stop])
    assert sums.biased() == pytest.approx(sp.diagnosis.linear_cka(x, y), rel=1e-9)
    assert sums.debiased() == pytest.approx(sp.diagnosis.linear_cka(x, y, debiased=True), rel=1e-7, abs=1e-9)


def test_an_offset_costs_no_digits() -> None:
    x, y = features(3, 200, (4, 4))
    assert sp.diagnosis.linear_cka(x + 1e6, y - 1e6) == pytest.approx(sp.diagnosis.linear_cka(x, y), rel=1e-7)


def test_what_is_given_stays_as_it_is() -> None:
    x, y = features(4, 10, (2, 2))
    original = x.copy(), y.copy()
    sp.diagnosis.linear_cka(x, y)
    assert (x == original[0]).all() and (y == original[1]).all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)), "the first features do not vary"),
        (np.random.default_rng(0).normal(size=(9, 2)), np.zeros((9, 2)), "the second features do not vary"),
        *(
            (np.full((n, 5), 0.1), np.random.default_rng(0).normal(size=(n, 5)), "the first features do not vary")
            for n in (33, 100)  # of which the rounding of a tenth leaves something
        ),
        (np.zeros((9, 2)), np.zeros((8, 2)), "the numbers must be equal"),
        (np.zeros((1, 2)), np.zeros((1, 2)), "needs at least 2"),
        (np.zeros(9), np.zeros(9), r"must be \(N, P\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), r"must be \(N, P\)"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), "features of sample 0 are not finite"),
    ],
)
def test_features_that_have_no_cka_are_refused(x: Floats, y: Floats, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.diagnosis.linear_cka(x, y)


def test_noise_of_more_channels_than_images_is_alike_unless_debiased() -> None:
    generator = np.random.default_rng(6)
    x, y = generator.normal(size=(534, 534)), generator.normal(size=(534, 768))
    assert sp.diagnosis.linear_cka(x, y) == pytest.approx(0.54, abs=0.01)
    assert abs(sp.diagnosis.linear_cka(x, y, debiased=True)) < 0.01


@pytest.mark.parametrize("n", [33, 100])
def test_the_rounding_of_a_constant_is_no_variation(n: int) -> None:
    still = np.full((n, 5), 0.1)
    for x, which in ((still, "first"), (features(5, n, (5, 5))[0], "second")):
        with pytest.raises(sp.InputError, match=f"the {which} features do not vary"):
            sp.diagnosis.linear_cka(x, still, debiased=True)
    assert sp.diagnosis.measure_cka(still, features(5, n, (5, 5))[0]) == sp.records.CkaRecord(n, None, None)


def test_too_few_samples_and_other_widths_are_refused() -> None:
    x, y = features(5, 3, (2, 2))
    with pytest.raises(sp.InputError, match="needs at least 4"):
        sp.diagnosis.linear_cka(x, y, debiased=True)
    sums = sp.diagnosis.CkaSums()
    sums.add(x, y)
    with pytest.raises(sp.InputError, match="this block has 1 and 2 columns, and the blocks before it 2 and 2"):
        sums.add(x[:, :1], y)


@given(st.integers(0, 10**6), st.integers(6, 40))
def test_an_influence_is_the_derivative_by_a_samples_weight(seed: int, n: int) -> None:
    x, y = features(seed, n, (3, 4))
    sums = sp.diagnosis.CkaSums()
    sums.add(x, y)
    result = sums.influences(x, y)
    assert result.mean() == pytest.approx(sp.diagnosis.linear_cka(x, y))
    # A sample that counts a little more: the weighted kernels' CKA, by a difference quotient.
    row, step = seed % n, 1e-5
    weights = np.ones(n)
    weights[row] += step

    def weighted(weights: Floats) -> float:
        w = weights / weights.sum()
        a, b = x - w @ x, y - w @ y
        cross, own, other = ((p * w[:, None]).T @ q for p, q in ((a, b), (a, a), (b, b)))
        return float((cross**2).sum() / np.sqrt((own**2).sum() * (other**2).sum()))

    slope = (weighted(weights) - weighted(np.ones(n))) / step
    assert slope * n == pytest.approx(result[row] - result.mean(), abs=1e-3)


def test_the_interval_of_cka_is_that_of_resampling_it() -> None:
    x, y = features(3, 400, (3, 4))
    measured = sp.diagnosis.measure_cka(x, y).biased
    assert measured is not None and measured.interval is not None
    picked = np.random.default_rng(0).integers(400, size=(400, 400))
    low, high = np.quantile([sp.diagnosis.linear_cka(x[rows], y[rows]) for rows in picked], [0.025, 0.975])
    width = measured.interval[1] - measured.interval[0]
    assert measured.interval == pytest.approx((low, high), abs=0.25 * width)


def test_flat_outputs_have_no_cka_and_few_samples_no_debiased_one() -> None:
    flat, some = np.ones((6, 3)), np.random.default_rng(0).normal(size=(6, 3))
    assert sp.diagnosis.measure_cka(flat, some) == sp.records.CkaRecord(6, None, None)
    assert sp.diagnosis.measure_cka(some[:1], some[:1]) == sp.records.CkaRecord(1, None, None)
    three = sp.diagnosis.measure_cka(some[:3], some[3:])
    assert three.biased is not None and three.debiased is None
