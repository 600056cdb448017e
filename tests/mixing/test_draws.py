"""The distributions that weights, boxes, circles, partners and choices are drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support.mixings import ANY, CUTMIXES, CUTOUTS, MIXUPS, SEEDS, SMOOTHMIXES, batches, plan_for, same_bits, seeded
from torch import Tensor

from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.named import MIXINGS


def far_from(result: Tensor, law: Any) -> float:
    """The p-value of a Kolmogorov-Smirnov test."""
    return float(stats.kstest(result.double().numpy(), law.cdf).pvalue)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
def test_mixup_draws_its_weights_from_a_beta(concentration: float) -> None:
    weights = MixUp(concentration=concentration).plan(4000, (2, 2), seeded(0)).weights
    assert far_from(weights, stats.beta(concentration, concentration)) > 0.01
    assert weights.unique().numel() > 3500


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("mixing", [CutMix, partial(SmoothMix, kind="square")])
def test_boxes_have_the_area_that_a_beta_gives(mixing: Callable[..., Mixing], concentration: float) -> None:
    width, count = 1000, 4000
    plan = mixing(concentration=concentration).plan(count, (1, width), seeded(1))
    halves = plan.extents[:, 1].numpy()
    thresholds = np.arange(1, width // 2 + 1)
    expected = stats.beta(concentration, concentration).sf((2 * thresholds / width) ** 2)
    result = (halves[:, None] >= thresholds).mean(0)
    assert np.abs(result - expected).max() < stats.kstwo.ppf(0.99, count)


def test_circles_stand_anywhere_and_spread_evenly() -> None:
    plan = SmoothMix(spread=(0.1, 0.4)).plan(4000, (50, 80), seeded(2))
    for axis, length in enumerate((50, 80)):
        assert far_from(plan.centres[:, axis], stats.uniform(0, length)) > 0.01
        assert far_from(plan.extents[:, axis], stats.uniform(5, 15)) > 0.01  # 0.1 to 0.4 of the shorter side
    assert torch.equal(plan.extents[:, 0], plan.extents[:, 1])
    drawn = torch.cat([plan.centres, plan.extents[:, :1]], 1).T
    assert (torch.corrcoef(drawn) - torch.eye(3)).abs().max() < 0.05


@pytest.mark.parametrize("mixing", [CutMix(), SmoothMix(kind="square"), Cutout()])
def test_boxes_stand_anywhere(mixing: Mixing) -> None:
    plan = mixing.plan(4000, (5, 8), seeded(3))
    for axis, length in enumerate((5, 8)):
        counts = np.bincount(plan.centres[:, axis].int().numpy(), minlength=length)
        assert len(counts) == length
        assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("probability", [0.0, 0.3, 0.75, 1.0])
def test_the_probability_is_the_share_of_samples_that_are_mixed(name: str, probability: float) -> None:
    # Once, not twice: 0.3 of 0.3 would be 0.09.
    plan = replace(MIXINGS[name], probability=probability).plan(3000, (4, 4), seeded(4))
    struck = sum(shape != "none" for shape in plan.shapes)
    assert stats.binomtest(struck, 3000, probability).pvalue > 0.01
    if probability in (0, 1):
        assert struck == 3000 * probability
    untouched = torch.tensor([shape == "none" for shape in plan.shapes])
    assert (plan.weights[untouched] == 1).all()


@given(ANY, batches(), SEEDS)
def test_with_probability_0_nothing_happens(mixing: Mixing, images: Tensor, seed: int) -> None:
    mixing = replace(mixing, probability=0.0, label_smoothing=0.0)
    mixed, targets = mixing(images, torch.eye(len(images)), generator=seeded(seed))
    assert same_bits(mixed, images)
    assert torch.equal(targets, torch.eye(len(images)))


@given(SMOOTHMIXES | CUTMIXES | MIXUPS | CUTOUTS, st.integers(2, 9), SEEDS)
def test_nobody_is_its_own_partner_and_everyone_serves_once(mixing: Mixing, count: int, seed: int) -> None:
    partners = replace(mixing, probability=1.0).plan(count, (3, 3), seeded(seed)).partners
    assert sorted(partners.tolist()) == list(range(count))
    assert (partners != torch.arange(count)).all()


def test_every_shift_of_the_batch_is_as_likely() -> None:
    generator = seeded(5)
    shifts = Counter(int(MixUp().plan(6, (1, 1), generator).partners[0]) for _ in range(1000))
    assert sorted(shifts) == [1, 2, 3, 4, 5]
    assert stats.chisquare(list(shifts.values())).pvalue > 0.01


def test_a_choice_draws_in_proportion_to_its_weights() -> None:
    mixings = (SmoothMix(), MixUp(), SmoothMix(kind="square"), Cutout(probability=0.5))
    plan = MixChoice(mixings=mixings, weights=(3, 1, 0, 4)).plan(4000, (4, 4), seeded(0))
    counts = Counter(plan.shapes)
    result = [counts["circle"], counts["even"], counts["square"], counts["none"]]
    assert sum(result) == 4000
    # The square is Cutout's alone, and half of its share is left unmixed.
    assert stats.chisquare(result, [1500, 500, 1000, 1000]).pvalue > 0.01
    assert all(
        bool(inside) is False for inside, s in zip(plan.anchor_inside, plan.shapes, strict=True) if s == "square"
    )
    even = Counter(MixChoice(mixings=mixings[:2]).plan(4000, (4, 4), seeded(7)).shapes)
    assert stats.binomtest(even["even"], 4000, 0.5).pvalue > 0.01


@given(st.lists(SMOOTHMIXES | CUTMIXES | MIXUPS | CUTOUTS, min_size=1, max_size=3), st.integers(0, 2), batches(), SEEDS)
def test_a_choice_with_one_weight_is_that_mixing_s_kind(
    mixings: list[Mixing], chosen: int, images: Tensor, seed: int
) -> None:
    chosen %= len(mixings)
    weights = [float(i == chosen) for i in range(len(mixings))]
    plan = plan_for(MixChoice(mixings=mixings, weights=weights), images, seed)
    member = replace(mixings[chosen], probability=1.0).plan(1, (2, 2), seeded(0))
    assert set(plan.shapes) <= {member.shapes[0], "none"}
    assert mixings[chosen].probability < 1 or set(plan.shapes) == {member.shapes[0]}
