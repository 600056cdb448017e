"""The weight-space ensemble, the alpha path, and the rules that choose a point on it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.classifiers import classifier_around, weight_bytes
from support.predictions import collecting
from torch import nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set
from shiftproof.ensembling.path import alpha_grid
from shiftproof.records.paths import PathPoint

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear"])


def noise(name: str, count: int, seed: int) -> sp.ImageSet:
    labels = np.random.default_rng(seed).permutation(np.arange(count) % len(CLASSES))

    def draw() -> np.ndarray:
        generator = np.random.default_rng(seed + 100)
        tint = generator.integers(0, 256, (count, 1, 1, 3))
        return (tint + generator.normal(0, 40, (count, 16, 16, 3))).clip(0, 255).astype(np.uint8)

    return array_set(name, CLASSES, [f"{name}-{i}" for i in range(count)], labels, draw)


SUITE = sp.ShiftSuite(
    "noise",
    CLASSES,
    sp.data.Reference("photo", noise("train", 12, 0), noise("validation", 9, 1), noise("test", 15, 2)),
    (
        sp.data.Shift("sketch", "natural", noise("sketch", 12, 3)),
        sp.data.Shift("clutter", "natural", noise("clutter", 6, 4)),
    ),
)


def seeded_classifier(seed: int, *, width: int = 8, classes: sp.ClassSpace = CLASSES, **changes: Any) -> sp.Classifier:
    """A small network whose batch norm has float and integer buffers, with weights and statistics from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(width)
        encoder = nn.Sequential(nn.Conv2d(3, width, 3, 2), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        head = nn.Linear(4 * width, len(classes))
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(seed)
        for tensor in (norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.uniform_(0.1, 1)
    return classifier_around(encoder, head, classes, **{"architecture": {"name": f"toy-{width}"}, **changes})


# The ensemble.


@pytest.mark.parametrize("alpha", [0, 1, 0.0, 1.0])
def test_the_ends_are_the_parents_bit_for_bit(alpha: float) -> None:
    zero, tuned = seeded_classifier(1), seeded_classifier(2)
    assert weight_bytes(sp.wise_ft(zero, tuned, alpha)) == weight_bytes(tuned if alpha else zero)


@given(st.floats(0.01, 0.99))
def test_between_the_ends_every_weight_is_interpolated(alpha: float) -> None:
    zero, tuned = seeded_classifier(1), seeded_classifier(2)
    tensors = sp.wise_ft(zero, tuned, alpha).state_dict()
    assert tensors.keys() == zero.state_dict().keys()
    for name, theta_0 in zero.state_dict().items():
        theta_1 = tuned.state_dict()[name]
        assert (tensors[name].dtype, tensors[name].shape) == (theta_0.dtype, theta_0.shape)
        if not theta_0.is_floating_point():
            continue
        for got, a, b in zip(
            tensors[name].flatten().tolist(), theta_0.flatten().tolist(), theta_1.flatten().tolist(), strict=True
        ):
            assert got == pytest.approx((1 - alpha) * a + alpha * b, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("alpha", "nearer"), [(0.3, 1), (0.49, 1), (0.51, 2), (0.9, 2)])
def test_counters_are_copied_from_the_nearer_end(alpha: float, nearer: int) -> None:
    tensors = sp.wise_ft(seeded_classifier(1), seeded_classifier(2), alpha).state_dict()[
        "encoder.1.num_batches_tracked"
    ]
    assert tensors.dtype == torch.int64
    assert tensors.item() == nearer


def test_the_parents_stay_as_they_were() -> None:
    zero, tuned = seeded_classifier(1), seeded_classifier(2)
    before = weight_bytes(zero), weight_bytes(tuned)
    ensemble = sp.wise_ft(zero, tuned, 0.5)
    with torch.no_grad():
        for parameter in ensemble.network.parameters():
            parameter.zero_()
    assert (weight_bytes(zero), weight_bytes(tuned)) == before


def test_it_says_where_it_comes_from(tiny: sp.models.Clip, tmp_path: Path) -> None:
    zero = sp.zero_shot_classifier(tiny, CLASSES)
    moved = {name: tensor + 0.01 for name, tensor in zero.state_dict().items()}
    tuned = zero.with_weights(moved, head="trained", training={"seed": 7})
    ensemble = sp.wise_ft(zero, tuned, 0.3)
    stored = sp.load_classifier(sp.save_classifier(ensemble, tmp_path / "ensemble"))
    for result in (ensemble, stored):
        assert result.alpha == 0.3
        assert result.head == "interpolated"
        assert [dict(parent) for parent in result.parents] == [
            {"role": "zero_shot", "fingerprint": sp.models.fingerprint(zero), "source": "tiny"},
            {"role": "fine_tuned", "fingerprint": sp.models.fingerprint(tuned), "source": "tiny"},
        ]
        # It was not trained itself.
        assert dict(result.training) == {}
    assert sp.models.fingerprint(stored) == sp.models.fingerprint(ensemble)
    assert len({sp.models.fingerprint(zero), sp.models.fingerprint(tuned), sp.models.fingerprint(ensemble)}) == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (seeded_classifier(2, classes=sp.ClassSpace.from_ids(["lemon", "pear", "plum"])), "'plum', 'red_apple'"),
        (seeded_classifier(2, classes=sp.ClassSpace.from_ids(["pear", "lemon", "red_apple"])), "a different order"),
        (seeded_classifier(2, preprocessing=Preprocessing(size=16, interpolation="bilinear")), "bilinear"),
        (seeded_classifier(2, width=16), "encoder.0.weight"),
    ],
    ids=["classes", "order", "preprocessing", "architecture"],
)
def test_classifiers_that_do_not_fit_are_refused(other: sp.Classifier, message: str) -> None:
    for pair in ((seeded_classifier(1), other), (other, seeded_classifier(1))):
        with pytest.raises(sp.IncompatibleWeightsError, match=message):
            sp.wise_ft(*pair, 0.5)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_alpha_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(sp.InputError, match="alpha"):
        sp.wise_ft(seeded_classifier(1), seeded_classifier(2), alpha)


