"""Label weights against what the mixed pixels show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.mixings import (
    ANY,
    DTYPES,
    FOLLOWED,
    LAYOUTS,
    SEEDS,
    SIZES,
    batches,
    laid_out,
    one_colour,
    plan_for,
    same_bits,
    seeded,
)
from torch import Tensor
from torch.nn import functional

from shiftproof.mixing.masks import mask_means
from shiftproof.mixing.methods import CutMix, Mixing, MixUp, SmoothMix
from shiftproof.mixing.targets import mix_targets, one_hot


@given(
    mixing=FOLLOWED,
    count=st.sampled_from([1, 2, 3, 5, 8]),
    channels=st.integers(1, 4),
    size=SIZES,
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    seed=SEEDS,
)
@example(SmoothMix(), 5, 3, (9, 11), torch.float32, "contiguous", 0)
@example(SmoothMix(kind="square"), 5, 3, (9, 11), torch.uint8, "channels last", 0)
@example(CutMix(), 5, 3, (11, 9), torch.float64, "contiguous", 0)
@example(MixUp(concentration=0.2), 5, 3, (9, 11), torch.bfloat16, "channels last", 0)
def test_label_weights_are_not_swapped(
    mixing: Mixing, count: int, channels: int, size: tuple[int, int], dtype: torch.dtype, layout: str, seed: int
) -> None:
    # Each image is of one colour and of a class of its own: the mean colour says how much of which class is there.
    images = laid_out(one_colour(count, channels, size, dtype, seed), layout)
    mixing = replace(mixing, label_smoothing=0.0, num_classes=count)
    mixed, targets = mixing(images, torch.arange(count), generator=seeded(seed))
    colours = images[:, :, 0, 0].double()
    tolerance = 0.51 if dtype == torch.uint8 else 6 * torch.finfo(dtype).eps + 2e-5
    torch.testing.assert_close(mixed.double().mean((2, 3)), targets.double() @ colours, rtol=0, atol=tolerance)


def test_label_weights_are_means_and_not_sums() -> None:
    # Sums over the pixels would give weights of hundreds; these are the bounds for the paper's spread.
    weights = SmoothMix().plan(20000, (224, 224), seeded(0)).weights
    assert weights.mean().item() == pytest.approx(0.43, abs=0.005)
    assert (weights < 0.5).float().mean().item() == pytest.approx(0.69, abs=0.01)
    assert weights.min() >= 0.098 - 5e-4
    assert weights.max() <= 0.732 + 5e-4
    corner, middle = torch.tensor([[0.0, 0.0], [112.0, 112.0]])
    low = mask_means("circle", (224, 224), corner[None], torch.full((1, 2), 56.0), torch.ones(1))
    high = mask_means("circle", (224, 224), middle[None], torch.full((1, 2), 112.0), torch.ones(1))
    assert low.item() == pytest.approx(0.098, abs=5e-4)
    assert high.item() == pytest.approx(0.732, abs=5e-4)


@given(ANY, batches(), SEEDS)
def test_targets_sum_to_1_and_are_float32(mixing: Mixing, images: Tensor, seed: int) -> None:
    labels = torch.randint(7, (len(images),), generator=seeded(seed))
    _, targets = replace(mixing, num_classes=7)(images, labels, generator=seeded(seed))
    assert targets.dtype == torch.float32
    assert targets.shape == (len(images), 7)
    assert targets.min() >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(len(images)), rtol=0, atol=2e-6)


@given(ANY, batches(), SEEDS)
def test_positions_and_one_hot_rows_give_the_same_targets(mixing: Mixing, images: Tensor, seed: int) -> None:
    labels = torch.randint(4, (len(images),), generator=seeded(seed))
    plan = plan_for(mixing, images, seed)
    smoothing = mixing.label_smoothing
    result = mix_targets(labels, plan, 4, label_smoothing=smoothing)
    for rows in (functional.one_hot(labels, 4), functional.one_hot(labels, 4).bool(), one_hot(labels, 4).half()):
        torch.testing.assert_close(mix_targets(rows, plan, label_smoothing=smoothing), result, rtol=0, atol=1e-6)
    for kind in (torch.uint8, torch.int32):
        assert same_bits(mix_targets(labels.to(kind), plan, 4, label_smoothing=smoothing), result)
    for i, row in enumerate(result.tolist()):
        weight, partner = plan.weights[i].item(), plan.partners[i].item()
        for k, share in enumerate(row):
            own = (labels[i] == k).item() * weight + (labels[partner] == k).item() * (1 - weight)
            assert share == pytest.approx((1 - smoothing) * own + smoothing / 4, abs=1e-6)


def test_soft_labels_stay_soft() -> None:
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    plan = replace(MixUp().plan(2, (2, 2), seeded(0)), weights=torch.tensor([0.25, 1.0]))
    expected = torch.tensor([[0.175, 0.45, 0.375], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(mix_targets(soft, plan), expected)
