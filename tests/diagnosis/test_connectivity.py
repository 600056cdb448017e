"""The alpha path against the line between its ends; and tests of a difference."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.records.paths import PathPoint

SWEEPS = Path(__file__).parents[2] / "docs" / "results" / "wiseft_alpha_sweeps.csv"
SHIFTS = ("ImageNetV2", "ImageNet-R", "ImageNet-Sketch", "ObjectNet", "ImageNet-A", "avg_shifts")


def path_of(alphas: list[float], accuracies: list[float]) -> sp.records.PathRecord:
    points = [PathPoint(a, x, {"photo": x}, {}) for a, x in zip(alphas, accuracies, strict=True)]
    return sp.records.PathRecord("photo", (), tuple(points))


def paper_sweeps() -> dict[tuple[str, str], sp.records.PathRecord]:
    points: dict[tuple[str, str], list[PathPoint]] = {}
    with SWEEPS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            accuracy = {name: float(row[name]) / 100 for name in ("ImageNet", *SHIFTS)}
            point = PathPoint(float(row["alpha"]), accuracy["ImageNet"], accuracy, {})
            points.setdefault((row["model"], row["tuning"]), []).append(point)
    return {key: sp.records.PathRecord("ImageNet", SHIFTS, tuple(result)) for key, result in points.items()}


rates = st.integers(0, 1000).map(lambda count: count / 1000)


@given(st.lists(rates, min_size=2, max_size=8), st.integers(0, 10**6))
def test_the_barrier_is_that_measured_by_hand(errors: list[float], seed: int) -> None:
    inner = np.sort(np.random.default_rng(seed).random(len(errors) - 2)).tolist()
    alphas = [0.0, *inner, 1.0]
    line = [errors[0] + alpha * (errors[-1] - errors[0]) for alpha in alphas]
    highest = max(error - there for error, there in zip(errors, line, strict=True))
    result = sp.diagnosis.error_barrier(alphas, errors)
    assert result == pytest.approx(max(highest, 0), abs=1e-9)
    (record,) = sp.diagnosis.measure_connectivity(path_of(alphas, [1 - error for error in errors]))
    assert record.barrier_over_line == pytest.approx(result, abs=1e-9)
    assert record.barrier_over_mean == pytest.approx(
        max(errors) - (errors[0] + errors[-1]) / 2, abs=1e-9
    )  # the worse end is on the path, too
    assert record.observation_1 == (record.barrier_over_line == 0)
    assert record.observation_2 == (min(errors) < min(errors[0], errors[-1]))
    # The path the other way round has the same barrier.
    assert sp.diagnosis.error_barrier([1 - a for a in reversed(alphas)], errors[::-1]) == pytest.approx(
        result, abs=1e-9
    )


def test_the_papers_sweeps_are_connected_and_their_gaps_come_out() -> None:
    sweeps = paper_sweeps()
    assert sum(len(path.points) for path in sweeps.values()) == 84
    for path in sweeps.values():
        for record in sp.diagnosis.measure_connectivity(path):
            assert record.observation_1, record  # on every row and set
            assert record.observation_2 or record.gain == 0
    path = sweeps["ViT-B/16", "end-to-end"]
    half = path.at(0.5).accuracy
    gaps = {
        r.set: r.gain + max(path.at(a).accuracy[r.set] for a in (0, 1)) - half[r.set]
        for r in sp.diagnosis.measure_connectivity(path)
    }
    assert round(100 * gaps["ImageNet"], 1) == 0.9
    assert round(100 * gaps["avg_shifts"], 1) == 0.5


def test_the_lowest_point_lies_between_the_ends() -> None:
    right = {alpha: np.arange(10) < count for alpha, count in ((0.0, 5), (0.3, 8), (0.6, 7), (1.0, 5))}
    (result,) = sp.diagnosis.connectivity_of({alpha: {"photo": own} for alpha, own in right.items()})
    alpha, height = result.lowest
    assert (alpha, round(height.value, 9)) == (0.6, 0.2)
    assert height.interval == sp.evaluation.bootstrap_interval(right[0.6] - 0.4 * right[0.0] - 0.6 * right[1.0])
    (ends,) = sp.diagnosis.connectivity_of({alpha: {"photo": right[alpha]} for alpha in (0.0, 1.0)})
    assert ends.lowest[1].value == 0


def test_intervals_are_paired() -> None:
    # Both ends are right on half of the samples, and the middle where either is: every sample's term is known.
    right = np.arange(400) % 2 == 0
    correct = {0.0: {"photo": right}, 0.5: {"photo": np.ones(400, bool)}, 1.0: {"photo": ~right}}
    path = path_of([0, 0.5, 1], [0.5, 1.0, 0.5])
    (record,) = sp.diagnosis.measure_connectivity(path, correct)
    assert record.above_line == (0.0, 0.5, 0.0)
    assert record.intervals is not None
    # The ends lie on the line by definition; in the middle the samples are all alike, but for those unseen.
    assert record.intervals == ((0.0, 0.0), sp.evaluation.alike_interval(0.5, 400, (-1.0, 1.0)), (0.0, 0.0))
    # Clusters that go together count as one.
    correct[0.5] = {"photo": right}
    (by_samples,) = sp.diagnosis.measure_connectivity(path_of([0, 0.5, 1], [0.5, 0.5, 0.5]), correct)
    groups = {"photo": np.repeat(np.arange(4), 100)}
    (by_groups,) = sp.diagnosis.measure_connectivity(path_of([0, 0.5, 1], [0.5, 0.5, 0.5]), correct, groups)
    assert by_samples.intervals is not None and by_groups.intervals is not None
    assert by_samples.intervals[1][0] < 0 < by_samples.intervals[1][1]
    assert by_groups.intervals[1] == sp.evaluation.alike_interval(0.0, 4, (-1.0, 1.0))  # each of the four is balanced


@pytest.mark.parametrize("alphas", [[0.1, 1], [0, 0.9], [0, 0.5, 0.5, 1], [0, 0.7, 0.3, 1], [0]])
def test_a_path_without_its_ends_or_order_is_refused(alphas: list[float]) -> None:
    with pytest.raises(sp.InputError, match="must rise from 0 to 1"):
        sp.diagnosis.error_barrier(alphas, [0.5] * len(alphas))


# Differences.


def slow_mcnemar(only_first: int, only_second: int) -> float:
    """Twice the smaller tail of fair coins, at most 1."""
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 9))
def test_mcnemar_counts_coins(only_first: int, only_second: int, both: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * both + [False])
    second = np.array([False] * only_first + [True] * only_second + [True] * both + [False])
    result = sp.evaluation.mcnemar_test(first, second)
    assert result == pytest.approx(slow_mcnemar(only_first, only_second))
    assert result == sp.evaluation.mcnemar_test(second, first)


@given(st.lists(rates, min_size=1, max_size=6))
def test_holm_refuses_what_its_steps_refuse(p_values: list[float]) -> None:
    named = {f"set {i}": p for i, p in enumerate(p_values)}
    result = sp.evaluation.holm_correction(named)
    assert list(result) == list(named)
    assert all(p <= result[name] <= 1 for name, p in named.items())
    for level in (0.01, 0.05, 0.3, *p_values):
        # Step down from the smallest until one is above its share of the level.
        refused, ranked = set(), sorted(named, key=named.__getitem__)
        for place, name in enumerate(ranked):
            if min((len(ranked) - place) * named[name], 1) > level:
                break
            refused.add(name)
        if level < 1:
            assert {name for name in named if result[name] <= level} == refused


def test_holm_keeps_the_false_alarms_of_many_tests_at_the_level() -> None:
    generator = np.random.default_rng(0)
    alarms = sum(
        min(sp.evaluation.holm_correction(dict(enumerate(generator.random(8)))).values()) < 0.05 for _ in range(2000)
    )  # type: ignore[arg-type]
    assert alarms / 2000 < 0.07


def test_a_p_value_that_is_none_is_refused() -> None:
    with pytest.raises(sp.InputError, match="the p value of sketch is 1.5"):
        sp.evaluation.holm_correction({"sketch": 1.5})
    with pytest.raises(sp.InputError, match="the numbers must be equal"):
        sp.evaluation.mcnemar_test(np.ones(2, bool), np.ones(3, bool))