# For a linear head on a frozen encoder, ensembling in weight space and in output space are one (WiSE-FT, sec. 4).


def interpolated_logits(zero: sp.Classifier, tuned: sp.Classifier, images: sp.ImageSet, alpha: float) -> np.ndarray:
    first, second = (sp.predict(classifier, images).logits.tolist() for classifier in (zero, tuned))
    rows = [
        [(1 - alpha) * a + alpha * b for a, b in zip(row_0, row_1, strict=True)]
        for row_0, row_1 in zip(first, second, strict=True)
    ]
    return np.array(rows)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.73, 1.0])
def test_head_only_weights_and_outputs_interpolate_alike(alpha: float) -> None:
    zero = seeded_classifier(1)
    tuned = sp.finetune(zero, SUITE, sp.FinetuneSettings(recipe="head-only", epochs=20, lr=0.1, batch_size=6))
    for images in SUITE.test_sets.values():
        predictions = sp.predict(sp.wise_ft(zero, tuned, alpha), images).logits
        np.testing.assert_allclose(predictions, interpolated_logits(zero, tuned, images, alpha), rtol=1e-4, atol=1e-4)
    assert not np.allclose(
        sp.predict(zero, SUITE.reference.test).logits, sp.predict(tuned, SUITE.reference.test).logits
    )


def test_end_to_end_weights_and_outputs_interpolate_differently() -> None:
    zero = seeded_classifier(1)
    tuned = sp.finetune(zero, SUITE, sp.FinetuneSettings(epochs=20, lr=0.05, batch_size=6))
    predictions = sp.predict(sp.wise_ft(zero, tuned, 0.5), SUITE.reference.test).logits
    assert abs(predictions - interpolated_logits(zero, tuned, SUITE.reference.test, 0.5)).max() > 0.01


# The path.


def hits(classifier: sp.Classifier, images: sp.ImageSet) -> int:
    predictions = sp.predict(classifier, images)
    right = 0
    for row, label in zip(predictions.logits.tolist(), predictions.labels.tolist(), strict=True):
        right += row.index(max(row)) == label
    return right


def test_the_sweep_agrees_with_every_ensemble_alone() -> None:
    zero, tuned = seeded_classifier(1), seeded_classifier(2)
    saved: dict[tuple[float, str], np.ndarray] = {}
    alphas = (0.0, 0.2, 0.5, 0.8, 1.0)
    path = sp.sweep_alpha(zero, tuned, SUITE, alphas, keep=collecting(saved))
    assert path.alphas == alphas
    assert (path.reference, path.shifts) == ("photo", ("sketch", "clutter"))
    validation = {"validation": SUITE.reference.validation}
    assert set(saved) == {(alpha, name) for alpha in alphas for name in {**validation, **SUITE.test_sets}}
    for alpha, point in zip(alphas, path.points, strict=True):
        alone = sp.wise_ft(zero, tuned, alpha)
        assert point.validation == hits(alone, SUITE.reference.validation) / 9
        assert list(point.accuracy) == ["photo", "sketch", "clutter"]
        for name, images in SUITE.test_sets.items():
            right, n = hits(alone, images), len(images)
            assert point.accuracy[name] == right / n
            assert point.interval[name] == sp.evaluation.accuracy_interval(right, n)
            assert saved[alpha, name].tolist() == sp.predict(alone, images).logits.tolist()
    # The two networks differ enough that the path is no constant.
    assert len({tuple(point.accuracy.values()) for point in path.points}) > 1


def test_the_sweep_gives_the_same_path_in_any_order_of_alphas() -> None:
    zero, tuned = seeded_classifier(1), seeded_classifier(2)
    rising = sp.sweep_alpha(zero, tuned, SUITE, [0.0, 0.5, 1.0])
    assert sp.sweep_alpha(zero, tuned, SUITE, [1.0, 0.0, 0.5, 0.5]) == rising
    assert sp.sweep_alpha(zero, tuned, SUITE, 3) == rising


