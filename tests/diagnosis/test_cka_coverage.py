"""The interval of CKA: what it is centred on, against a twin over pairs, and that it covers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import shiftproof as sp

Floats = NDArray[np.float64]


class InBlocks:
    """Outputs that come a few rows at a time, so that clusters begin in one block and end in another."""

    def __init__(self, outputs: Floats, rows: int) -> None:
        self.shape, self._outputs, self._rows = outputs.shape, outputs, rows

    def blocks(self, rows: int = 0) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self._outputs), self._rows):
            yield self._outputs[start : start + self._rows].astype(np.float32)


def slow_corrected(x: Floats, y: Floats, clusters: list[int]) -> float:
    """The CKA over pairs of samples of different clusters, pair by pair."""
    x, y = x - x.mean(0), y - y.mean(0)

    def product(a: Floats, b: Floats) -> float:
        n = range(len(x))
        return sum(float((a[i] @ a[j]) * (b[i] @ b[j])) for i in n for j in n if clusters[i] != clusters[j])

    return product(x, y) / np.sqrt(product(x, x) * product(y, y))


@pytest.mark.slow
@given(st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=12, max_size=40), st.integers(1, 7))
def test_the_corrected_cka_is_that_over_pairs_of_different_clusters(seed: int, clusters: list[int], rows: int) -> None:
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(10, 2))[clusters]  # makes clusters alike
    x, y = (shared @ generator.normal(size=(2, p)) + generator.normal(size=(len(clusters), p)) for p in (3, 2))
    x, y = (np.asarray(each, dtype=np.float32).astype(np.float64) for each in (x, y))
    record = sp.diagnosis.measure_cka(InBlocks(x, rows), InBlocks(y, rows), clusters)
    if record.corrected is not None:
        assert record.corrected.value == pytest.approx(slow_corrected(x, y, clusters), rel=1e-5, abs=1e-5)
        assert record.biased is not None and record.biased.interval == record.corrected.interval


def drawn(
    generator: np.random.Generator, clusters: int, views: int, columns: int, noise: float
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Outputs of two models that share half of what they say about a cluster, and are noisy from view to view."""
    names = np.repeat(np.arange(clusters), views)
    shared, *alone = (generator.normal(size=(clusters, columns)) for _ in range(3))
    x, y = ((shared + noise * each)[names] + 0.5 * generator.normal(size=(len(names), columns)) for each in alone)
    return x, y, names


@pytest.mark.long
@pytest.mark.parametrize(
    ("clusters", "views", "columns", "noise"),
    [(50, 1, 10, 1.0), (200, 1, 10, 1.0), (200, 1, 3, 0.3), (200, 1, 100, 1.0), (100, 8, 20, 1.0), (267, 4, 100, 0.5)],
)
def test_the_interval_of_cka_covers_that_of_the_distribution(
    clusters: int, views: int, columns: int, noise: float
) -> None:
    generator, draws, covered, biased = np.random.default_rng(5), 120, 0, 0
    truth = 1 / (1 + noise**2 + 0.25) ** 2  # of cross-covariance I to covariances (1 + noise^2 + 0.25) I
    for _ in range(draws):
        x, y, names = drawn(generator, clusters, views, columns, noise)
        record = sp.diagnosis.measure_cka(x, y, names if views > 1 else None)
        assert record.corrected is not None and record.corrected.interval is not None and record.biased is not None
        low, high = record.corrected.interval
        covered += low <= truth <= high
        shift = record.biased.value - record.corrected.value
        biased += low + shift <= truth <= high + shift
    assert covered / draws >= 0.9
    if columns == 100:
        assert biased / draws < 0.1  # where the interval was centred before
