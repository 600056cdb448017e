"""Robustness beyond the reference's accuracy, calibration, and which layers moved: against twins of the formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress, norm

import shiftproof as sp
from shiftproof.evaluation.metrics import scores
from shiftproof.evaluation.robustness import read_baselines

fractions = st.integers(1, 99).map(lambda count: count / 100)
SCALES = {"logit": lambda p: math.log(p / (1 - p)), "probit": norm.ppf}


@given(st.lists(st.tuples(fractions, fractions), min_size=2, max_size=8), st.sampled_from(list(SCALES)), fractions)
def test_the_baseline_is_the_line_of_least_squares(points: list[tuple[float, float]], scale: str, where: float) -> None:
    if len({reference for reference, _ in points}) < 2:
        return
    reference, shift = zip(*points, strict=True)
    scaled = SCALES[scale]
    line = linregress([scaled(x) for x in reference], [scaled(y) for y in shift])
    result = sp.evaluation.fit_baseline(reference, shift, scale)
    assert (result.slope, result.intercept) == pytest.approx((line.slope, line.intercept), abs=1e-9)
    there = line.slope * scaled(where) + line.intercept
    expected = 1 / (1 + math.exp(-there)) if scale == "logit" else norm.cdf(there)
    assert float(result.expected(where)) == pytest.approx(expected, abs=1e-9)
    assert float(sp.evaluation.effective_robustness(where, 0.5, result)) == pytest.approx(0.5 - expected, abs=1e-9)


def test_models_on_the_line_have_no_effective_robustness() -> None:
    reference = np.array([0.3, 0.5, 0.7, 0.9])
    line = sp.evaluation.Baseline("logit", 0.8, -0.6)
    shift = line.expected(reference)
    result = sp.evaluation.fit_baseline(reference, shift)
    assert (result.slope, result.intercept) == pytest.approx((0.8, -0.6))
    np.testing.assert_allclose(sp.evaluation.effective_robustness(reference, shift, result), 0, atol=1e-12)
    np.testing.assert_allclose(sp.evaluation.relative_robustness(shift + 0.1, shift), 0.1)
    np.testing.assert_allclose(sp.evaluation.robustness_gap(reference, shift), reference - shift)


@pytest.mark.parametrize(
    ("reference", "shift", "scale", "message"),
    [
        ([0.5], [0.4], "logit", "a line needs two that differ"),
        ([0.5, 0.5], [0.4, 0.3], "logit", "a line needs two that differ"),
        ([0.5, 1.0], [0.4, 0.3], "logit", "an accuracy is 1.0; on the logit scale it must lie between 0 and 1"),
        ([0.5, 0.6], [0.0, 0.3], "probit", "an accuracy is 0.0; on the probit scale"),
        ([0.5, math.nan], [0.4, 0.3], "logit", "an accuracy is nan"),
        ([0.5, 0.6], [0.4], "logit", "the numbers must be equal"),
        ([0.5, 0.6], [0.4, 0.5], "log", "unknown scale 'log'. Did you mean 'logit'"),
    ],
)
def test_points_without_a_line_are_refused(reference: Any, shift: Any, scale: str, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.evaluation.fit_baseline(reference, shift, scale)


# Calibration.


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(2, 5))
def test_scores_of_probabilities_are_those_of_their_definitions(seed: int, n: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = 2 * generator.normal(size=(n, classes)), generator.integers(classes, size=n)
    probabilities = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    saved = scores(logits, labels)
    likelihood = -sum(math.log(row[label]) for row, label in zip(probabilities, labels, strict=True)) / n
    assert sp.evaluation.negative_log_likelihood(saved.log_probability) == pytest.approx(likelihood, rel=1e-5)
    distance = sum(
        sum((p - (k == label)) ** 2 for k, p in enumerate(row))
        for row, label in zip(probabilities, labels, strict=True)
    )
    assert sp.evaluation.brier_score(saved.log_probability, saved.square_sum) == pytest.approx(distance / n, abs=1e-5)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.3, 0.8, 0.9]), st.booleans()), min_size=1, max_size=12), fractions
)
def test_selective_accuracy_is_the_mean_over_orders_of_ties(pairs: list[tuple[float, bool]], coverage: float) -> None:
    confidence, correct = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    result = sp.evaluation.selective_accuracy(confidence, correct, coverage)
    taken = max(round(coverage * len(pairs)), 1)
    edge = sorted(confidence, reverse=True)[taken - 1]
    sure = [right for c, right in pairs if c > edge]
    tied = [right for c, right in pairs if c == edge]
    assert result == pytest.approx((sum(sure) + (taken - len(sure)) * sum(tied) / len(tied)) / taken)
    assert sp.evaluation.selective_accuracy(confidence, correct, 1) == pytest.approx(correct.mean())
    assert sp.evaluation.selective_accuracy(confidence[::-1], correct[::-1], coverage) == pytest.approx(result)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.floats(0.3, 4))
def test_the_fitted_temperature_is_the_best_of_a_grid(seed: int, truth: float) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(400, 4))
    labels = (logits / truth + generator.gumbel(size=logits.shape)).argmax(1)  # drawn with these probabilities
    fitted = sp.evaluation.fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        wide = logits / temperature
        return float((np.log(np.exp(wide).sum(1)) - wide[np.arange(400), labels]).mean())

    assert loss(fitted) <= min(map(loss, np.geomspace(0.02, 50, 400))) + 1e-9
    # Logits that are already divided need the rest only.
    assert sp.evaluation.fit_temperature(logits / fitted, labels) == pytest.approx(1, rel=1e-2)


def test_a_temperature_without_an_optimum_stays_in_its_bounds() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert (
        0.01 <= sp.evaluation.fit_temperature(logits, np.array([0, 1])) < 0.05
    )  # from where on nothing is left to lose
    assert sp.evaluation.fit_temperature(logits, np.array([1, 0])) == pytest.approx(100, rel=0.01)
    with pytest.raises(sp.InputError, match="not finite"):
        sp.evaluation.fit_temperature(np.array([[np.nan, 0.0]]), np.array([0]))


def test_what_has_no_sample_or_no_partner_is_refused() -> None:
    for measure in (
        lambda: sp.evaluation.negative_log_likelihood(np.array([])),
        lambda: sp.evaluation.brier_score(np.array([]), np.array([])),
        lambda: sp.evaluation.selective_accuracy(np.array([]), np.array([], bool), 0.5),
    ):
        with pytest.raises(sp.InputError, match="the number of samples is 0"):
            measure()
    with pytest.raises(sp.InputError, match=r"coverage is 1\.5"):
        sp.evaluation.selective_accuracy(np.array([0.5]), np.array([True]), 1.5)


# Movement.


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "encoder.0.weight": torch.randn(3, 4, generator=generator),
        "encoder.0.bias": torch.randn(3, generator=generator),
        "encoder.0.num_batches_tracked": torch.tensor(seed),
        "head.weight": torch.randn(2, 3, generator=generator),
        "scale": torch.zeros(()),
    }


def test_movement_is_that_measured_entry_by_entry() -> None:
    zero, one, other = state(0), state(1), state(2)
    measured = {record.layer: record for record in sp.diagnosis.measure_movement(zero, one, other)}
    assert list(measured) == ["encoder.0", "head", "scale"]
    layers = {"encoder.0": ("encoder.0.weight", "encoder.0.bias"), "head": ("head.weight",)}
    squares = {}
    for layer, names in layers.items():
        start = [x for name in names for x in zero[name].double().flatten().tolist()]
        first, second = (
            [x for name in names for x in (end[name].double() - zero[name].double()).flatten().tolist()]
            for end in (one, other)
        )
        squares[layer] = math.fsum(x * x for x in first)
        assert measured[layer].distance == pytest.approx(math.sqrt(squares[layer]), rel=1e-6)
        assert measured[layer].relative == pytest.approx(
            math.sqrt(squares[layer] / math.fsum(x * x for x in start)), rel=1e-6
        )
        dot = math.fsum(x * y for x, y in zip(first, second, strict=True))
        assert measured[layer].cosine == pytest.approx(
            dot / math.sqrt(squares[layer] * math.fsum(y * y for y in second)), rel=1e-5
        )
    for layer in layers:
        assert measured[layer].share == pytest.approx(squares[layer] / sum(squares.values()), rel=1e-6)
    assert (measured["scale"].distance, measured["scale"].relative, measured["scale"].cosine) == (0, None, None)
    whole = math.sqrt(sum(record.distance**2 for record in measured.values()))
    assert whole == pytest.approx(sp.weights.weight_distance(zero, one), rel=1e-6)


def test_a_task_vector_points_its_own_way() -> None:
    zero, one = state(0), state(1)
    half = sp.interpolate_weights(zero, one, 0.5)
    for record in sp.diagnosis.measure_movement(zero, one, half)[:2]:
        assert record.cosine == pytest.approx(1, abs=1e-6)
    assert all(record.cosine is None for record in sp.diagnosis.measure_movement(zero, one))
    assert {record.share for record in sp.diagnosis.measure_movement(zero, zero)} == {0.0}
    (everything,) = sp.diagnosis.measure_movement(zero, one, layer_of=lambda _: "all")
    assert everything.share == 1 and everything.distance == pytest.approx(
        sp.weights.weight_distance(zero, one), rel=1e-6
    )


def test_batch_norm_s_running_statistics_are_no_movement() -> None:
    zero = {"bn.weight": torch.ones(3), "bn.running_mean": torch.zeros(3), "bn.running_var": torch.ones(3)}
    still = sp.diagnosis.measure_movement(
        zero, {**zero, "bn.running_mean": torch.full((3,), 9.0), "bn.running_var": torch.zeros(3)}
    )
    assert [(record.layer, record.distance, record.share) for record in still] == [("bn", 0.0, 0.0)]


def test_models_of_two_architectures_do_not_move() -> None:
    with pytest.raises(sp.IncompatibleWeightsError, match="scale"):
        sp.diagnosis.measure_movement(state(0), {name: entry for name, entry in state(1).items() if name != "scale"})


@pytest.mark.parametrize("rows", ["a,76.3,0.60\nb,50,0.4\n", "a,0.763,60\nb,0.5,40\n"])
def test_baselines_in_two_units_are_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "models.csv").write_text("model,photos,sketch\n" + rows, encoding="utf-8")
    with pytest.raises(sp.InputError, match="in per cent and .* in fractions"):
        read_baselines(tmp_path / "models.csv", ("photos", "sketch"))