@given(st.integers(2, 300))
def test_a_grid_is_evenly_spaced_and_meets_both_ends(count: int) -> None:
    grid = alpha_grid(count)
    assert len(grid) == count
    assert (grid[0], grid[-1]) == (0.0, 1.0)
    for i, alpha in enumerate(grid):
        assert alpha == pytest.approx(i / (count - 1), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1))
def test_given_alphas_come_out_rising_and_once(alphas: list[float]) -> None:
    grid = alpha_grid(alphas)
    assert set(grid) == set(alphas)
    assert all(a < b for a, b in itertools.pairwise(grid))


@pytest.mark.parametrize("alphas", [1, 0, -3, [], [0.5, 1.5], [-0.1], [math.nan]])
def test_a_grid_that_makes_no_sense_is_refused(alphas: int | list[float]) -> None:
    with pytest.raises(sp.InputError, match="alpha"):
        alpha_grid(alphas)


# The rules.


def path_of(validation: list[float], shift: list[float] | None = None) -> sp.records.PathRecord:
    grid = alpha_grid(len(validation))
    points = [
        PathPoint(alpha, held_out, {"photo": on_shift, "sketch": on_shift}, {"photo": (0, 1), "sketch": (0, 1)})
        for alpha, held_out, on_shift in zip(grid, validation, shift or validation, strict=True)
    ]
    return sp.records.PathRecord("photo", ("sketch",), tuple(points))


HUNDREDTHS = st.integers(0, 100).map(lambda i: i / 100)
CURVES = st.lists(HUNDREDTHS, min_size=2, max_size=12)


def test_fixed_is_a_half() -> None:
    assert sp.choose_alpha(path_of([0.1, 0.9])) == 0.5
    assert sp.choose_alpha(path_of([0.9, 0.2, 0.1]), "fixed") == 0.5


@given(CURVES)
def test_reference_takes_the_best_and_of_equals_the_one_nearest_zero_shot(validation: list[float]) -> None:
    best, chosen = -1.0, -1.0
    for alpha, value in zip(alpha_grid(len(validation)), validation, strict=True):
        if value > best:
            best, chosen = value, alpha
    assert sp.choose_alpha(path_of(validation), "reference") == chosen


def test_exactly_the_tolerance_is_good_enough() -> None:
    # Floating point puts 0.8 - 0.1 above 0.7, and so for many counts.
    for n in (3, 7, 10, 100, 300):
        for best in range(1, n + 1):
            for below in range(best + 1):
                path = path_of([(best - below) / n, best / n])
                assert sp.choose_alpha(path, "tolerance", tolerance=below / n) == 0
                if below >= 1:
                    assert sp.choose_alpha(path, "tolerance", tolerance=(below - 0.5) / n) == 1


@given(CURVES, st.integers(0, 100))
def test_tolerance_takes_the_first_that_is_good_enough(validation: list[float], tolerance: int) -> None:
    whole = [round(100 * value) for value in validation]
    enough = [a for a, v in zip(alpha_grid(len(whole)), whole, strict=True) if max(whole) - v <= tolerance]
    assert sp.choose_alpha(path_of(validation), "tolerance", tolerance=tolerance / 100) == enough[0]


@given(CURVES, st.sampled_from(["fixed", "reference", "tolerance"]), st.data())
def test_no_rule_reads_a_shift_or_the_test_split(validation: list[float], rule: str, data: st.DataObject) -> None:
    other = data.draw(st.lists(HUNDREDTHS, min_size=len(validation), max_size=len(validation)))
    permuted = data.draw(st.permutations(other))
    assert sp.choose_alpha(path_of(validation, other), rule) == sp.choose_alpha(path_of(validation, permuted), rule)
    assert sp.choose_alpha(path_of(validation, other), rule) == sp.choose_alpha(path_of(validation), rule)


def test_a_misspelt_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(sp.InputError, match=r"'referense'.*'reference'"):
        sp.choose_alpha(path_of([0.1, 0.2]), "referense")


@pytest.mark.parametrize("tolerance", [-0.1, 1.1, math.nan])
def test_a_tolerance_that_is_no_fraction_is_refused(tolerance: float) -> None:
    with pytest.raises(sp.InputError, match="tolerance"):
        sp.choose_alpha(path_of([0.1, 0.2]), "tolerance", tolerance=tolerance)


@given(CURVES)
def test_the_oracle_is_the_best_on_each_set(values: list[float]) -> None:
    path = path_of([0.5] * len(values), values)
    best = max(range(len(values)), key=lambda i: (values[i], -i))
    assert path.oracle() == {"photo": path.alphas[best], "sketch": path.alphas[best]}


def test_another_activation_is_another_architecture(tiny: sp.models.Clip) -> None:
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"]))
    other = dataclasses.replace(zero, architecture={**zero.architecture, "quick_gelu": True})
    with pytest.raises(sp.IncompatibleWeightsError, match="quick_gelu"):
        sp.wise_ft(zero, other, 0.5)
